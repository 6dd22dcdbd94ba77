"""Break each guard on purpose, in a copy of the repository, and require `make test` to notice.

    python tests/repository/mutations.py [NAME ...] [--write]

A mutation replaces one piece of one file and names the tests of `make test` that should fail for
it; only these are run. `--write` puts the table of which test noticed what into CONTRIBUTING.md.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from rich.progress import track

ROOT = pathlib.Path(__file__).parent.parent.parent
BEGIN, END = "<!-- mutants: begin -->", "<!-- mutants: end -->"


@dataclass(frozen=True)
class Mutation:
    """One guard, how it is broken, and where that must be noticed."""

    name: str
    path: str
    old: str
    new: str
    tests: str


MUTATIONS = [
    Mutation(
        "the key's fold",
        "dropout_jax/random/_masks.py",
        "FOLD = 0x64726F70",
        "FOLD = 0x64726F71",
        "tests/dropout_jax/random/test_masks.py",
    ),
]


def copy_repository(folder):
    """A copy of what git tracks or would add, with this environment and its compiled programs."""
    listed = subprocess.check_output(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True
    )
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (ROOT / ".jax_cache").mkdir(exist_ok=True)
    (folder / ".jax_cache").symlink_to(ROOT / ".jax_cache")


def run_tests(folder, tests):
    """The exit code of pytest, and the first test that failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "2", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(
        [*command, *tests.split()], cwd=folder, env=environment, capture_output=True, text=True
    )
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return done.returncode, failed[1] if failed else None, done.stdout


def apply(mutation, folder):
    """Break the guard; returns a function that mends it."""
    path = folder / mutation.path
    text = path.read_text()
    if text.count(mutation.old) != 1:
        sys.exit(f"{mutation.name}: {mutation.path} must hold {mutation.old!r} exactly once.")
    path.write_text(text.replace(mutation.old, mutation.new))
    return lambda: path.write_text(text)


def noticed_by(mutations, folder):
    """For each mutation the first test that failed; None where none did."""
    results = {}
    for mutation in track(mutations, "mutants"):
        mend = apply(mutation, folder)
        code, failed, output = run_tests(folder, mutation.tests)
        mend()
        if code not in (0, 1):
            sys.exit(f"{mutation.name}: pytest ended with {code}:\n{output[-2000:]}")
        results[mutation] = failed
        print(f"{mutation.name}: {failed or 'NOT NOTICED'}", flush=True)
    return results


def write_table(results):
    """Put the table into CONTRIBUTING.md, between its two marks."""
    rows = ["| guard | file | noticed by |", "|---|---|---|"]
    for mutation, failed in results.items():
        test = re.sub(r"\[.*", "", failed).replace("::", " `", 1) + "`"
        rows.append(f"| {mutation.name} | {mutation.path} | {test} |")
    path = ROOT / "CONTRIBUTING.md"
    before, _, rest = path.read_text().partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{chr(10).join(rows)}\n{END}{rest.partition(END)[2]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="mutations by name; all without names")
    parser.add_argument("--write", action="store_true", help="write the table")
    args = parser.parse_args()
    chosen = [each for each in MUTATIONS if not args.names or each.name in args.names]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        copy_repository(folder)
        tests = " ".join(sorted({test for each in chosen for test in each.tests.split()}))
        code, failed, output = run_tests(folder, tests)
        if code:
            sys.exit(f"without a mutation {failed} fails:\n{output[-2000:]}")
        results = noticed_by(chosen, folder)
    missed = [mutation.name for mutation, failed in results.items() if failed is None]
    if missed:
        sys.exit(f"`make test` does not notice: {', '.join(missed)}")
    if args.write:
        write_table(results)


if __name__ == "__main__":
    main()
