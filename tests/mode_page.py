"""Write docs/modes.md: python tests/mode_page.py > docs/modes.md."""

import mode_cases
import modes
from tabulate import tabulate

INTRODUCTION = """\
# Modes of JAX

Every public function of `dropout_jax` that takes arrays runs in every way that JAX can run a
function. In each cell the result (or the derivative) equals that of the function under `jit` on one
device without the mode. Otherwise the call is refused, with an error that names the reason and the
remedy.

`pytest -m "slow or not slow" tests/dropout_jax/test_modes.py` runs all cells, and
tests/mode_page.py writes this page from the same table. Nothing here ran on a GPU or a
TPU: programs for cuda and tpu are exported, which means traced and lowered.

Under a transfer guard only the eager call is checked, with arrays on the device. Its eager
derivative is not: JAX moves constants of its own for it.
"""


def render() -> str:
    """The page: a row for each mode, and the functions."""
    rows = [
        [mode, sum(map(has_mode, mode_cases.CASES)), _exceptions(mode)]
        for mode, (_, has_mode) in modes.MODES.items()
    ]
    names = ", ".join(f"`{case.name}`" for case in mode_cases.CASES)
    table = tabulate(rows, ["mode", "functions", "exceptions"], tablefmt="github")
    return f"{INTRODUCTION}\n{table}\n\n## The functions\n{names}\n"


def _exceptions(mode: str) -> str:
    refused = [f"`{case}`: {r.reason}" for (case, m), r in modes.REFUSALS.items() if m == mode]
    return "; ".join(refused)


if __name__ == "__main__":
    print(render(), end="")
