"""The parts of Llama: against NumPy, and with everything that GPT-2's parts work with."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from marks import slow
from tiny import CONFIG, LLAMA, SITES, with_dropout

from minigpt.data.batches import make_batch
from minigpt.model.dropout_sites import DropoutSite, draw_masks, site_specs
from minigpt.model.gpt import GPT
from minigpt.model.rotary import rotary_cos_sin, rotate
from minigpt.training.train_step import build_train_functions

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (3, 32)))
ALL = with_dropout(LLAMA, **dict.fromkeys(SITES, 0.25))


def gpt(config=LLAMA, vocab=11):
    """A model with larger weights than the initial ones, so that every part is seen."""
    model = GPT(config, vocab, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf * 8 if leaf.ndim > 1 else leaf, params))


def numpy_model(model, tokens):
    """Logits in float64, one row, one query and one head at a time."""

    def norm(x, scale):
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5) * scale

    def turn(vector, position):
        half = len(vector) // 2
        angles = position * 100.0 ** (-np.arange(half) / half)
        turned = (vector[:half] + 1j * vector[half:]) * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag])

    def array(parameter):
        return np.asarray(parameter[...], np.float64)

    logits = []
    for row in np.asarray(tokens):
        x = array(model.tokens.embedding)[row]
        for block in model.blocks:
            q, k, v = np.split(
                norm(x, array(block.attn_norm.scale)) @ array(block.attn.qkv.kernel), [16, 24], -1
            )
            context = np.zeros_like(q)
            for t in range(len(row)):
                for h in range(4):
                    head, group = slice(4 * h, 4 * h + 4), slice(4 * (h // 2), 4 * (h // 2) + 4)
                    query = turn(q[t, head], t)
                    scores = [query @ turn(k[s, group], s) / 2 for s in range(t + 1)]
                    weights = np.exp(scores) / np.exp(scores).sum()
                    context[t, head] = weights @ v[: t + 1, group]
            x = x + context @ array(block.attn.out.kernel)
            y = norm(x, array(block.mlp_norm.scale))
            gate = y @ array(block.mlp.gate.kernel)
            hidden = gate / (1 + np.exp(-gate)) * (y @ array(block.mlp.wide.kernel))
            x = x + hidden @ array(block.mlp.out.kernel)
        logits.append(norm(x, array(model.norm.scale)) @ array(model.head.kernel))
    return np.array(logits)


def test_a_model_equals_loops_over_heads_and_positions():
    model = gpt()
    np.testing.assert_allclose(model(TOKENS, key=None), numpy_model(model, TOKENS), 0, 2e-5)


def test_rotated_products_depend_on_the_distance_only():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 1, 1, 8)), jnp.float32)

    def product(positions):
        cos, sin = rotary_cos_sin(jnp.asarray(positions)[:, None], 8, 10.0, jnp.float32)
        query, key = rotate(x, cos, sin)[:, 0, 0]
        return float(query @ key)

    assert product([7, 3]) == pytest.approx(product([104, 100]), rel=1e-4)
    assert abs(product([7, 3]) - product([7, 4])) > 1e-2
    assert product([5, 5]) == pytest.approx(float(x[0, 0, 0] @ x[1, 0, 0]), rel=1e-5)


@pytest.mark.slow
def test_every_site_has_its_shape_and_its_mask(key):
    """Masks that are given, and drawn from the key, with one mask of attention for each head."""
    model, captures = gpt(ALL), {}
    model(TOKENS, key=key, captures=captures)
    listed = site_specs(ALL, *TOKENS.shape)
    assert [(name, arrays["mask"].shape) for name, arrays in captures.items()] == [
        (name, spec.shape) for name, spec in listed.items()
    ]
    assert listed["block/0/attn_weights"].shape == (3, 4, 32, 32)
    assert listed["block/0/mlp_hidden"].shape == (3, 32, 24)
    masks = draw_masks(ALL, key, *TOKENS.shape)
    expected = model(TOKENS, key=key)
    np.testing.assert_allclose(model(TOKENS, key=None, masks=masks), expected, 0, 2e-4)
    for name in masks:
        flipped = model(TOKENS, key=None, masks=masks | {name: ~masks[name]})
        assert (abs(flipped - expected) > 1e-3).any(), name


@pytest.mark.parametrize("site", SITES)
def test_each_rate_changes_training_and_not_evaluation(site, key):
    plain, dropped = gpt(), gpt(with_dropout(LLAMA, **{site: 0.4}))
    assert (dropped(TOKENS, key=key) != plain(TOKENS, key=key)).any()
    np.testing.assert_array_equal(dropped(TOKENS, key=None), plain(TOKENS, key=None))


@pytest.mark.slow
def test_no_parameter_is_without_effect():
    """Every array of the model has a gradient; and there is no table of positions, nor a bias."""
    graph, params = nnx.split(gpt())
    gradient = jax.grad(lambda params: (nnx.merge(graph, params)(TOKENS, key=None) ** 2).sum())
    names = set()
    for path, leaf in jax.tree.leaves_with_path(gradient(params)):
        names |= {key.key for key in path if hasattr(key, "key")}
        assert (leaf != 0).any(), path
    assert not names & {"positions", "bias"}
    assert {"head", "gate"} <= names


def test_a_branch_of_each_norm_order():
    """Post-norm with RMS norms: the mean square of every output is 1."""
    block = gpt(dataclasses.replace(LLAMA, norm="post")).blocks[0]
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 6, 16)), jnp.float32)
    np.testing.assert_allclose(np.square(block(x, DropoutSite(None))).mean(-1), 1, rtol=1e-3)


BATCH = make_batch(np.random.default_rng(0).integers(0, 11, 500).astype(np.uint16), 0, 0, 8, 32)


@functools.cache
def run(mesh="data=1", accumulate=1, **changes):
    """Losses of three steps, of which the last two are those of trained parameters."""
    model = dataclasses.replace(ALL, **changes)
    config = dataclasses.replace(
        CONFIG, batch_size=8, mesh=mesh, model=model, accumulate=accumulate
    )
    training = build_train_functions(config, 11)
    rows, state, losses = training.put_batch(BATCH), training.state, []
    for _ in range(3):
        state, measured = training.train_step(state, rows, jax.random.key(3))
        losses.append(float(measured["train_loss"]))
    return losses


@pytest.mark.parametrize(
    "changes",
    [
        {"mesh": "data=2,fsdp=2,tensor=2", "scan_layers": True, "remat": True},
        slow({"scan_layers": True}),
        slow({"remat": True}),
        slow({"accumulate": 4}),
        slow({"accumulate": 2, "mesh": "data=2,fsdp=2", "scan_layers": True}),
        slow({"mesh": "fsdp=4,tensor=2"}),
        slow({"mesh": "tensor=4"}),  # more devices than heads of keys
    ],
    ids=str,
)
@pytest.mark.slow
def test_how_a_step_is_computed_changes_no_mask_and_no_loss(changes):
    np.testing.assert_allclose(run(**changes), run(), rtol=2e-5)


@pytest.mark.slow
def test_another_mask_would_be_noticed():
    without = run(dropout=CONFIG.model.dropout)
    assert abs(without[0] / run()[0] - 1) > 1e-4


@pytest.mark.slow
def test_bfloat16(key):
    half = gpt(dataclasses.replace(ALL, dtype="bfloat16"))
    logits = half(TOKENS, key=key)
    assert logits.dtype == jnp.float32
    expected = np.asarray(gpt(ALL)(TOKENS, key=key))
    assert abs(logits - expected).max() < 0.1 * abs(expected).max()
    assert np.corrcoef(np.ravel(logits), np.ravel(expected))[0, 1] > 0.995
