"""Every fault is found with its code and its line, and no correct model is accused."""

import pathlib

import pytest
from audit_cases import judge

import bugs
import correct
from dropout_jax.audit._findings import TITLES

PAGE = pathlib.Path(__file__).parents[3] / "docs" / "audit.md"


def as_params(cases_of):
    return [
        pytest.param(case, id=f"{framework}-{case}", marks=marks_of(case))
        for framework, cases in cases_of.items()
        for case in cases
    ]


def marks_of(case):
    marks = [] if case.is_quick else [pytest.mark.slow]
    return [*marks, pytest.mark.xfail(reason="a known miss")] if case.is_missed else marks


@pytest.mark.filterwarnings("ignore")  # of the frameworks, about themselves
@pytest.mark.parametrize("case", as_params(bugs.CASES))
def test_fault_is_found_at_its_line(case):
    assert judge(case) == "found"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", as_params(correct.CASES))
def test_correct_model_is_not_accused(case):
    assert judge(case) == "not accused"


def test_every_code_has_faulty_models_and_every_framework_both_kinds():
    codes = {case.code for cases in bugs.CASES.values() for case in cases}
    assert codes >= set(TITLES)
    assert set(bugs.CASES) <= set(correct.CASES)


def test_page_has_a_section_for_every_code_and_a_row_for_every_case():
    page = PAGE.read_text()
    assert all(f"### {code}\n" in page for code in TITLES)
    cases = [case for of in (bugs.CASES, correct.CASES) for some in of.values() for case in some]
    assert [str(case) for case in cases if f"`{case}`" not in page] == []  # tests/audit_page.py
