"""The GPT: its architecture, and dropout at every site and nowhere else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from tiny import MODEL, SITES, with_dropout

import minigpt.model
from dropout_jax import dot_product_attention, drop_path, dropout, fold, keep_mask
from minigpt.config import PRESETS, DropoutConfig
from minigpt.model import GPT

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (3, 32)))
ALL = with_dropout(**dict.fromkeys(SITES, 0.3))


def gpt(config=MODEL, vocab=11):
    return GPT(config, vocab, rngs=nnx.Rngs(0))


def drawn(monkeypatch, model, key):
    """Run the model once; return each dropout call's mask in order."""
    masks = []

    def recorder(x, rate, *, key, broadcast_dims=()):
        masks.append(np.asarray(keep_mask(key, rate, x.shape, broadcast_dims=broadcast_dims)))
        return dropout(x, rate, key=key, broadcast_dims=broadcast_dims)

    def path_recorder(x, rate, *, key):
        masks.append(np.asarray(keep_mask(key, rate, x.shape, broadcast_dims=(1, 2))))
        return drop_path(x, rate, key=key)

    def attention_recorder(query, keys, values, *, dropout_rate, dropout_key, **options):
        batch, time, heads, _ = query.shape
        shape = (batch, heads, time, keys.shape[1])
        masks.append(np.asarray(keep_mask(dropout_key, dropout_rate, shape)))
        options |= {"dropout_rate": dropout_rate, "dropout_key": dropout_key}
        return dot_product_attention(query, keys, values, **options)

    monkeypatch.setattr(minigpt.model, "dropout", recorder)
    monkeypatch.setattr(minigpt.model, "dot_product_attention", attention_recorder)
    monkeypatch.setattr(minigpt.model, "drop_path", path_recorder)
    model(TOKENS, key=key)
    return masks


def test_gpt2_has_its_published_size():
    model = nnx.eval_shape(lambda: gpt(PRESETS["gpt2"].model, 50257))
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == 124_439_808


def test_modules_hold_parameters_and_no_random_state():
    assert not jax.tree.leaves(nnx.state(gpt(ALL), nnx.RngState))
    _, params, rest = nnx.split(gpt(ALL), nnx.Param, ...)
    assert jax.tree.leaves(params)
    assert not jax.tree.leaves(rest)


def test_initial_weights_are_gpt2s():
    config = dataclasses.replace(MODEL, n_embd=64, n_layer=8)
    model = gpt(config, 500)
    for weights, std in (
        (model.tokens.embedding, 0.02),
        (model.blocks[0].attn.qkv.kernel, 0.02),
        (model.blocks[3].attn.out.kernel, 0.02 / 4),
        (model.blocks[3].mlp.out.kernel, 0.02 / 4),
    ):
        assert np.std(weights[...]) == pytest.approx(std, rel=0.05)
    logits = model(TOKENS, key=None)
    entropy = -(nnx.log_softmax(logits) * nnx.softmax(logits)).sum(-1)
    np.testing.assert_allclose(entropy, np.log(500), rtol=0.01)  # near uniform at first


def test_key_is_required():
    with pytest.raises(TypeError, match="key"):
        gpt()(TOKENS)


def test_attention_is_causal():
    model = gpt()
    later = TOKENS.at[:, 20:].set(0)
    one, other = model(TOKENS, key=None), model(later, key=None)
    np.testing.assert_allclose(one[:, :20], other[:, :20], atol=1e-6)
    assert (one[:, 20:] != other[:, 20:]).any()


def test_a_text_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match="block_size=32"):
        gpt()(jnp.zeros((1, 33), int), key=None)


def test_positions_matter_and_a_shorter_text_works():
    model = gpt()
    same = jnp.zeros((1, 5), int)
    logits = model(same, key=None)
    assert logits.shape == (1, 5, 11)
    assert (logits[0, 0] != logits[0, 1]).any()


def test_attention_equals_a_loop_over_heads_and_positions():
    """Against NumPy in float64, one query at a time."""
    model = gpt()
    x = np.random.default_rng(1).standard_normal((2, 6, 8)).astype(np.float32)
    attn = model.blocks[0].attn
    got = attn(jnp.asarray(x), key=None)
    kernel = np.asarray(attn.qkv.kernel[...], np.float64)
    out = np.asarray(attn.out.kernel[...], np.float64)
    expected = np.zeros(x.shape)
    for row in range(2):
        query, keys, values = np.split(x[row] @ kernel, 3, axis=-1)
        for t in range(6):
            heads = []
            for h in (slice(0, 4), slice(4, 8)):
                scores = np.exp([query[t, h] @ keys[s, h] / 2 for s in range(t + 1)])
                heads.append(scores / scores.sum() @ values[: t + 1, h])
            expected[row, t] = np.concatenate(heads) @ out
    np.testing.assert_allclose(got, expected, atol=1e-7)


@pytest.mark.parametrize("site", SITES)
def test_each_rate_changes_training_and_not_evaluation(site, key):
    plain, dropped = gpt(), gpt(with_dropout(**{site: 0.4}))
    assert (dropped(TOKENS, key=key) != plain(TOKENS, key=key)).any()
    np.testing.assert_array_equal(dropped(TOKENS, key=None), plain(TOKENS, key=None))


def test_uniform_sets_the_four_sites_of_nanogpt():
    assert dataclasses.asdict(DropoutConfig.uniform(0.2)) == {
        "embed": 0.2,
        "attn_weights": 0.2,
        "attn_out": 0.2,
        "mlp_hidden": 0.0,
        "mlp_out": 0.2,
        "drop_path": 0.0,
    }


def test_every_site_has_its_shape_and_is_drawn_once(monkeypatch, key):
    shapes = [mask.shape for mask in drawn(monkeypatch, gpt(ALL), key)]
    block = [(3, 2, 32, 32), (3, 32, 8), (3, 1, 1), (3, 32, 32), (3, 32, 8), (3, 1, 1)]
    assert shapes == [(3, 32, 8), *block, *block]


def test_masks_differ_by_step_layer_site_head_and_row(monkeypatch, key):
    config = with_dropout(ALL, **dict.fromkeys(SITES, 0.5))
    first = drawn(monkeypatch, gpt(config), fold(key, "dropout", 0))
    second = drawn(monkeypatch, gpt(config), fold(key, "dropout", 1))
    large = [mask for mask in first + second if mask.size > 3]
    for i, mask in enumerate(large):  # two independent masks of 768 bits never agree
        assert all((mask != other).any() for other in large[:i] if mask.shape == other.shape)
    weights = first[1]
    assert (weights[:, 0] != weights[:, 1]).any()
    assert (weights[0] != weights[1]).any()
    rows = first[0].reshape(3, -1)
    assert (rows[0] != rows[1]).any()


def test_each_sites_key_is_its_name_folded_in(monkeypatch, key):
    masks = drawn(monkeypatch, gpt(ALL), key)
    np.testing.assert_array_equal(masks[0], keep_mask(fold(key, "embed"), 0.3, (3, 32, 8)))
    place = fold(key, "block", 1, "mlp_hidden")
    np.testing.assert_array_equal(masks[10], keep_mask(place, 0.3, (3, 32, 32)))
    path = fold(key, "block", 1, "drop_path", "mlp")
    np.testing.assert_array_equal(masks[12], keep_mask(path, 0.3, (3, 1, 1)))


def test_masks_are_the_same_under_remat_and_under_scan_over_layers(key):
    model = gpt(ALL)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 32, 8)), jnp.float32)
    graph, _ = nnx.split(model.blocks[0])
    layers = [nnx.split(block)[1] for block in model.blocks]

    def apply(params, x, i):
        return nnx.merge(graph, params)(x, key=fold(key, "block", i))

    def plain(x):
        for i, params in enumerate(layers):
            x = apply(params, x, i)
        return x

    def remat(x):
        for i, params in enumerate(layers):
            x = jax.checkpoint(apply)(params, x, i)
        return x

    def scanned(x):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        steps = (stacked, jnp.arange(len(layers)))
        return lax.scan(lambda x, step: (apply(step[0], x, step[1]), None), x, steps)[0]

    expected = jax.jit(plain)(x)
    gradient = jax.jit(jax.grad(lambda x: (plain(x) ** 2).sum()))(x)
    for other in (remat, scanned):
        np.testing.assert_allclose(jax.jit(other)(x), expected, rtol=1e-5, atol=1e-5)
        again = jax.jit(jax.grad(lambda x: (other(x) ** 2).sum()))(x)  # noqa: B023
        np.testing.assert_allclose(again, gradient, rtol=1e-4, atol=1e-4)
    assert abs(expected - jax.jit(plain)(x + 1)).max() > 1  # the bounds above are tight
