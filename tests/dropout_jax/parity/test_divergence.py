"""The first step, site and element at which two recorded runs differ."""

import jax.numpy as jnp
import numpy as np
import pytest

from dropout_jax.parity import divergence

RNG = np.random.default_rng(0)


def site(rows=3):
    x = RNG.standard_normal((rows, 4))
    keep = RNG.random((rows, 4)) > 0.3
    return {"input": x, "mask": keep, "output": np.where(keep, x / 0.7, 0)}


def run(steps=3):
    return [
        {name: site() for name in ("embed", "block/0/mlp_out", "block/1/a")} for _ in range(steps)
    ]


def find(*runs, **tolerances):
    difference = divergence.first_difference(*runs, **tolerances)
    assert difference is not None
    return difference


def changed(run, step, name, part, element, value):
    copy = [{key: dict(record) for key, record in each.items()} for each in run]
    array = copy[step][name][part].copy()
    array[element] = value
    copy[step][name][part] = array
    return copy


def test_equal_runs_do_not_differ():
    one = run()
    assert divergence.first_difference(one, one) is None


@pytest.mark.parametrize("part", divergence.PARTS)
def test_the_first_difference_is_named(part):
    one = run()
    value = not one[1]["block/0/mlp_out"]["mask"][2, 1] if part == "mask" else 99.0
    other = changed(one, 1, "block/0/mlp_out", part, (2, 1), value)
    other = changed(other, 1, "block/1/a", "input", (0, 0), 5.0)  # later
    other = changed(other, 2, "embed", "input", (0, 0), 5.0)
    difference = find(one, other)
    assert (difference.step, difference.site, difference.part) == (1, "block/0/mlp_out", part)
    assert (difference.element, difference.other) == ((2, 1), value)
    assert difference.one == one[1]["block/0/mlp_out"][part][2, 1]


def test_an_input_is_found_before_what_follows_from_it():
    one = run()
    other = changed(one, 0, "embed", "input", (0, 0), 9.0)
    other = changed(other, 0, "embed", "output", (0, 0), 9.0)
    assert find(one, other).part == "input"


def test_rounding_is_let_pass_and_the_bound_can_be_set():
    one = run()
    value = one[0]["embed"]["input"][0, 0] + 1e-6
    other = changed(one, 0, "embed", "input", (0, 0), value)
    assert divergence.first_difference(one, other) is None
    assert find(one, other, rtol=0, atol=1e-7).site == "embed"


def test_nan_differs_from_a_number_and_not_from_nan():
    one = run()
    nan = changed(one, 0, "embed", "input", (0, 0), np.nan)
    assert divergence.first_difference(nan, nan) is None
    assert find(one, nan).part == "input"


def test_a_mask_where_the_input_is_zero_decides_nothing():
    one = changed(run(), 0, "embed", "input", (0, 0), 0.0)
    one = changed(one, 0, "embed", "output", (0, 0), 0.0)
    keep = one[0]["embed"]["mask"][0, 0]
    assert divergence.first_difference(one, changed(one, 0, "embed", "mask", (0, 0), ~keep)) is None


def test_a_missing_site_and_another_shape_are_differences():
    one = run()
    short = [{name: record for name, record in step.items() if name != "embed"} for step in one]
    for pair in ((one, short), (short, one)):
        difference = find(*pair)
        assert (difference.site, difference.part) == ("embed", "presence")
    other = [{"embed": site(rows=5)}]
    difference = find([{"embed": site()}], other)
    assert (difference.part, difference.one, difference.other) == (
        "shape of the input",
        (3, 4),
        (5, 4),
    )


def test_files_keep_everything_in_order(tmp_path):
    one = run()
    one[0]["embed"]["where"] = "model.py:3"
    one[0]["block/1/a"]["input"] = jnp.ones((3, 4), jnp.bfloat16) / 3
    divergence.save(one, tmp_path / "run.npz")
    again = divergence.load(tmp_path / "run.npz")
    assert [list(step) for step in again] == [list(step) for step in one]
    assert divergence.first_difference(one, again, rtol=0, atol=0) is None
    other = changed(one, 0, "embed", "output", (0, 0), 7.0)
    assert "site embed (model.py:3): the output differs at (0, 0)" in str(
        divergence.first_difference(again, other)
    )
