"""examples/recurrent.py: which masks an LSTM gets at each step, and verdicts that can fail."""

import importlib.util
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dropout_jax import fold
from dropout_jax.nn import Dropout, LockedDropout, Zoneout

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
CHARACTERS, UNITS, BATCH, TIME = 11, 64, 4, 9


@pytest.fixture
def promotion():
    """Of optax, which relies on implicit promotion."""
    return "standard"


@pytest.fixture
def recurrent(monkeypatch):
    """By its path: a claim has the same name."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples" / "claims"), *sys.path])
    path = ROOT / "examples" / "recurrent.py"
    spec = importlib.util.spec_from_file_location("recurrent_lm", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ids(key):
    return jax.random.randint(fold(key, "ids"), (BATCH, TIME), 0, CHARACTERS)


def make_model(recurrent, kind, rate=0.5):
    return recurrent.LanguageModel(
        CHARACTERS, UNITS, kind, rate, rngs=nnx.Rngs(params=jax.random.key(0))
    )


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "layer"), [("naive", Dropout), ("locked", LockedDropout)])
def test_the_masks_of_a_site(kind, layer, recurrent, ids, key, monkeypatch):
    """Locked: one mask for all steps, another for each row and site; naive: one for each step."""
    calls = []
    apply = layer._apply

    def record(self, inputs, key):
        out = apply(self, inputs, key)
        calls.append((np.asarray(inputs) != 0, np.asarray(out) != 0))
        return out

    monkeypatch.setattr(layer, "_apply", record)
    make_model(recurrent, kind)(ids, key=key)
    assert [out.shape[-1] for _, out in calls] == [recurrent.EMBEDDING, UNITS, UNITS]
    for was, out in calls:
        assert was.all()
        assert 0.3 < out.mean() < 0.7
        assert (out[0] != out[1]).any()
        assert (out == out[:, :1]).all() == (kind == "locked")
    assert (calls[1][1] != calls[2][1]).any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["naive", "zoneout", "embedding", "locked, embedding"])
def test_without_a_key_nothing_drops_and_a_key_decides_all(kind, recurrent, ids, key):
    """Zoneout evaluates to its expectation, so it differs from none there; the others do not."""
    run = jax.jit(lambda key: make_model(recurrent, kind)(ids, key=key))
    first, again, other = run(key), run(key), run(fold(key, "other"))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    none = make_model(recurrent, "none")
    evaluated = make_model(recurrent, kind)(ids, key=None)
    same = np.allclose(evaluated, none(ids, key=None), atol=1e-6)
    assert same == (kind != "zoneout")


def test_a_dropped_character_is_out_in_every_row(recurrent, key):
    """Equal characters have equal inputs; about half of the table is zeros."""
    model = make_model(recurrent, "embedding")
    table = model.drop_characters(model.embed.embedding[...], deterministic=False, rngs=key)
    dropped = (np.asarray(table) == 0).all(1)
    assert 0 < dropped.sum() < CHARACTERS
    kept = np.asarray(model.embed.embedding[...])[~dropped]
    np.testing.assert_allclose(np.asarray(table)[~dropped], 2 * kept, rtol=1e-6)


@pytest.mark.slow
def test_zoneout_draws_for_each_step_and_state(recurrent, ids, key, monkeypatch):
    """A scan of three steps: two keys a step, all different."""
    keys, call = [], Zoneout.__call__

    def record(self, new, old, *, deterministic, rngs):
        jax.debug.callback(lambda each: keys.append(each.tolist()), jax.random.key_data(rngs))
        return call(self, new, old, deterministic=deterministic, rngs=rngs)

    monkeypatch.setattr(Zoneout, "__call__", record)
    jax.block_until_ready(make_model(recurrent, "zoneout")(ids[:1, :3], key=key))
    jax.effects_barrier()
    assert len(keys) == len(set(map(tuple, keys))) == 6


def test_zoneout_at_rate_one_keeps_the_state_of_zeros(recurrent, ids, key):
    model = make_model(recurrent, "zoneout", 1.0)
    logits = model(ids, key=key)
    np.testing.assert_array_equal(logits, jnp.zeros_like(logits) + model.readout.bias[...])


def test_a_run_stops_at_its_best_evaluation_and_a_kind_at_its_best_rate(recurrent):
    choosing = np.array([[[3.0, 2.0, 4.0], [3.0, 4.0, 2.0]], [[1.0, 2.0, 3.0], [3.0, 2.0, 1.5]]])
    best, bits = recurrent.stop_early(np.stack([choosing, choosing + 10], -1))
    assert best == 1
    np.testing.assert_array_equal(bits, [11, 11.5])


def test_verdicts(recurrent):
    noise = np.random.default_rng(0).normal(0, 0.001, (6, 4))
    levels = dict(zip(recurrent.KINDS, (3.0, 2.9, 2.8, 2.95, 3.1, 2.7), strict=True))
    bits = {kind: level + of for (kind, level), of in zip(levels.items(), noise, strict=True)}
    verdicts = [finding.verdict for finding in recurrent.findings(bits)]
    assert verdicts[0].startswith("holds only when the kind is naive, locked, zoneout or locked")
    assert verdicts[0].endswith("(not embedding)")
    assert verdicts[1:] == ["holds", "does not hold", "holds"]


@pytest.mark.claims
def test_the_smallest_form(recurrent, tmp_path):
    arguments = ["--smallest", "--out", str(tmp_path)]
    path = recurrent.claim.main(recurrent.experiment, recurrent.__doc__, "recurrent_lm", arguments)
    assert path.name == "recurrent_lm.json"
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    result = json.loads(path.read_text())
    assert len(result["findings"]) == 4
    bits = result["numbers"]["bits per character, stopped early"]
    assert list(bits) == list(recurrent.KINDS)
    assert all(4 < cell["mean"] < 7 for cell in bits.values())  # log2 of 71 characters is 6.1
