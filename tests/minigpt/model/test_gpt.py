"""The GPT: its architecture, and dropout at every site and nowhere else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from tiny import MODEL, SITES, with_dropout

from dropout_jax import fold, keep_mask
from minigpt.config import PRESETS, DropoutConfig
from minigpt.model.dropout_sites import DropoutSite, draw_masks, site_specs
from minigpt.model.gpt import GPT

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (3, 32)))
ALL = with_dropout(**dict.fromkeys(SITES, 0.25))


def gpt(config=MODEL, vocab=11):
    return GPT(config, vocab, rngs=nnx.Rngs(0))


def drawn(model, key):
    """Run the model once; return each site's mask by name, in order."""
    captures = {}
    model(TOKENS, key=key, captures=captures)
    return {name: np.asarray(arrays["mask"]) for name, arrays in captures.items()}


def test_gpt2_has_its_published_size():
    model = nnx.eval_shape(lambda: gpt(PRESETS["gpt2"].model, 50257))
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == 124_439_808


def test_modules_hold_parameters_and_no_random_state():
    assert not jax.tree.leaves(nnx.state(gpt(ALL), nnx.RngState))
    _, params, rest = nnx.split(gpt(ALL), nnx.Param, ...)
    assert jax.tree.leaves(params)
    assert not jax.tree.leaves(rest)


@pytest.mark.slow
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
        gpt()(TOKENS)  # pyright: ignore[reportCallIssue]  (the missing key is the point)


def test_attention_is_causal():
    model = gpt()
    later = TOKENS.at[:, 20:].set(0)
    one, other = model(TOKENS, key=None), model(later, key=None)
    np.testing.assert_allclose(one[:, :20], other[:, :20], atol=1e-6)
    assert (one[:, 20:] != other[:, 20:]).any()


def test_a_text_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match="block_size=32"):
        gpt()(jnp.zeros((1, 33), int), key=None)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "uint32", "int64"])
def test_tokens_of_every_dtype_are_the_same(dtype):
    model, tokens = gpt(vocab=300), np.array([[1, 5, 100]])
    expected = model(tokens.astype(np.int32), key=None)
    np.testing.assert_array_equal(model(tokens.astype(dtype), key=None), expected)
    np.testing.assert_array_equal(model(jnp.asarray(tokens.astype(dtype)), key=None), expected)


@pytest.mark.parametrize("token", [-1, 11, 2**32 + 1])
def test_a_known_token_outside_the_vocabulary_is_refused(token):
    with pytest.raises(ValueError, match=r"tokens=.* from 0 to 10\. Encode the text"):
        gpt()(np.array([[token]]), key=None)


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
    got = attn(jnp.asarray(x), DropoutSite(None))
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


def test_a_post_norm_block_normalises_each_sum_and_the_model_has_no_last_norm():
    """GPT-1's order, written out; and that of GPT-2 for contrast."""
    post, pre = gpt(dataclasses.replace(MODEL, norm="post")), gpt()
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 6, 8)), jnp.float32)
    block, site = post.blocks[0], DropoutSite(None)
    first = block.attn_norm(x + block.attn(x, site))
    expected = block.mlp_norm(first + block.mlp(first, site))
    np.testing.assert_allclose(block(x, site), expected, rtol=1e-6)
    np.testing.assert_allclose(np.square(block(x, site)).mean(-1), 1, rtol=1e-3)
    assert post.norm is None
    assert (pre.blocks[0](x, site) != block(x, site)).any()


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_features_are_what_the_head_reads(norm, key):
    model = gpt(dataclasses.replace(ALL, norm=norm))
    features = model.features(TOKENS, key=key)
    assert features.shape == (3, 32, 8)
    logits = features @ model.tokens.embedding[...].T
    np.testing.assert_allclose(model(TOKENS, key=key), logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("site", SITES)
def test_each_rate_changes_training_and_not_evaluation(site, key):
    plain, dropped = gpt(), gpt(with_dropout(**{site: 0.4}))
    assert (dropped(TOKENS, key=key) != plain(TOKENS, key=key)).any()
    np.testing.assert_array_equal(dropped(TOKENS, key=None), plain(TOKENS, key=None))


def test_uniform_sets_the_four_sites_of_nanogpt():
    assert DropoutConfig.uniform(0.2).rates == {
        "embed": 0.2,
        "attn_weights": 0.2,
        "attn_context": 0.0,
        "attn_out": 0.2,
        "mlp_hidden": 0.0,
        "mlp_out": 0.2,
        "drop_path": 0.0,
        "lora": 0.0,
    }


def test_every_site_has_its_shape_and_is_drawn_once(key):
    shapes = {name: mask.shape for name, mask in drawn(gpt(ALL), key).items()}
    listed = site_specs(ALL, *TOKENS.shape)
    assert list(shapes.items()) == [(name, spec.shape) for name, spec in listed.items()]
    block = [(3, 2, 32, 32), (3, 32, 8), (3, 32, 8), (3, 1, 1), (3, 32, 32), (3, 32, 8), (3, 1, 1)]
    assert list(shapes.values()) == [(3, 32, 8), *block, *block]


def test_every_site_has_its_own_rate(key):
    """What `site_specs` lists, and what the model drops there, within 4.9 sd."""
    rates = {site: 0.1 * (i + 1) for i, site in enumerate(SITES)}
    config = with_dropout(**rates)
    masks = drawn(gpt(config), key)
    for name, spec in site_specs(config, *TOKENS.shape).items():
        site = next(part for part in name.split("/") if part in rates)
        assert spec.rate == rates[site], name
        share, size = 1 - masks[name].mean(), masks[name].size
        assert abs(share - spec.rate) < 4.9 * (spec.rate * (1 - spec.rate) / size) ** 0.5, name


def test_masks_differ_by_step_layer_site_head_and_row(key):
    config = with_dropout(ALL, **dict.fromkeys(SITES, 0.5))
    first = drawn(gpt(config), fold(key, "dropout", 0))
    second = drawn(gpt(config), fold(key, "dropout", 1))
    large = [mask for mask in [*first.values(), *second.values()] if mask.size > 3]
    for i, mask in enumerate(large):  # two independent masks of 768 bits never agree
        assert all((mask != other).any() for other in large[:i] if mask.shape == other.shape)
    weights = first["block/0/attn_weights"]
    assert (weights[:, 0] != weights[:, 1]).any()
    assert (weights[0] != weights[1]).any()
    rows = first["embed"].reshape(3, -1)
    assert (rows[0] != rows[1]).any()


def test_each_sites_key_is_its_name_folded_in(key):
    masks = drawn(gpt(ALL), key)
    expected = {
        "embed": keep_mask(fold(key, "embed"), 0.25, (3, 32, 8)),
        "block/1/mlp_hidden": keep_mask(fold(key, "block", 1, "mlp_hidden"), 0.25, (3, 32, 32)),
        "block/1/drop_path/mlp": keep_mask(
            fold(key, "block", 1, "drop_path", "mlp"), 0.25, (3, 1, 1)
        ),
    }
    for name, mask in expected.items():
        np.testing.assert_array_equal(masks[name], mask)


def test_captures_are_the_arrays_of_the_model(key):
    """Captures materialize the attention weights; the result is the same up to rounding."""
    model, captures = gpt(ALL), {}
    captured = model(TOKENS, key=key, captures=captures)
    np.testing.assert_allclose(captured, model(TOKENS, key=key), rtol=1e-5, atol=1e-6)
    site = captures["block/0/attn_out"]
    np.testing.assert_array_equal(site["output"] != 0, site["mask"] & (site["input"] != 0))
    evaluated = {}
    model(TOKENS, key=None, captures=evaluated)
    assert evaluated == {}


def test_given_masks_are_those_that_are_dropped(key):
    model = gpt(ALL)
    masks = draw_masks(ALL, key, *TOKENS.shape)
    expected = model(TOKENS, key=key)
    np.testing.assert_allclose(model(TOKENS, key=None, masks=masks), expected, rtol=1e-5, atol=1e-6)
    jitted = jax.jit(lambda masks: model(TOKENS, key=None, masks=masks))
    np.testing.assert_allclose(jitted(masks), expected, rtol=1e-5, atol=1e-6)
    for name in masks:
        flipped = jitted(masks | {name: ~masks[name]})
        assert (abs(flipped - expected) > 1e-4).any(), name


def test_a_given_scale_is_used(key):
    model = gpt(with_dropout(embed=0.3))
    keep = draw_masks(model.config, key, *TOKENS.shape)["embed"]
    double = model(TOKENS, key=None, masks={"embed": (keep, 2.0)})
    exact = model(TOKENS, key=None, masks={"embed": (keep, 1 / 0.7)})
    np.testing.assert_allclose(exact, model(TOKENS, key=key), rtol=1e-5, atol=1e-6)
    assert (abs(double - exact) > 1e-4).any()


def test_a_missing_mask_is_an_error_that_names_the_site(key):
    masks = draw_masks(ALL, key, *TOKENS.shape)
    del masks["block/1/mlp_out"]
    with pytest.raises(ValueError, match=r"there must be one for 'block/1/mlp_out', of shape"):
        gpt(ALL)(TOKENS, key=None, masks=masks)


@pytest.mark.slow
def test_masks_are_the_same_under_remat_and_under_scan_over_layers(key):
    model = gpt(ALL)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 32, 8)), jnp.float32)
    graph, _ = nnx.split(model.blocks[0])
    layers = [nnx.split(block)[1] for block in model.blocks]

    def apply(params, x, i):
        return nnx.merge(graph, params)(x, DropoutSite(key).at("block", i))

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
