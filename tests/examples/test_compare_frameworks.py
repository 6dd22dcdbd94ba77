"""The page that compares frameworks, in its small form: what must hold for the libraries here."""

import dataclasses
import importlib.util
import pathlib
import sys

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own
ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = str(ROOT / "examples" / "frameworks")
PEERS = ["flax.nnx", "flax.linen", "equinox", "haiku", "keras", "torch"]


@pytest.fixture(scope="module", autouse=True)
def examples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [EXAMPLES, *sys.path])
        yield


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The tables, the text and the picture of one run."""
    for name in (
        "flax",
        "equinox",
        "haiku",
        "keras",
        "torch",
    ):  # find_spec does not import: keras would choose a backend
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    import compare_frameworks

    out = tmp_path_factory.mktemp("page") / "frameworks.md"
    tables = compare_frameworks.main(["--small", "--out", str(out)])
    return {table.title: table for table in tables}, out.read_text(), out


@pytest.mark.slow
def test_the_page_names_every_framework_in_every_table(page):
    tables, text, out = page
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    for title, table in tables.items():
        assert f"{title}\n" in text
        names = " ".join(row[0] for row in table.rows)
        assert title == "Known from the source, not run" or all(name in names for name in PEERS)
        assert all(len(row) == len(table.headers) for row in table.rows)


@pytest.mark.slow
def test_promised_bits_agree_and_those_of_another_seed_do_not(page):
    rows = page[0]["Bit equality"].data
    assert sum(promised == "yes" for _, _, promised, *_ in rows) == 15
    for name, what, promised, elements, differ, control in rows:
        assert control > 0.1 * elements, (name, what)
        assert (differ == 0) == (promised == "yes"), (name, what)


@pytest.mark.slow
def test_statistics_are_in_bounds_but_for_named_deviations(page):
    """Intervals of 99.99 %, |z| < 4.9; with 65,536 elements no known deviation is that large."""
    tables, text, _ = page
    assert "**!**" not in text.replace("**!** would", "")
    for name, intervals in tables["Kept fraction"].data.items():
        for rate, (low, share, high) in zip((0.01, 0.1, 0.5, 0.9), intervals, strict=True):
            assert low < 1 - rate < high, (name, rate)
            assert low < share < high
    for *what, z_mean, z_variance, _ in tables["Mean and variance against the closed form"].data:
        assert max(abs(z_mean), abs(z_variance)) < 4.9, what


@pytest.mark.slow
def test_the_bias_of_the_scale_is_the_one_of_the_arithmetic(page):
    """0.9 / 0.8984375 and 0.9 x 1.109375; ours 0, to what 192 values round to."""
    for name, bias in page[0]["Bias of the scale"].data.items():
        expected = {"dropout_jax": 0, "NumPy oracle": 0, "torch": 0.9 * 1.109375 - 1}
        expected = expected.get(name, 0.9 / 0.8984375 - 1)
        assert abs(bias["float32"]) < 1e-6, name
        assert abs(bias["bfloat16"] - expected) < 1e-4, name


@pytest.mark.slow
def test_our_values_at_the_edges_and_our_memory(page):
    tables = page[0]
    rates = next(row for row in tables["Rates at the edges"].rows if row[0] == "dropout_jax")
    assert rates[1:6] == ["identity", "zeros", "ValueError", "ValueError", "ValueError"]
    assert rates[7:] == ["NaN", "NaN"]
    values = next(row for row in tables["Values at the edges"].rows if row[0] == "dropout_jax")
    assert values[1:] == ["0", "0", "0", "-0", "zeros"]
    modes = next(row for row in tables["Training and evaluation"].rows if row[0] == "dropout_jax")
    assert modes[2:] == ["TypeError", "yes"]
    kept = tables["Memory kept for the backward pass"].data
    assert kept["dropout_jax"] == pytest.approx([0.125, 0.125], abs=1e-3)
    assert all(kept[name][0] >= 1 for name in kept if name not in ("dropout_jax", "NumPy oracle"))


def test_a_library_that_is_missing_is_a_row_that_says_so(monkeypatch):
    import framework_tables
    import frameworks

    monkeypatch.setitem(sys.modules, "equinox", None)
    monkeypatch.setattr(frameworks, "FRAMEWORKS", {"equinox": frameworks.equinox})
    peers = frameworks.load_peers()
    assert peers == {"equinox": "not installed"}
    for table in framework_tables.TABLES[:-1]:
        assert table(peers, True).rows == [["equinox", "not installed"]]


def test_a_wrong_scale_and_a_wrong_share_are_detected():
    """Controls with 262,144 elements: a scale that is 1 % off, and a rate that is 0.01 off."""
    import framework_tables
    import frameworks

    right = frameworks.ours()
    drop = right.ops["dropout"]
    for wrong in (
        lambda x, rate, seed: drop(x, rate, seed) * np.float32(1.01),
        lambda x, rate, seed: drop(x, rate + 0.01, seed),
    ):
        peer = dataclasses.replace(right, ops={"dropout": wrong})
        *z, _ = framework_tables.compute_z_scores(
            peer, "dropout", np.dtype("float32"), 0.1, (64, 8, 512)
        )
        assert max(map(abs, z)) > 4.9
        assert (
            framework_tables.mark_deviation("dropout_jax", "dropout", "float32", 5.0, False)
            == " **!**"
        )
    shares = framework_tables.measure_kept_fraction({"dropout_jax": peer}, True)
    assert "**!**" in "".join(shares.rows[0])


@pytest.mark.slow
def test_rounding_alone_is_distinguished_from_a_deviation():
    """bfloat16 lacks alpha's dropped value: 2^22 elements show it, and one rounding explains it."""
    import framework_tables
    import frameworks

    dtype = jax.numpy.dtype("bfloat16")
    *z, only_rounded = framework_tables.compute_z_scores(
        frameworks.ours(), "alpha", dtype, 0.3, (1024, 8, 512)
    )
    assert max(map(abs, z)) > 4.9
    assert only_rounded


def test_the_page_in_docs_is_of_every_library_and_has_no_unnamed_deviation():
    text = (ROOT / "docs" / "frameworks.md").read_text()
    assert "not installed" not in text
    assert "**!**" not in text.replace("**!** would", "")
    assert " and 0 differ." in text


@pytest.mark.slow
def test_two_runs_write_the_same_page(page):
    import compare_frameworks

    _, text, out = page
    picture = out.with_suffix(".png").read_bytes()
    compare_frameworks.main(["--small", "--out", str(out)])
    assert out.read_text() == text
    assert out.with_suffix(".png").read_bytes() == picture
