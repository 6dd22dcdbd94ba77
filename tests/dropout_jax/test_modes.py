"""The table of modes: every public function in every mode of JAX gives its value, or refuses."""

import pathlib

import mode_cases
import mode_page
import modes
import pytest
from marks import slow

import dropout_jax

PAGE = pathlib.Path(__file__).parents[2] / "docs/modes.md"

CELLS = [
    (case, mode)
    for case in mode_cases.CASES
    for mode, (_, has_mode) in modes.MODES.items()
    if has_mode(case)
]
EVERY_NTH = 240


def _is_quick(i, case, mode):
    """For every change: dropout in the modes that compile, and a few cells of the others."""
    return (case.name == "dropout" and "disable_jit" not in mode) or i % EVERY_NTH == 0


@pytest.mark.parametrize(
    ("case", "mode"),
    [cell if _is_quick(i, *cell) else slow(*cell) for i, cell in enumerate(CELLS)],
    ids=str,
)
def test_a_cell(case, mode, request):
    if "symbolic" in mode:  # the annotations say int, which a symbolic size is not
        request.getfixturevalue("without_type_checker")
    check, _ = modes.MODES[mode]
    refusal = modes.REFUSALS.get((case.name, mode))
    if refusal is None:
        check(case)
    else:
        with pytest.raises(refusal.error, match=refusal.message):
            check(case)


def test_the_page_shows_the_table():
    assert PAGE.read_text() == mode_page.render(), f"run {mode_page.__doc__}"


def test_every_public_function_of_arrays_is_in_the_table():
    """The others compute from sizes and numbers alone."""
    names = {case.name.partition(",")[0] for case in mode_cases.CASES}
    assert set(dropout_jax.__all__) - names == {"attention_implementation", "linear_over_depth"}
