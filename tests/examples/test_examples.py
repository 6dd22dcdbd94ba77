"""Each example in its smallest form, and a property that it must have."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    monkeypatch.setattr(
        sys, "path", [str(ROOT / "examples"), str(ROOT / "examples" / "lockstep"), *sys.path]
    )


@pytest.fixture
def gallery():
    import gallery

    return gallery


@pytest.mark.slow
def test_the_gallery_is_drawn(gallery, tmp_path, capsys):
    gallery.main(["--out", str(tmp_path / "gallery.png")])
    assert (tmp_path / "gallery.png").read_bytes().startswith(b"\x89PNG")
    assert "wrote" in capsys.readouterr().out


@pytest.mark.slow
def test_elements_of_one_colour_are_kept_or_dropped_together(gallery):
    titles = []
    for title, _, kept, decision in gallery.make_panels(jax.random.key(4)):
        titles.append(title)
        assert kept.shape == decision.shape == gallery.SHAPE
        for name in np.unique(decision[decision >= 0]):
            assert len(set(kept[decision == name])) == 1, title
    assert len(set(titles)) == len(titles) == 15


@pytest.mark.slow
def test_dropout_on_weights_and_on_context_are_unbiased_and_padding_does_not_matter(tmp_path):
    """The largest of 8,000 biases in standard errors: over 6.5 once in a million runs."""
    import attention_dropout

    out = tmp_path / "attention.png"
    attention_dropout.main(["--out", str(out)])
    biases = json.loads(out.with_suffix(".json").read_text())
    assert biases.pop("largest change by padding") == 0
    assert len(biases) == 2
    assert all(2 < bias < 6.5 for bias in biases.values())


def test_the_cuda_check_names_what_is_missing():
    import check_torch_cuda

    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: run examples/check_torch_cuda.py itself")
    with pytest.raises(SystemExit, match="sees no GPU"):
        check_torch_cuda.main([])


@pytest.mark.slow
def test_a_port_and_minigpt_train_in_lockstep_until_a_bit_is_flipped(tmp_path):
    import lockstep

    out = tmp_path / "lockstep.png"
    with jax.numpy_dtype_promotion("standard"):  # optax
        lockstep.main(["--out", str(out), "--steps", "6", "--layers", "1"])
    result = json.loads(out.with_suffix(".json").read_text())
    for name in ("our masks in PyTorch", "PyTorch's masks in minigpt"):
        assert result[f"{name}, float32"]["largest"] < 1e-5
        assert result[f"{name}, float64"]["largest"] < 1e-9
    flipped = result["our masks, one bit flipped, float64"]
    assert flipped["largest"] > 1e-8
    assert flipped["parts at step"] == result["flipped at step"] == 3


@pytest.mark.slow
def test_the_wrong_line_of_a_port_is_named():
    import find_divergence

    differences = find_divergence.find_differences()
    assert differences["the right port"] is None
    wrong = differences["dropout after the residual"]
    assert wrong is not None
    assert (wrong.step, wrong.site, wrong.part) == (0, "block/0/mlp_out", "input")
    file, line = wrong.where.split(":")
    assert "# the wrong line" in (ROOT / "examples" / file).read_text().splitlines()[int(line) - 1]
    flipped = differences["one bit of one mask flipped"]
    assert flipped is not None
    assert (flipped.site, flipped.part) == ("block/2/attn_out", "mask")
    assert flipped.element == (1, 7, 30)


@pytest.mark.slow
def test_transformers_and_minigpt_train_in_lockstep(tmp_path):
    import transformers_gpt2

    out = tmp_path / "transformers.json"
    with jax.numpy_dtype_promotion("standard"):  # optax
        transformers_gpt2.main(["--out", str(out), "--steps", "6", "--layers", "2"])
    result = json.loads(out.read_text())
    for name in ("our masks in transformers", "transformers' masks in minigpt"):
        for dtype, bound in (("float32", 1e-5), ("float64", 1e-13)):
            assert result[f"{name}, {dtype}"]["largest relative difference"] < bound


def test_the_committed_run_with_transformers_holds_what_the_page_says():
    result = json.loads((ROOT / "docs" / "transformers.json").read_text())
    page = (ROOT / "docs" / "huggingface.md").read_text()
    assert result["steps"] == 100
    for name in ("our masks in transformers", "transformers' masks in minigpt"):
        for dtype, bound in (("float32", 1e-4), ("float64", 1e-9)):
            largest = result[f"{name}, {dtype}"]["largest relative difference"]
            assert largest < bound
            assert f"{largest:.1e}" in page


@pytest.mark.slow
def test_the_table_of_what_transformers_drops_is_what_it_drops(capsys):
    import transformers_sites

    transformers_sites.main()
    assert capsys.readouterr().out in (ROOT / "docs" / "huggingface.md").read_text()
