"""Write the table of docs/audit.md: python tests/audit_page.py docs/audit.md.

Every faulty and every correct model of tests/dropout_jax/audit is audited, and the lines of the
page between the two comments that name this script are replaced. It takes minutes.
"""

import os
import sys
import warnings
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
sys.path.append(str(Path(__file__).parent / "dropout_jax" / "audit"))

from audit_cases import judge
from rich.progress import track
from tabulate import tabulate

import bugs
import correct

BEGIN = "<!-- python tests/audit_page.py docs/audit.md writes what follows -->"
END = "<!-- up to here -->"


def render_table(verdicts: dict) -> str:
    """The counts, a table of the faulty models, and the correct ones by framework."""
    faulty = {case: verdict for case, verdict in verdicts.items() if case[1].code}
    fair = {case: verdict for case, verdict in verdicts.items() if not case[1].code}
    found_count = sum(verdict == "found" for verdict in faulty.values())
    accused = sum(verdict != "not accused" for verdict in fair.values())
    missed = f"{len(faulty) - found_count} are missed, for reasons among the limits above"
    head = (
        f"Of {len(faulty)} faulty models {found_count} are found, with the code and the line, and "
        f"{missed}. Of {len(fair)} correct models {accused} are accused."
    )
    rows = [
        [case.code, framework, f"`{case}`", case.about, verdict]
        for (framework, case), verdict in sorted(faulty.items(), key=lambda item: item[0][1].code)
    ]
    table = tabulate(rows, ["code", "framework", "model", "fault", "verdict"], tablefmt="github")
    return f"{head}\n\n{table}\n\n{tabulate(_by_framework(fair), tablefmt='github', headers=NAMES)}"


NAMES = ["framework", "correct models", "accused"]


def _by_framework(fair: dict) -> list[list[str]]:
    rows = []
    for framework in dict.fromkeys(framework for framework, _ in fair):
        cases = {case: verdict for (name, case), verdict in fair.items() if name == framework}
        names = ", ".join(f"`{case}`" for case in cases)
        wrong = [f"`{case}` {verdict}" for case, verdict in cases.items() if "not" not in verdict]
        rows.append([framework, f"{len(cases)}: {names}", ", ".join(wrong) or "none"])
    return rows


def replace_table(page: str, table: str) -> str:
    """The page with the lines between the comments replaced."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main(path: Path) -> None:
    warnings.simplefilter("ignore")
    cases = [
        (framework, case)
        for cases_of in (bugs.CASES, correct.CASES)
        for framework, cases in cases_of.items()
        for case in cases
    ]
    verdicts = {pair: judge(pair[1]) for pair in track(cases, "auditing")}
    path.write_text(replace_table(path.read_text(), render_table(verdicts)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
