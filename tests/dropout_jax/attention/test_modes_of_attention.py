"""Attention in modes of JAX, its memory, and how its queries are split."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import temporary_bytes
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from marks import slow

from dropout_jax import attention_implementation, dot_product_attention
from dropout_jax.attention import _blockwise
from dropout_jax.attention._inputs import StaticMask

RATE = 0.3
BOTH = pytest.mark.parametrize("implementation", [slow("naive"), "blockwise"])


def make_arrays(batch=2, queries=80, heads=2, dim=4, count=3):
    shape = (count, batch, queries, heads, dim)
    return list(jnp.asarray(np.random.default_rng(11).normal(size=shape), jnp.float32))


def make_bias(batch, heads, queries):
    shape = (batch, heads, queries, queries)
    return jnp.asarray(np.random.default_rng(12).normal(size=shape), jnp.float32)


def attend(key, implementation, rate=RATE, **options):
    """The causal function of (query, key, value, bias)."""
    return functools.partial(
        dot_product_attention,
        is_causal=True,
        dropout_rate=rate,
        dropout_key=key,
        implementation=implementation,
        **options,
    )


def derive(fn, order, arrays, tangents):
    """Derivatives of the first order, or of both, forward (f) and in reverse (r)."""

    def forward(*xs):
        return jax.jvp(fn, xs, tangents)[1]

    def reverse(*xs):
        return jax.grad(lambda *xs: (fn(*xs) ** 2).sum(), argnums=(0, 1, 2, 3))(*xs)

    if order == "f":
        return forward(*arrays)
    if order == "ff":
        return jax.jvp(forward, arrays, tangents)[1]
    if order == "fr":
        return jax.jvp(reverse, arrays, tangents)[1]
    scalar = {"rf": lambda *xs: (forward(*xs) ** 2).sum()}.get(
        order, lambda *xs: sum((x**2).sum() for x in reverse(*xs))
    )
    return jax.grad(scalar, argnums=(0, 1, 2, 3))(*arrays)


@pytest.mark.parametrize("order", ["f", slow("fr"), slow("ff"), slow("rf"), slow("rr")])
def test_forward_mode_and_second_derivatives_are_the_naive_ones(order, key):
    arrays = (*make_arrays(1, heads=1), make_bias(1, 1, 80))
    tangents = tuple(jnp.cos(x) for x in arrays)
    results = [
        jax.tree.leaves(derive(attend(key, name), order, arrays, tangents))
        for name in (None, "naive")
    ]
    for ours, expected in zip(*results, strict=True):
        atol = 1e-5 * float(abs(expected).max())
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=atol)


@pytest.mark.slow
def test_linearize_and_hessian_are_the_naive_ones(key):
    query, k, value = make_arrays(1, 70, 1, 1)
    fns = [attend(key, name) for name in (None, "naive")]
    hessians = [jax.hessian(lambda x, fn=fn: (fn(x, k, value) ** 2).sum())(query) for fn in fns]
    np.testing.assert_allclose(*hessians, rtol=1e-4, atol=1e-5)
    slopes = [jax.linearize(lambda x, fn=fn: fn(x, k, value), query)[1](k) for fn in fns]
    np.testing.assert_allclose(*slopes, rtol=1e-5, atol=1e-6)


@BOTH
@pytest.mark.parametrize("shared", [slow("bias"), "key and value"])
@pytest.mark.slow
def test_gradients_of_replicated_arrays_under_shard_map(shared, implementation, key):
    """Queries vary over the devices; the gradient of what they share is summed over them."""
    query, k, value = make_arrays(4)
    bias = make_bias(1, 2, 80)
    k, value = (k[:1], value[:1]) if shared == "key and value" else (k, value)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    keys_spec = PartitionSpec() if shared == "key and value" else PartitionSpec("data")
    specs = (PartitionSpec("data"), keys_spec, keys_spec, PartitionSpec())

    def differentiate(*arrays, offset):
        fn = attend(key, implementation, dropout_row_offset=offset)
        y, pullback = jax.vjp(fn, *arrays)
        return y, pullback(jnp.cos(y))

    def on_each_device(*arrays):
        return differentiate(*arrays, offset=lax.axis_index("data"))

    def on_one(query, k, value, bias):
        whole = (jnp.broadcast_to(x, (4, *x.shape[1:])) for x in (k, value))
        return attend(key, implementation)(query, *whole, bias)

    mapped = jax.shard_map(on_each_device, mesh=mesh, in_specs=specs, out_specs=(specs[0], specs))
    y, gradients = jax.jit(mapped)(query, k, value, bias)
    expected, pullback = jax.vjp(on_one, query, k, value, bias)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    for ours, truth in zip(gradients, pullback(jnp.cos(expected)), strict=True):
        np.testing.assert_allclose(ours, truth, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("rate", [slow(0.0), RATE])
@pytest.mark.parametrize(
    ("shape", "key_shape", "chosen"),
    [
        ("b, 80, h, 4", "b, 80, h, 4", "blockwise"),
        slow("2, t, 2, 4", "2, 80, 2, 4", "naive"),
        slow("2, 80, 2, 4", "2, t, 2, 4", "naive"),
        slow("b, t, h, 4", "b, s, h, 4", "naive"),
    ],
)
def test_export_with_symbolic_shapes(shape, key_shape, chosen, rate, key):
    query, k, value = make_arrays()
    scope = jax.export.SymbolicScope()
    shapes = [jax.export.symbolic_shape(text, scope=scope) for text in (shape, key_shape)]
    structs = [jax.ShapeDtypeStruct(each, jnp.float32) for each in shapes]
    assert attention_implementation(*structs).implementation == chosen
    fn = attend(key if rate else None, None, rate, local_window_size=(60, 0))
    exported = jax.export.export(jax.jit(fn))(structs[0], structs[1], structs[1])
    expected = attend(key if rate else None, "naive", rate, local_window_size=(60, 0))(
        query, k, value
    )
    np.testing.assert_allclose(exported.call(query, k, value), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize(
    ("implementation", "shape"), [("blockwise", "2, t, 2, 4"), ("kernel", "b, 80, 2, 4")]
)
def test_symbolic_shapes_are_refused_by_name(implementation, shape, key):
    struct = jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape), jnp.float32)
    fn = jax.jit(attend(key, implementation))
    with pytest.raises(NotImplementedError, match=f"{implementation}.*implementation=None"):
        jax.export.export(fn)(struct, struct, struct)


@pytest.mark.usefixtures("without_type_checker")
def test_a_symbolic_dim_needs_a_scale(key):
    struct = jax.ShapeDtypeStruct(jax.export.symbolic_shape("2, 80, 2, d"), jnp.float32)
    with pytest.raises(ValueError, match="Pass scale"):
        jax.export.export(jax.jit(attend(key, None)))(struct, struct, struct)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("swapped", ["value", "query", "key", "all, and out"])
def test_transposed_arrays_of_half_precision(swapped, dtype, implementation, key):
    """As ported from PyTorch: (batch, heads, positions, dim), transposed at the call."""
    arrays = [x.astype(dtype).swapaxes(1, 2) for x in make_arrays(2, 16)]
    cotangent = arrays[0].swapaxes(1, 2)

    def fn(*arrays, upcast=False):
        parts = [x.swapaxes(1, 2) for x in arrays]
        if upcast:
            parts = [x.astype(jnp.float32) for x in parts]
        return attend(key, implementation)(*parts)

    def swap_some(*arrays):
        index = {"query": 0, "key": 1, "value": 2}.get(swapped)
        parts = [
            x if i != index and index is not None else x.swapaxes(1, 2).swapaxes(1, 2)
            for i, x in enumerate(arrays)
        ]
        y, pullback = jax.vjp(fn, *parts)
        tangent = jax.jvp(fn, parts, parts)[1]
        return y.swapaxes(1, 2), *pullback(cotangent), tangent

    results = jax.block_until_ready(jax.jit(swap_some)(*arrays))
    expected, pullback = jax.vjp(functools.partial(fn, upcast=True), *arrays)
    wide = (expected.swapaxes(1, 2), *pullback(cotangent.astype(jnp.float32)))
    for ours, truth in zip(results, wide, strict=False):
        np.testing.assert_allclose(
            ours.astype(jnp.float32), truth.astype(jnp.float32), rtol=0.05, atol=0.05
        )


@pytest.mark.slow
@BOTH
def test_strict_modes(implementation, key):
    """Ranks and dtypes are never promoted, nothing leaks, and checks of every equation hold."""
    query, k, value = make_arrays()
    hide = {
        "mask": jnp.ones((2, 1, 80, 80), bool).at[:, :, 5].set(False),
        "query_seq_lengths": jnp.array([80, 30]),
        "key_value_seq_lengths": jnp.array([9, 80]),
        "local_window_size": (20, 3),
    }
    fn = attend(key, implementation, **hide)
    expected = fn(query, k, value)
    with (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
        jax.enable_checks(True),
        jax.checking_leaks(),
        jax.debug_nans(True),
    ):
        y, pullback = jax.vjp(fn, query, k, value)
        gradients = pullback(y)
        jax.jvp(fn, (query, k, value), (query, k, value))
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
    assert all(jnp.isfinite(x).all() for x in gradients)


def measure_temporaries(length, is_causal, rate, differentiated, key):
    x = jax.ShapeDtypeStruct((1, length, 1, 64), jnp.float32)

    def fn(query, k, value):
        return dot_product_attention(
            query, k, value, is_causal=is_causal, dropout_rate=rate, dropout_key=key
        )

    def gradient(*arrays):
        y, pullback = jax.vjp(fn, *arrays)
        return pullback(y)

    return temporary_bytes(jax.jit(gradient if differentiated else fn).lower(x, x, x).compile())


@pytest.mark.parametrize("is_causal", [False, slow(True)])
@pytest.mark.parametrize("rate", [slow(0.0), RATE])
@pytest.mark.parametrize("differentiated", [False, True])
def test_temporaries_are_small_and_linear(differentiated, rate, is_causal, key):
    """All weights take 16 MiB at 2048 and 64 MiB at 4096, and a block of 256 rows 4 MiB there."""
    sizes = [
        measure_temporaries(length, is_causal, rate, differentiated, key) / 2**20
        for length in (2048, 4096)
    ]
    assert sizes[0] < 12
    assert sizes[1] < (30 if differentiated else 24)


@pytest.mark.parametrize("queries", [1, 31, 64, 65, 250, 300, 1000, 2100, 5000])
@pytest.mark.parametrize("window", [None, (100, 3), (4990, 0)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_segments_cover_all_queries_and_what_they_see(is_causal, window, queries):
    """Every segment starts at a multiple of 32, follows the last, and has the keys of its rows."""
    mask, keys, next_row = StaticMask(is_causal, window), 400, 0
    for segment in _blockwise.split_queries(mask, queries, keys):
        assert segment.first_row == next_row < queries
        assert segment.rows % 32 == 0
        next_row += segment.rows * segment.turns
        for row in range(segment.first_row, min(next_row, queries)):
            low, high = mask.key_range(row, row, keys)
            assert low == high or segment.key_low <= low < high <= segment.key_high
    assert queries <= next_row < queries + 256
