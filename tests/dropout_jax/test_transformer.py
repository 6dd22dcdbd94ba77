"""The layers of a transformer: equal to PyTorch's and Flax's with the same weights and masks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_transformer
from flax import nnx
from marks import slow

from dropout_jax import fold, keep_mask, linear_over_depth
from dropout_jax.nn import Decoder, Dropout, Encoder, MultiHeadAttention, TransformerBlock

BATCH, TIME, CONTEXT, FEATURES, HEADS, HIDDEN = 3, 10, 7, 16, 4, 24
RATE = 0.375  # exact in float32: the scale is that of the rate in float32
SELF = ("attn_weights", "attn_out", "mlp_hidden", "mlp_out")
WITH_CONTEXT = ("attn_weights", "attn_out", "cross_weights", "cross_out", "mlp_hidden", "mlp_out")
SHAPES = {
    "attn_weights": (BATCH, HEADS, TIME, TIME),
    "cross_weights": (BATCH, HEADS, TIME, CONTEXT),
    "mlp_hidden": (BATCH, TIME, HIDDEN),
}
IS_TOKEN = np.arange(TIME) < np.array([[TIME], [6], [1]])
IS_CONTEXT = np.arange(CONTEXT) < np.array([[3], [CONTEXT], [1]])
DTYPES = [slow("float32"), "float64"]


@pytest.fixture
def promotion():
    """Flax's layer norm promotes float64 and float32."""
    return "standard"


@pytest.fixture
def dtype(request):
    """The dtype of a case, with 64 bits enabled if it has them."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def normal(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def masks_of(key, sites):
    dense = (BATCH, TIME, FEATURES)
    return [keep_mask(fold(key, site), RATE, SHAPES.get(site, dense)) for site in sites]


def assert_close(actual, expected, dtype):
    scale = np.abs(expected).max()
    error = np.abs(np.asarray(actual) - expected).max()
    assert error <= (1e-12 if dtype == "float64" else 1e-5) * max(scale, 1)


def causal_mask():
    """True is invisible."""
    return torch.ones(TIME, TIME).triu(1).bool()


def flat_gradients(state):
    return {".".join(map(str, path)): np.asarray(leaf) for path, leaf in nnx.to_flat_state(state)}


def assert_equal_to_torch(ours, theirs, call, expected, arrays, inputs, dtype):
    """The output, and the gradient of each input and parameter."""
    weights = normal(expected.shape, dtype, 9)
    (expected * torch.from_numpy(weights)).sum().backward()
    graph, params, rest = nnx.split(ours, nnx.Param, ...)

    def loss(params, inputs):
        out = call(nnx.merge(graph, params, rest), *inputs)
        return (out * weights).sum(), out

    jax_inputs = [jnp.asarray(x.detach().numpy()) for x in inputs]
    gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, jax_inputs)
    assert_close(out, expected.detach().numpy(), dtype)
    for actual, x in zip(gradients[1], inputs, strict=True):
        assert_close(actual, x.grad.numpy(), dtype)
    actual = flat_gradients(gradients[0])
    expected = arrays(theirs, torch_transformer.gradients(theirs))
    assert set(actual) == set(expected)
    for name, value in expected.items():
        assert_close(actual[name], value, dtype)


@pytest.mark.slow  # the decoder's layer has all its parts
@pytest.mark.parametrize("dtype", DTYPES, indirect=True)
@pytest.mark.parametrize("is_masked", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_block_is_torchs_encoder_layer(norm, activation, is_masked, dtype, key, monkeypatch):
    theirs = torch.nn.TransformerEncoderLayer(
        *(FEATURES, HEADS, HIDDEN, RATE, activation),
        batch_first=True,
        norm_first=norm == "pre",
        dtype=getattr(torch, dtype),
    )
    ours = TransformerBlock(
        *(FEATURES, HEADS),
        hidden_features=HIDDEN,
        rates=RATE,
        norm=norm,
        activation=activation,
        param_dtype=dtype,
        rngs=nnx.Rngs(0),
    )
    torch_transformer.set_parameters(
        ours, torch_transformer.layer_arrays(theirs, torch_transformer.values(theirs))
    )
    torch_transformer.give_masks(monkeypatch, masks_of(key, SELF))
    x = torch.from_numpy(normal((BATCH, TIME, FEATURES), dtype)).requires_grad_()
    masks, our_masks = {}, {}
    if is_masked:
        masks = {"src_mask": causal_mask(), "src_key_padding_mask": ~torch.tensor(IS_TOKEN)}
        our_masks = {"key_mask": jnp.asarray(IS_TOKEN), "is_causal": True}
    assert_equal_to_torch(
        *(ours, theirs, lambda layer, x: layer(x, **our_masks, rngs=key), theirs(x, **masks)),
        *(torch_transformer.layer_arrays, [x], dtype),
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, indirect=True)
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_block_with_a_context_is_torchs_decoder_layer(norm, dtype, key, monkeypatch):
    theirs = torch.nn.TransformerDecoderLayer(
        *(FEATURES, HEADS, HIDDEN, RATE),
        batch_first=True,
        norm_first=norm == "pre",
        dtype=getattr(torch, dtype),
    )
    ours = TransformerBlock(
        *(FEATURES, HEADS),
        hidden_features=HIDDEN,
        rates=RATE,
        norm=norm,
        activation="relu",
        has_cross_attention=True,
        param_dtype=dtype,
        rngs=nnx.Rngs(0),
    )
    torch_transformer.set_parameters(
        ours, torch_transformer.layer_arrays(theirs, torch_transformer.values(theirs))
    )
    torch_transformer.give_masks(monkeypatch, masks_of(key, WITH_CONTEXT))
    x = torch.from_numpy(normal((BATCH, TIME, FEATURES), dtype)).requires_grad_()
    context = torch.from_numpy(normal((BATCH, CONTEXT, FEATURES), dtype, 1)).requires_grad_()
    expected = theirs(
        *(x, context),
        tgt_mask=causal_mask(),
        tgt_key_padding_mask=~torch.tensor(IS_TOKEN),
        memory_key_padding_mask=~torch.tensor(IS_CONTEXT),
    )

    def call(layer, x, context):
        masks = {"key_mask": jnp.asarray(IS_TOKEN), "context_mask": jnp.asarray(IS_CONTEXT)}
        return layer(x, context, **masks, is_causal=True, rngs=key)

    arrays = torch_transformer.layer_arrays
    assert_equal_to_torch(ours, theirs, call, expected, arrays, [x, context], dtype)


@pytest.mark.parametrize("dtype", DTYPES, indirect=True)
@pytest.mark.parametrize("need_weights", [True, slow(False)])
def test_attention_is_torchs(need_weights, dtype, key, monkeypatch):
    theirs = torch.nn.MultiheadAttention(
        *(FEATURES, HEADS, RATE),
        kdim=6,
        vdim=6,
        batch_first=True,
        dtype=getattr(torch, dtype),
    )
    ours = MultiHeadAttention(
        *(HEADS, FEATURES),
        in_kv_features=6,
        dropout_rate=RATE,
        param_dtype=dtype,
        rngs=nnx.Rngs(0),
    )
    torch_transformer.set_parameters(
        ours, torch_transformer.attention_arrays(theirs, torch_transformer.values(theirs))
    )
    mask = keep_mask(key, RATE, SHAPES["cross_weights"])
    torch_transformer.give_masks(monkeypatch, [mask])
    query = torch.from_numpy(normal((BATCH, TIME, FEATURES), dtype)).requires_grad_()
    keys, values = (
        torch.from_numpy(normal((BATCH, CONTEXT, 6), dtype, seed)).requires_grad_()
        for seed in (1, 2)
    )
    bias = normal((TIME, CONTEXT), dtype, 3)
    padding = torch.zeros(IS_CONTEXT.shape, dtype=query.dtype)
    padding[~torch.tensor(IS_CONTEXT)] = -torch.inf
    masks = {"key_padding_mask": padding, "attn_mask": torch.from_numpy(bias)}
    expected, _ = theirs(query, keys, values, need_weights=need_weights, **masks)

    def call(layer, *inputs):
        masks = {"key_mask": jnp.asarray(IS_CONTEXT), "bias": jnp.asarray(bias)[None, None]}
        return layer(*inputs, **masks, rngs=key)

    arrays = torch_transformer.attention_arrays
    assert_equal_to_torch(ours, theirs, call, expected, arrays, [query, keys, values], dtype)


def test_attention_is_flaxs_with_its_parameters():
    theirs = nnx.MultiHeadAttention(4, 16, num_kv_heads=2, decode=False, rngs=nnx.Rngs(1))
    ours = MultiHeadAttention(4, 16, num_kv_heads=2, rngs=nnx.Rngs(0))
    nnx.update(ours, nnx.state(theirs, nnx.Param))
    x = jnp.asarray(normal((2, 9, 16), "float32"))
    mask = nnx.make_causal_mask(jnp.ones((2, 9))) > 0
    expected = theirs(x, mask=mask, deterministic=True)
    np.testing.assert_allclose(ours(x, mask=mask), expected, atol=1e-5)
    np.testing.assert_allclose(ours(x, is_causal=True), expected, atol=1e-5)


def test_a_stack_is_its_blocks_with_keys_by_their_number(key):
    x = jnp.asarray(normal((2, 5, FEATURES), "float32"))
    rates = {"drop_path": linear_over_depth(0.5, 3), "mlp_out": 0.2}
    encoder = Encoder(3, FEATURES, HEADS, rates=rates, norm="post", rngs=nnx.Rngs(0))
    expected = x
    for i, block in enumerate(encoder.blocks):
        expected = block(expected, rngs=fold(key, "block", i))
    np.testing.assert_array_equal(encoder(x, rngs=key), expected)
    assert [block.drop_path.rate for block in encoder.blocks] == [0.0, 0.25, 0.5]
    assert not nnx.state(encoder.blocks, nnx.RngState)


def test_drop_path_drops_each_branch_for_whole_rows(key):
    block = TransformerBlock(FEATURES, HEADS, rates={"drop_path": 0.5}, rngs=nnx.Rngs(0))
    x = jnp.asarray(normal((64, 3, FEATURES), "float32"))
    kept = [keep_mask(fold(key, "drop_path", name), 0.5, (64, 1, 1)) for name in ("attn", "mlp")]
    is_same = np.asarray(block(x, rngs=key) == x).all((1, 2))
    np.testing.assert_array_equal(is_same, ~(kept[0] | kept[1]).ravel())


@pytest.mark.parametrize("site", ["cross_weights", *map(slow, (*WITH_CONTEXT, "drop_path"))])
def test_each_site_drops_alone_and_evaluation_drops_nothing(site, key):
    decoder = Decoder(1, FEATURES, HEADS, rates={site: 0.5}, rngs=nnx.Rngs(0))
    x, context = (jnp.asarray(normal((2, n, FEATURES), "float32", n)) for n in (5, 7))
    plain = Decoder(1, FEATURES, HEADS, rngs=nnx.Rngs(0))(x, context)
    assert (decoder(x, context, rngs=key) != plain).any()
    decoder.eval()
    np.testing.assert_array_equal(decoder(x, context), plain)


@pytest.mark.parametrize("activation", ["swiglu", "gelu_tanh"])
def test_the_feed_forward_network(activation):
    block = TransformerBlock(4, 1, activation=activation, norm="post", rngs=nnx.Rngs(0))
    x = jnp.asarray(normal((5, 4), "float32"))
    hidden = x @ block.mlp_in.kernel[...]
    if block.mlp_gate is not None:
        gate = x @ block.mlp_gate.kernel[...]
        hidden = gate / (1 + jnp.exp(-gate)) * hidden
    else:
        hidden = hidden / 2 * (1 + jnp.tanh((2 / jnp.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
    out, _ = block._feed_forward(x, None)
    np.testing.assert_allclose(out, hidden @ block.mlp_out.kernel[...], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [(1,) * 6, (4, 2)], ids=str)
def test_a_decoder_with_caches_gives_the_same_in_pieces(pieces):
    decoder = Decoder(2, FEATURES, HEADS, num_kv_heads=2, rates=0.5, rngs=nnx.Rngs(0))
    decoder.eval()
    x, context = (jnp.asarray(normal((2, n, FEATURES), "float32", n)) for n in (6, 7))
    is_context = jnp.arange(7) < jnp.array([[7], [2]])
    expected = decoder(x, context, context_mask=is_context)
    caches, parts = decoder.init_caches(2, 8), []
    for end, length in zip(itertools.accumulate(pieces), pieces, strict=True):
        part = x[:, end - length : end]
        out, caches = decoder(part, context, context_mask=is_context, caches=caches)
        parts.append(out)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), expected, atol=1e-5)


def test_a_cache_has_the_dtype_of_the_parameters():
    with jax.enable_x64(True):
        layer = MultiHeadAttention(2, 4, param_dtype="float64", rngs=nnx.Rngs(0))
        assert layer.init_cache(1, 3).keys.dtype == "float64"


def test_a_full_cache_is_an_error_and_nan_where_its_length_is_traced():
    layer = MultiHeadAttention(2, 4, rngs=nnx.Rngs(0))
    x, cache = jnp.ones((1, 2, 4)), layer.init_cache(1, 3)
    out, cache = layer(x, cache=cache)
    assert np.isfinite(out).all()
    with pytest.raises(ValueError, match=r"cache.length=2 .* at most 3 positions"):
        layer(x, cache=cache)
    out, _ = jax.jit(lambda cache: layer(x, cache=cache))(cache)
    assert np.isnan(out).all()


def test_padding_has_no_effect():
    encoder = Encoder(2, FEATURES, HEADS, rngs=nnx.Rngs(0))
    x = normal((BATCH, TIME, FEATURES), "float32")
    changed = np.where(IS_TOKEN[..., None], x, 100.0)
    outs = [encoder(jnp.asarray(y), key_mask=jnp.asarray(IS_TOKEN)) for y in (x, changed)]
    np.testing.assert_array_equal(outs[0][IS_TOKEN], outs[1][IS_TOKEN])


@pytest.mark.slow
def test_the_stream_of_a_stack_gives_new_masks_at_each_call():
    encoder = Encoder(1, FEATURES, HEADS, rates=0.5, rngs=nnx.Rngs(0))
    x = jnp.asarray(normal((1, 4, FEATURES), "float32"))
    assert (encoder(x) != encoder(x)).any()
    nnx.view(encoder, only=nnx.Dropout, deterministic=True)
    assert isinstance(encoder.blocks[0].drop_attn_out, Dropout)


def test_a_model_without_a_stream_takes_keys(key):
    encoder = Encoder(1, FEATURES, HEADS, rates=0.5, rngs=nnx.Rngs(params=0))
    x = jnp.asarray(normal((1, 4, FEATURES), "float32"))
    assert (encoder(x, rngs=key) != encoder(x, deterministic=True)).any()
    with pytest.raises(ValueError, match="no `rngs` argument was provided to Encoder"):
        encoder(x)


@pytest.mark.slow
def test_it_compiles_under_nnx_jit_and_grad():
    encoder = Encoder(2, FEATURES, HEADS, rates=0.5, rngs=nnx.Rngs(0))
    x = jnp.asarray(normal((1, 4, FEATURES), "float32"))

    @nnx.jit
    def gradient(encoder, x):
        return nnx.grad(lambda encoder: (encoder(x) ** 2).sum())(encoder)

    first, second = (jax.tree.leaves(gradient(encoder, x)) for _ in range(2))
    assert any((a != b).any() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TransformerBlock(16, 3, rngs=nnx.Rngs(0)), "num_heads=3 is not allowed"),
        (
            lambda: MultiHeadAttention(4, 16, num_kv_heads=3, rngs=nnx.Rngs(0)),
            "num_kv_heads=3 is not allowed: num_kv_heads must be a divisor of num_heads=4",
        ),
        (
            lambda: TransformerBlock(16, 4, rates={"attn": 0.1}, rngs=nnx.Rngs(0)),
            "a mapping from sites .attn_weights, .* Rename or remove 'attn'",
        ),
        (
            lambda: Encoder(2, 16, 4, rates={"drop_path": (0.1,)}, rngs=nnx.Rngs(0)),
            "a sequence of num_layers=2 rates",
        ),
        (
            lambda: TransformerBlock(16, 4, rates={"mlp_out": 1.5}, rngs=nnx.Rngs(0)),
            r"rates\['mlp_out'\]=1.5 is not allowed",
        ),
        (lambda: TransformerBlock(16, 4, norm="sandwich", rngs=nnx.Rngs(0)), "norm='sandwich'"),
        (
            lambda: Decoder(1, 16, 4, rates=0.1, rngs=nnx.Rngs(0))(
                *(jnp.ones((1, 2, 16)), jnp.ones((1, 2, 16))),
                caches=Decoder(1, 16, 4, rngs=nnx.Rngs(0)).init_caches(1, 4),
            ),
            "cache=... is not allowed with dropout",
        ),
        (
            lambda: TransformerBlock(16, 4, rngs=nnx.Rngs(0))(
                jnp.ones((1, 2, 16)), jnp.ones((1, 2, 16))
            ),
            "context=.* has_cross_attention=True",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make()
