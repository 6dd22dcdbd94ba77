"""The table of modes: every public function in every mode of JAX gives its value, or refuses."""

import mode_cases
import modes
import pytest
from marks import slow

CELLS = [
    (case, mode)
    for case in mode_cases.CASES
    for mode, (_, has_mode) in modes.MODES.items()
    if has_mode(case)
]
# For every change: one function of each kind in every mode.
FIRST = ("dropout", "gaussian_dropout", "dot_product_attention, 130 queries", "predictive_entropy")


@pytest.mark.parametrize(
    ("case", "mode"),
    [cell if cell[0].name in FIRST else slow(*cell) for cell in CELLS],
    ids=str,
)
def test_a_cell(case, mode):
    modes.MODES[mode][0](case)
