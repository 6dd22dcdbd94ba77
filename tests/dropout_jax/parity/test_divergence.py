"""The first step, site and element at which two recorded runs differ."""

from typing import Any

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


@pytest.mark.parametrize(("one", "other"), [([], run()), (run(), [])], ids=["one", "other"])
def test_a_run_without_steps_is_no_proof(one, other):
    with pytest.raises(ValueError, match=r"at least one step. Record a step first"):
        divergence.first_difference(one, other)


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


NAMES = [
    "a|b",
    "a\nb",
    "",
    "été/λ",
    "a/b",
    "0",
    "file",
    "index",
    "\ud800",
    ".npy",
    "../x",
    "a" * 300,
]
DTYPES = ["bool", "int8", "uint64", "float16", "float32", "float64", "complex64", "bfloat16"]
DTYPES += [
    "float8_e4m3fn",
    "float8_e8m0fnu",
    "float4_e2m1fn",
    "int4",
    "uint2",
    "U3",
    "datetime64[s]",
]


def assert_same(one, other):
    assert [list(step) for step in one] == [list(step) for step in other]
    for mine, theirs in zip(one, other, strict=True):
        for site in mine:
            assert list(mine[site]) == list(theirs[site])
            for part, value in mine[site].items():
                array, again = np.asarray(value), np.asarray(theirs[site][part])
                assert array.dtype == again.dtype
                assert array.shape == again.shape
                assert array.tobytes() == again.tobytes()


def test_files_keep_any_name(tmp_path):
    one = [{name: site() for name in NAMES} for _ in range(2)]
    one[0]["a|b"] |= {"where": "été.py:3\n", "of|mine": np.float32(3)}
    divergence.save(one, tmp_path / "run")
    again = divergence.load(tmp_path / "run")
    assert_same(one, again)
    assert again[0]["a|b"]["where"] == "été.py:3\n"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 2)])
def test_files_keep_any_dtype_and_shape(dtype, shape, tmp_path):
    array = np.asarray(np.ones(shape), jnp.dtype(dtype)) if shape != (3, 2) else np.arange(6)
    array = array.reshape(shape).astype(jnp.dtype(dtype))
    one = [{"a": {"input": array, "output": array.T}}]
    divergence.save(one, tmp_path / "run.npz")
    assert_same(one, divergence.load(tmp_path / "run.npz"))


def test_files_keep_empty_steps_and_numbers(tmp_path):
    one = [{}, {"a": {}}, {"a": {"input": 3, "mask": True, "output": [1.5, 2]}}, {}]
    divergence.save(one, tmp_path / "run.npz")
    assert_same(one, divergence.load(tmp_path / "run.npz"))
    divergence.save([], tmp_path / "run.npz")
    assert divergence.load(tmp_path / "run.npz") == []


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": site()}, "(?s)run={.*a list of steps. For one step pass"),
        (["a"], r"run\[0\]='a' is not allowed"),
        ([{3: site()}], r"site of run\[0\]=3 is not allowed.*str\(site\)"),
        ([{"a": np.ones(3)}], r"run\[0\]\['a'\]=array"),
        ([{"a": {3: np.ones(3)}}], "part at 'a'=3 is not allowed"),
        ([{"a": {"input": None}}], "'input' at site 'a'=None is not allowed"),
        ([{"a": {"input": [[1], [1, 2]]}}], "'input' at site 'a'="),
        ([{"a": {"input": b"a\0"}}], "'input' at site 'a'="),
        ([{"a": {"input": 2**70}}], "'input' at site 'a'="),
        ([{"a": {"input": np.ma.masked_array([1], [True])}}], "'input' at site 'a'="),
        ([{"a": {"input": {}}}], "'input' at site 'a'={}"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_the_file_is_written(value, message, tmp_path):
    with pytest.raises(TypeError, match=message):
        divergence.save(value, tmp_path / "run.npz")
    assert not list(tmp_path.iterdir())
    if isinstance(value, dict):
        with pytest.raises(TypeError, match=r"one=\{"):
            divergence.first_difference(value, run())  # pyright: ignore[reportArgumentType]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "run.npz"
    np.savez(path, x=np.ones(3))
    files = [path.read_bytes(), b"text", b""]
    divergence.save(run(), path)
    files.append(path.read_bytes()[:-100])
    for content in files:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"run.npz' is not allowed: path must be a file of"):
            divergence.load(path)
    with pytest.raises(FileNotFoundError):
        divergence.load(tmp_path / "none")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "int4", "complex64"])
def test_low_precision_is_compared_by_the_formula(dtype):
    """In float64: 1e-5 is lost beside 1 in every one of these but complex64."""
    x = np.ones(3).astype(jnp.dtype(dtype))
    one = [{"a": {"input": x, "mask": np.ones(3, bool), "output": x}}]
    assert divergence.first_difference(one, one, rtol=0, atol=0) is None
    other = changed(one, 0, "a", "output", 1, 0)
    assert find(one, other, rtol=0.99, atol=0).element == (1,)
    assert divergence.first_difference(one, other, rtol=0, atol=1.0) is None


def test_large_integers_are_compared_exactly():
    one = [{"a": {"input": np.array([2**53]), "mask": np.array([True]), "output": np.array([0])}}]
    assert find(one, changed(one, 0, "a", "input", 0, 2**53 + 1), rtol=0, atol=0).part == "input"


@pytest.mark.usefixtures("without_type_checker")
def test_tolerances_and_parts_are_checked():
    cases: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
        ({"rtol": -1.0}, ValueError, "rtol=-1.0 is not allowed"),
        ({"atol": np.nan}, ValueError, "atol=nan is not allowed"),
        ({"atol": np.inf}, ValueError, "atol=inf is not allowed"),
        ({"rtol": True}, TypeError, "rtol=True is not allowed"),
        ({"rtol": "1"}, TypeError, "rtol='1' is not allowed"),
    )
    for tolerances, error, message in cases:
        with pytest.raises(error, match=message):
            divergence.first_difference(run(), run(), **tolerances)
    one = [{"a": {"input": np.ones(3), "output": np.ones(3)}}]
    with pytest.raises(KeyError, match="lacks 'mask'"):
        divergence.first_difference(one, one)
