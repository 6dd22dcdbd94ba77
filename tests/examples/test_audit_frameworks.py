"""The page of what the frameworks' modules do: what its rows say of those whose answer is known."""

import pathlib
import sys

import jax
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "frameworks"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_rows_say_what_is_known(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    import audit_frameworks as page

    modules = {(module.framework, module.name): module for module in page.MODULES}

    def row(*name):
        with jax.numpy_dtype_promotion("standard"):
            return next(page.make_rows(modules[name]))

    attention = row("flax.nnx", "MultiHeadAttention")
    assert (attention["shared along"], attention["finding"]) == ([0, 1], "D06 (error)")
    dropout = row("flax.linen", "Dropout")
    assert dropout["keeps"] == dropout["bf16 keeps"] == "0.9"
    assert dropout["scale"] == pytest.approx(1 / 0.9)
    assert dropout["bf16 scale"] == pytest.approx(1 / 0.8984375)
    own = row("dropout_jax.nn", "Dropout")
    assert own["bf16 scale"] == own["scale"] == pytest.approx(1 / 0.9)
    assert page.HEADERS[0] in page.render_page([attention, dropout, own])
