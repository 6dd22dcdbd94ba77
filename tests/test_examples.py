"""Each example in its smallest form, and a property of it that could fail."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples"), *sys.path])


@pytest.fixture
def gallery():
    import gallery

    return gallery


def test_the_gallery_is_drawn(gallery, tmp_path, capsys):
    gallery.main(["--out", str(tmp_path / "gallery.png")])
    assert (tmp_path / "gallery.png").read_bytes().startswith(b"\x89PNG")
    assert "wrote" in capsys.readouterr().out


def test_places_of_one_colour_live_and_die_together(gallery):
    titles = []
    for title, _, kept, decision in gallery.panels(jax.random.key(4)):
        titles.append(title)
        assert kept.shape == decision.shape == gallery.SHAPE
        for name in np.unique(decision[decision >= 0]):
            assert len(set(kept[decision == name])) == 1, title
    assert len(set(titles)) == len(titles) == 15


def test_dropout_on_weights_and_on_context_are_unbiased_and_padding_does_not_matter(tmp_path):
    """The largest of 8,000 biases in standard errors: over 6.5 once in a million runs."""
    import attention_dropout

    out = tmp_path / "attention.png"
    attention_dropout.main(["--out", str(out)])
    found = json.loads(out.with_suffix(".json").read_text())
    assert found.pop("largest change by padding") == 0
    assert len(found) == 2
    assert all(2 < bias < 6.5 for bias in found.values())


def test_the_check_of_cuda_says_what_is_missing():
    import check_torch_cuda

    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: run examples/check_torch_cuda.py itself")
    with pytest.raises(SystemExit, match="sees no GPU"):
        check_torch_cuda.main([])
