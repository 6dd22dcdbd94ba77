"""Attention with dropout: every implementation against the oracle, its gradients and its shapes."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import find_collectives, temporary_bytes
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from marks import slow

from dropout_jax import attention_implementation, dot_product_attention, keep_mask, reference
from dropout_jax.attention import _api, _kernel, _mosaic_tpu

TPU_KERNEL = "kernel for TPUs"  # interpreted in place of the one for GPUs
IMPLEMENTATIONS = pytest.mark.parametrize(
    "implementation", ["naive", "blockwise", "kernel", slow(TPU_KERNEL)]
)
FAST_ON_ONE = pytest.mark.parametrize(
    "implementation", ["blockwise", *map(slow, ("naive", "kernel", TPU_KERNEL))]
)
LONG_ON_THE_KERNEL = pytest.mark.parametrize(
    "implementation",
    [
        slow("naive"),
        "blockwise",
        *(pytest.param(name, marks=pytest.mark.torture) for name in ("kernel", TPU_KERNEL)),
    ],
)
RATE = 0.3


@dataclasses.dataclass(frozen=True)
class Case:
    """Shapes, and what hides or biases weights."""

    name: str
    batch: int = 2
    queries: int = 40
    keys: int = 40
    heads: int = 2
    key_heads: int = 2
    dim: int = 8
    bias: tuple | None = None
    mask: tuple | None = None
    options: tuple = ()
    lengths: tuple = ()

    def __str__(self):
        return self.name

    def arrays(self, dtype=np.float32):
        """Query, key, value, bias and mask."""
        rng = np.random.default_rng(7)
        query = rng.normal(size=(self.batch, self.queries, self.heads, self.dim))
        key, value = rng.normal(size=(2, self.batch, self.keys, self.key_heads, self.dim))
        bias = None if self.bias is None else rng.normal(size=self.bias).astype(np.float32)
        mask = None if self.mask is None else rng.random(self.mask) < 0.6
        return *(x.astype(dtype) for x in (query, key, value)), bias, mask

    def keywords(self):
        """The options, with lengths as arrays."""
        lengths = {name: np.array(value, np.int32) for name, value in self.lengths}
        return dict(self.options) | lengths


CAUSAL = (("is_causal", True),)
CASES = [
    Case("plain"),
    Case("causal", options=CAUSAL),
    Case("ragged, many blocks", queries=300, keys=300, batch=1, options=CAUSAL),
    Case(
        "past sixteen blocks",
        *(1, 4300, 70, 1, 1, 4),
        options=(("local_window_size", (4290, 3)),),
    ),
    Case("short keys", queries=9, keys=5),
    Case("short keys, causal, many rows", queries=140, keys=31, options=CAUSAL),
    Case("more keys than queries", queries=20, keys=70, options=CAUSAL),
    Case("more queries than keys", queries=150, keys=33, options=CAUSAL),
    Case("one query", queries=1, keys=50),
    Case("grouped", heads=6, key_heads=2, options=CAUSAL),
    Case("multi-query, odd batch", batch=3, heads=5, key_heads=1),
    Case("many groups", batch=12, heads=4, key_heads=4, queries=33, keys=33),
    Case("bias", bias=(2, 2, 40, 40)),
    Case("bias over heads", bias=(1, 2, 40, 1), options=CAUSAL),
    Case("bias over keys", batch=12, bias=(12, 1, 1, 40)),
    Case("bias of three axes", bias=(2, 40, 40)),
    Case("mask", mask=(2, 2, 40, 40)),
    Case("mask of keys", mask=(2, 1, 1, 40), options=CAUSAL),
    Case("window", queries=200, keys=200, options=(("local_window_size", (3, 2)),)),
    Case(
        "window of one number, causal",
        queries=300,
        keys=300,
        options=(*CAUSAL, ("local_window_size", 40)),
    ),
    Case("window past the keys", queries=300, keys=40, options=(("local_window_size", 3),)),
    Case("window without end", options=(("local_window_size", (2**40, 0)),)),
    Case("lengths", lengths=(("query_seq_lengths", (40, 17)), ("key_value_seq_lengths", (0, 23)))),
    Case("key lengths, causal", options=CAUSAL, lengths=(("key_value_seq_lengths", (40, 9)),)),
    Case("scale", options=(("scale", 0.2),)),
    Case(
        "all at once",
        batch=3,
        queries=150,
        keys=170,
        heads=4,
        key_heads=2,
        bias=(1, 4, 150, 170),
        mask=(3, 1, 150, 170),
        options=(*CAUSAL, ("local_window_size", (90, 0)), ("scale", 0.5)),
        lengths=(("query_seq_lengths", (150, 60, 1)), ("key_value_seq_lengths", (170, 100, 3))),
    ),
]
DIFFERENTIATED = ("causal", "grouped", "bias", "lengths")
AS_JAX = ("plain", "causal", "short keys", "grouped", "bias", "window", "more keys than queries")
SHORT_GRADIENTS = (
    *("causal", "ragged, many blocks", "past sixteen blocks", "short keys", "grouped", "bias"),
    *("bias over keys", "many groups", "mask", "window past the keys", "lengths", "all at once"),
)
CORE = ("short keys, causal, many rows", "all at once")
DRAWN = ("causal", "ragged, many blocks", "short keys", "short keys, causal, many rows", "window")
SMALL = [case for case in CASES if case.queries < 1000]
# A case of each kind for every change; the others are slow.
FAST = {
    "blockwise": (
        *("causal", "ragged, many blocks", "short keys", "short keys, causal, many rows"),
        *("grouped", "bias", "mask", "window", "lengths", "all at once"),
    ),
    "naive": ("causal", "all at once"),
    "kernel": CORE,
    TPU_KERNEL: (),
}
FAST_GRADIENTS = {
    "blockwise": ("grouped", "all at once"),
    "kernel": (),
    TPU_KERNEL: (),
}
KERNELS = "kernel", TPU_KERNEL


@pytest.fixture(autouse=True)
def kernel_for_tpus(request, monkeypatch):
    """Let the tests name the kernel for TPUs, which a CPU does not choose."""
    if TPU_KERNEL in getattr(request.node, "callspec", _NoParameters).params.values():
        monkeypatch.setitem(_api.IMPLEMENTATIONS, TPU_KERNEL, _api.IMPLEMENTATIONS["kernel"])
        monkeypatch.setattr(_kernel, "_triton", _mosaic_tpu)


class _NoParameters:
    params: dict[str, Any] = {}  # noqa: RUF012


def each(cases, implementations=("naive", "blockwise", *KERNELS), fast=FAST, short=None):
    """Every case on every implementation; long are those not in `short`, most of the kernels'."""

    def marks(case, name):
        if (short and case.name not in short) or (name in KERNELS and case.name not in CORE):
            return pytest.mark.torture
        return () if case.name in fast[name] else pytest.mark.slow

    pairs = [(case, name) for case in cases for name in implementations]
    return pytest.mark.parametrize(
        ("case", "implementation"),
        [pytest.param(*pair, marks=marks(*pair), id=f"{pair[0]}-{pair[1]}") for pair in pairs],
    )


def attend(case, implementation, key, rate=RATE):
    """The function of (query, key, value, bias) that a case calls."""
    *_, mask = case.arrays()

    def fn(query, k, value, bias=None):
        return dot_product_attention(
            query,
            k,
            value,
            bias,
            mask,
            **case.keywords(),
            dropout_rate=rate,
            dropout_key=key,
            implementation=implementation,
        )

    return fn


def operands(case, dtype=jnp.float32):
    """Query, key, value and, if there is one, the bias."""
    *arrays, bias, _ = case.arrays()
    arrays = [jnp.asarray(x, dtype) for x in arrays]
    return arrays if bias is None else [*arrays, jnp.asarray(bias)]


@functools.cache
def oracle(case):
    """The reference's result, from float64 operands, for the key of these tests."""
    words = np.asarray(jax.random.key_data(jax.random.key(20141)))
    query, k, value, bias, mask = case.arrays(np.float64)
    return reference.dot_product_attention(
        *(query, k, value, bias, mask),
        **_pairs(case.keywords()),
        dropout_rate=RATE,
        dropout_key=words,
    )


def _pairs(keywords):
    window = keywords.get("local_window_size")
    return keywords | ({"local_window_size": (window, window)} if isinstance(window, int) else {})


@each(CASES)
def test_equals_the_oracle(case, implementation, key):
    """Float32 against float64: weights sum to at most 1 / 0.7 and values are within 5."""
    y = attend(case, implementation, key)(*operands(case))
    np.testing.assert_allclose(y, oracle(case), rtol=2e-5, atol=2e-5)


@each([case for case in CASES if case.name in DRAWN])
def test_drops_exactly_the_weights_of_keep_mask(case, implementation, key):
    """With value = identity the output is the weights: the dropped set is compared bit for bit."""
    case = dataclasses.replace(
        case, dim=case.keys, lengths=(), mask=None, options=(("scale", 0.01),)
    )
    query, k, value, *bias = operands(case)
    value = jnp.broadcast_to(jnp.eye(case.keys)[None, :, None], value.shape)
    weights = attend(case, implementation, key)(query, k, value, *bias)
    keep = keep_mask(key, RATE, (case.batch, case.heads, case.queries, case.keys))
    np.testing.assert_array_equal(weights.transpose(0, 2, 1, 3) != 0, keep)


@each(CASES, ("blockwise", *KERNELS), fast=FAST_GRADIENTS, short=SHORT_GRADIENTS)
def test_gradients_are_the_naive_ones(case, implementation, key):
    """Naive's gradients come from JAX's differentiation of the formula; the others have theirs."""
    cotangent = np.random.default_rng(3).normal(size=operands(case)[0].shape).astype(np.float32)
    results = {}
    for name in ("naive", implementation):
        _, pullback = jax.vjp(attend(case, name, key), *operands(case))
        results[name] = pullback(jnp.asarray(cotangent))
    for ours, expected in zip(results[implementation], results["naive"], strict=True):
        assert ours.dtype == expected.dtype
        bound = 2e-5 * max(1, float(abs(expected).max()))
        np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=bound)


@each([case for case in CASES if case.name in DIFFERENTIATED], ("naive",))
def test_gradients_are_finite_differences(case, implementation, key):
    """Float64: a central difference of step 1e-5 is off by about 1e-10 of its size."""
    with jax.enable_x64(True):
        arrays = [jnp.asarray(x, jnp.float64) for x in operands(case)]
        fn = jax.jit(attend(case, implementation, key))
        rng = np.random.default_rng(5)
        cotangent, *steps = (jnp.asarray(rng.normal(size=x.shape)) for x in (arrays[0], *arrays))
        gradients = jax.vjp(fn, *arrays)[1](cotangent)
        for i, step in enumerate(steps):
            ends = []
            for sign in (1e-5, -1e-5):
                moved = [x + sign * step if i == j else x for j, x in enumerate(arrays)]
                ends.append((fn(*moved) * cotangent).sum())
            difference = (ends[0] - ends[1]) / 2e-5
            np.testing.assert_allclose(
                (gradients[i] * step).sum(), difference, rtol=1e-6, atol=1e-7
            )


@pytest.mark.slow
@each([CASES[2], CASES[9]], ("blockwise", *KERNELS), short=("ragged, many blocks",))
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_error_is_at_most_twice_the_naive_one(case, dtype, implementation, key):
    """Both errors against float64: root mean square, and the largest as flash-attention's tests.

    (The largest of a few thousand float32 roundings is a matter of luck: 1e-6, two ulps of 4.)
    """
    narrow = operands(case, dtype)
    wide = [np.asarray(x, np.float64) for x in narrow]
    cotangent = jnp.asarray(np.random.default_rng(3).normal(size=wide[0].shape), dtype)
    results = {}
    for name in ("naive", implementation):
        y, pullback = jax.vjp(attend(case, name, key), *narrow)
        results[name] = [y, *pullback(cotangent)]
        assert all(x.dtype == dtype for x in results[name])
    with jax.enable_x64(True):
        y, pullback = jax.vjp(attend(case, "naive", key), *map(jnp.asarray, wide))
        exact = [np.asarray(x) for x in (y, *pullback(jnp.asarray(cotangent, jnp.float64)))]
    for naive, ours, truth in zip(results["naive"], results[implementation], exact, strict=True):
        errors = [np.asarray(x, np.float64) - truth for x in (naive, ours)]
        assert np.square(errors[1]).mean() <= 4 * np.square(errors[0]).mean()
        assert np.abs(errors[1]).max() <= 2 * np.abs(errors[0]).max() + 1e-6


@pytest.mark.parametrize("implementation", [slow("naive"), "blockwise", *map(slow, KERNELS)])
def test_rows_that_see_nothing_are_zeros_with_zero_gradients(implementation, key):
    case = Case("blind", options=CAUSAL)
    mask = jnp.ones((1, 1, 40, 40), bool).at[:, :, 5].set(False)

    def fn(query, k, value):
        return dot_product_attention(
            query,
            k,
            value,
            mask=mask,
            is_causal=True,
            dropout_rate=RATE,
            dropout_key=key,
            implementation=implementation,
        )

    y, pullback = jax.vjp(fn, *operands(case))
    gradients = pullback(jnp.ones_like(y))
    assert (y[:, 5] == 0).all()
    assert (y[:, 6] != 0).all()
    assert (gradients[0][:, 5] == 0).all()
    assert all(jnp.isfinite(x).all() for x in gradients)


@LONG_ON_THE_KERNEL
@pytest.mark.parametrize("how", ["lengths", "mask"])
def test_padding_may_hold_anything(implementation, how, key):
    query, k, value = operands(Case("padded"))
    hide: dict[str, Any] = {
        "key_value_seq_lengths": jnp.array([30, 40]),
        "query_seq_lengths": jnp.array([25, 40]),
    }
    if how == "mask":
        rows, keys = (np.arange(40) < np.array(n)[:, None] for n in ([25, 40], [30, 40]))
        hide = {"mask": jnp.asarray(rows[:, None, :, None] & keys[:, None, None, :])}

    def fn(query, k, value):
        return dot_product_attention(
            query,
            k,
            value,
            dropout_rate=RATE,
            dropout_key=key,
            implementation=implementation,
            **hide,
        )

    clean, pullback = jax.vjp(fn, query, k, value)
    dirty = [x.at[0, 30:].set(jnp.nan) for x in (k, value)]
    query = query.at[0, 25:].set(jnp.nan)
    soiled, dirty_pullback = jax.vjp(fn, query, *dirty)
    np.testing.assert_array_equal(soiled, clean)
    pairs = zip(dirty_pullback(jnp.ones_like(clean)), pullback(jnp.ones_like(clean)), strict=True)
    for ours, expected in pairs:
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.slow
@LONG_ON_THE_KERNEL
@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({"is_causal": True}, 20),
        ({"local_window_size": 3}, 23),
        ({"is_causal": True, "mask": jnp.arange(20)[:, None] < 5}, 5),
    ],
)
def test_keys_that_nobody_sees_may_hold_anything(options, first, implementation, key):
    """More keys than queries: those from `first` on are out of every query's reach."""
    query, k, value = operands(Case("long", queries=20, keys=70))
    attend = functools.partial(
        dot_product_attention,
        dropout_rate=RATE,
        dropout_key=key,
        implementation=implementation,
        **options,
    )
    clean = attend(query, k, value)
    dirty = attend(query, k.at[:, first:].set(jnp.nan), value.at[:, first:].set(jnp.nan))
    np.testing.assert_array_equal(dirty, clean)


@IMPLEMENTATIONS
@pytest.mark.parametrize("empty", ["batch", "queries", "keys", "heads", "dim"])
def test_empty_axes_give_zeros(empty, implementation, key):
    case = dataclasses.replace(Case("empty"), **{empty: 0})
    arrays = operands(dataclasses.replace(case, key_heads=0 if empty == "heads" else 2))
    y, pullback = jax.vjp(attend(case, implementation, key), *arrays)
    np.testing.assert_array_equal(y, jnp.zeros(arrays[0].shape))
    assert [x.shape for x in pullback(y)] == [x.shape for x in arrays]


@pytest.mark.slow
@pytest.mark.parametrize("implementation", [slow("naive"), "blockwise"])
def test_under_shard_map_and_twice_differentiated(implementation, key):
    """A row that a bias of -inf blinds has finite second derivatives; zeros vary as they must."""
    query, k, value = operands(Case("twice", batch=8, queries=80, keys=80))
    bias = jnp.zeros((8, 1, 80, 80)).at[:, :, 5].set(-jnp.inf)

    def slope(query, k, value, bias):
        attend = functools.partial(
            dot_product_attention, dropout_rate=RATE, dropout_key=key, implementation=implementation
        )
        return jax.grad(lambda *xs: (attend(*xs) ** 2).sum(), argnums=(0, 1, 3))(
            query, k, value, bias
        )

    curve = jax.grad(lambda *xs: (slope(*xs)[0] ** 2).sum(), argnums=(0, 1))(query, k, value, bias)
    assert all(jnp.isfinite(x).all() for x in curve)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    mapped = jax.jit(jax.shard_map(slope, mesh=mesh, in_specs=spec, out_specs=spec))
    results = mapped(query, k, value, bias)
    expected = slope(query[:4], k[:4], value[:4], bias[:4])  # each device draws from the same key
    for ours, truth in zip(results, expected, strict=True):
        np.testing.assert_allclose(ours[:4], truth, rtol=1e-4, atol=1e-4)


def test_float16_weights_do_not_overflow_when_scaled(key):
    """At a rate of 0.99998 the scale is 65536, above float16's largest number."""
    query, k, value = (0.01 * x for x in operands(Case("narrow", batch=16), jnp.float16))
    for name in ("naive", "blockwise"):
        y = attend(Case("narrow"), name, key, 0.99998)(query, k, value)
        assert jnp.isfinite(y).all()


@LONG_ON_THE_KERNEL
def test_rates_traced_and_at_the_ends(implementation, key):
    case = CASES[1]
    arrays = operands(case)
    traced = jax.jit(lambda rate, *xs: attend(case, implementation, key, rate)(*xs))
    for rate in (0.0, 0.25, 1.0):
        fixed = attend(case, implementation, key, rate)(*arrays)
        np.testing.assert_allclose(traced(rate, *arrays), fixed, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(traced(1.0, *arrays), jnp.zeros_like(arrays[0]))
    assert jnp.isnan(traced(1.5, *arrays)).all()
    gradient = jax.grad(lambda rate: traced(rate, *arrays).sum())(0.5)
    assert gradient == 0


@pytest.mark.slow
@LONG_ON_THE_KERNEL
def test_vmap_over_keys_and_rates_equals_a_loop(implementation, key):
    case = CASES[2]
    arrays = operands(case)
    keys, rates = jax.random.split(key, 3), jnp.array([0.0, 0.1, 0.5])

    def fn(k, rate):
        return jax.vjp(attend(case, implementation, k, rate), *arrays)[1](arrays[0])

    together = jax.vmap(fn)(keys, rates)
    for i in range(3):
        for ours, expected in zip(together, fn(keys[i], rates[i]), strict=True):
            np.testing.assert_allclose(ours[i], expected, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
@LONG_ON_THE_KERNEL
def test_same_under_jit_scan_and_remat(implementation, key):
    case = CASES[2]
    query, k, value = operands(case)
    fn = attend(case, implementation, key)
    expected, pullback = jax.vjp(fn, query, k, value)
    gradient = pullback(expected)[0]
    _, scanned = jax.lax.scan(lambda c, _: (c, fn(query, k, value)), 0, length=2)
    remat = jax.vjp(jax.checkpoint(fn), query, k, value)[1](expected)[0]
    for y, truth in (
        (jax.jit(fn)(query, k, value), expected),
        (scanned[1], expected),
        (remat, gradient),
    ):
        np.testing.assert_allclose(y, truth, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@LONG_ON_THE_KERNEL
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize(
    "spec", [("data", None, None), (None, None, "data"), ("data", None, "tensor")]
)
def test_sharded_batch_and_heads(spec, kind, implementation, key):
    case = Case("sharded", batch=8, heads=8, key_heads=8, options=CAUSAL)
    sizes, names = ((4, 2), ("data", "tensor")) if "tensor" in spec else ((8,), ("data",))
    mesh = jax.make_mesh(sizes, names, axis_types=(kind,) * len(sizes))
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    fn = jax.jit(lambda *xs: jax.vjp(attend(case, implementation, key), *xs)[1](xs[0]))
    arrays = operands(case)
    expected = fn(*arrays)
    with jax.set_mesh(mesh):
        sharded = [jax.device_put(x, sharding) for x in arrays]
        results = fn(*sharded)
        program = fn.lower(*sharded).compile()
    for ours, truth in zip(results, expected, strict=True):
        np.testing.assert_allclose(ours, truth, rtol=1e-5, atol=1e-5)
    assert not find_collectives(program)


@each([case for case in CASES if case.name in AS_JAX])
def test_evaluation_is_jax_nn(case, implementation):
    """Where every row sees a key; elsewhere JAX takes the mean of all values."""
    query, k, value, bias, _ = case.arrays()
    if bias is not None:
        bias = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
    expected = jax.nn.dot_product_attention(query, k, value, bias, **case.keywords())
    y = attend(case, implementation, None)(*operands(case))
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("zero", [0, 0.0, np.float32(0), np.int64(0), np.array(0.0), jnp.zeros(())])
def test_no_key_is_needed_at_rate_zero(zero):
    query, k, value = operands(Case("zero"))
    y = dot_product_attention(query, k, value, dropout_rate=zero)
    np.testing.assert_array_equal(y, dot_product_attention(query, k, value))


def test_no_batch_axis(key):
    query, k, value = operands(Case("one", batch=1))
    y = dot_product_attention(query, k, value, dropout_rate=RATE, dropout_key=key)
    one = dot_product_attention(query[0], k[0], value[0], dropout_rate=RATE, dropout_key=key)
    np.testing.assert_array_equal(one, y[0])


@IMPLEMENTATIONS
@pytest.mark.parametrize("dims", [slow((0,)), slow((1,)), (0, 1), slow((-4, -3))])
def test_rows_and_heads_may_share_their_masks(dims, implementation, key):
    case = Case("shared", batch=3, queries=70, keys=40, options=CAUSAL)
    arrays, options = operands(case), {"dropout_rate": RATE, "dropout_key": key}
    options |= {"is_causal": True, "dropout_broadcast_dims": dims}
    y = dot_product_attention(*arrays, implementation=implementation, **options)
    options["dropout_key"] = jax.random.key_data(key)
    np.testing.assert_allclose(
        y, reference.dot_product_attention(*map(np.asarray, arrays), **options), atol=1e-5
    )


@pytest.mark.slow
@FAST_ON_ONE
def test_shared_masks_of_a_part_of_a_batch(implementation, key):
    arrays = operands(Case("part", batch=4, queries=70))

    def attend(arrays, row_offset):
        return dot_product_attention(
            *arrays,
            dropout_rate=RATE,
            dropout_key=key,
            dropout_row_offset=row_offset,
            dropout_broadcast_dims=(1,),
            implementation=implementation,
        )

    part = attend([x[2:] for x in arrays], 2)
    np.testing.assert_allclose(part, attend(arrays, None)[2:], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["naive", "blockwise"])
def test_residual_is_the_log_sum_of_the_logits(implementation, key):
    query, k, value = operands(Case("residual", queries=70, keys=70))
    mask = jnp.tril(jnp.ones((70, 70), bool), -1)  # the first query sees no key

    def attend(query):
        return dot_product_attention(
            query,
            k,
            value,
            mask=mask,
            dropout_rate=RATE,
            dropout_key=key,
            implementation=implementation,
            return_residual=True,
        )

    def expected(query):
        repeated = jnp.repeat(k, query.shape[2] // k.shape[2], axis=2)
        logits = jnp.einsum("btnd,bsnd->btns", query, repeated) / query.shape[-1] ** 0.5
        return jax.nn.logsumexp(jnp.where(mask[:, None], logits, -jnp.inf), axis=-1)

    out, residual = attend(query)
    np.testing.assert_array_equal(residual[:, 0], -np.inf)
    np.testing.assert_allclose(residual, expected(query), rtol=1e-5)
    assert out.shape == query.shape
    slopes = [
        jax.grad(lambda x, f=f: f(x)[:, 1:].sum())(query)
        for f in (lambda x: attend(x)[1], expected)
    ]
    np.testing.assert_allclose(*slopes, rtol=1e-4, atol=1e-5)


def test_kernel_has_no_residual():
    arrays = operands(Case("residual"))
    with pytest.raises(NotImplementedError, match="implementation='blockwise'"):
        dot_product_attention(*arrays, implementation="kernel", return_residual=True)


@pytest.mark.slow
@FAST_ON_ONE
def test_scale_may_be_traced_and_learned(implementation, key):
    arrays = operands(Case("scale", queries=70))

    @jax.jit
    def total(scale):
        options = {"dropout_rate": RATE, "dropout_key": key, "implementation": implementation}
        return (dot_product_attention(*arrays, scale=scale, **options) ** 2).sum()

    known = dot_product_attention(
        *arrays, scale=0.3, dropout_rate=RATE, dropout_key=key, implementation=implementation
    )
    np.testing.assert_allclose(total(0.3), (known**2).sum(), rtol=1e-4)
    slope = (total(0.31) - total(0.29)) / 0.02
    np.testing.assert_allclose(jax.grad(total)(jnp.float32(0.3)), slope, rtol=0.02)


def test_lengths_and_windows_may_be_lists_or_arrays():
    arrays = operands(Case("lists", batch=2, queries=70, keys=70))

    def attend(lengths, window):
        return dot_product_attention(
            *arrays, key_value_seq_lengths=lengths, local_window_size=window
        )

    expected = attend(jnp.array([40, 70], jnp.int32), (3, 2))
    for lengths, window in (([40, 70], [3, 2]), (np.array([40, 70]), jnp.array([3, 2]))):
        np.testing.assert_array_equal(attend(lengths, window), expected)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["naive", "blockwise"])
def test_every_option_without_rank_promotion(implementation, key):
    arrays = operands(Case("ranks", batch=2, queries=70, keys=70))

    def total(query):
        return dot_product_attention(
            query,
            arrays[1],
            arrays[2],
            jnp.zeros((70, 70)),
            jnp.ones((1, 1, 70), bool),
            query_seq_lengths=jnp.array([60, 70]),
            key_value_seq_lengths=jnp.array([70, 40]),
            local_window_size=5,
            dropout_rate=RATE,
            dropout_key=key,
            implementation=implementation,
        ).sum()

    with jax.numpy_rank_promotion("raise"):
        assert jnp.isfinite(jax.grad(total)(arrays[0])).all()


def test_xla_is_the_choice_without_the_environment(monkeypatch):
    monkeypatch.setenv("DROPOUT_JAX_ATTENTION", "kernel")
    x = jax.ShapeDtypeStruct((2, 70, 4, 8), jnp.float32)
    assert attention_implementation(x, x, implementation="xla").implementation == "blockwise"
    assert attention_implementation(x, x).implementation == "kernel"


@pytest.mark.torture
def test_temporaries_are_linear_in_the_length(key):
    """Naive keeps 4 T^2 bytes a head and more; blockwise 128 rows and what is T x dim."""

    def bytes_at(length):
        x = jax.ShapeDtypeStruct((1, length, 1, 16), jnp.float32)

        def fn(query, k, value):
            return dot_product_attention(
                query,
                k,
                value,
                is_causal=True,
                dropout_rate=RATE,
                dropout_key=key,
                implementation="blockwise",
            ).sum()

        compiled = jax.jit(jax.grad(fn, argnums=(0, 1, 2))).lower(x, x, x).compile()
        return temporary_bytes(compiled)

    assert bytes_at(8192) < 2.2 * bytes_at(4096)
    assert bytes_at(8192) < 4 * 8192**2 / 4


def test_the_choice_and_its_reason():
    small, large = (jax.ShapeDtypeStruct((2, t, 4, 8), jnp.float32) for t in (64, 1024))
    assert attention_implementation(small, small).implementation == "naive"
    assert attention_implementation(large, large).implementation == "blockwise"
    assert attention_implementation(small, small, implementation="blockwise").reason


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"dropout_key": ...}, TypeError, "dropout_key is missing"),
        ({"dropout_key": 3}, TypeError, "dropout_key=3"),
        ({"dropout_rate": 1.5}, ValueError, "dropout_rate=1.5"),
        ({"implementation": "fast"}, ValueError, "implementation='fast'"),
        ({"scale": jnp.ones(2)}, ValueError, "scale"),
        ({"scale": "large"}, TypeError, "scale"),
        ({"dropout_broadcast_dims": (2,)}, ValueError, "dropout_broadcast_dims"),
        ({"return_residual": 1}, TypeError, "return_residual"),
        ({"local_window_size": jnp.arange(3)}, ValueError, "local_window_size"),
        ({"key": jnp.ones((2, 40, 3, 8))}, ValueError, r"key.shape=\(2, 40, 3, 8\)"),
        ({"value": jnp.ones((2, 41, 2, 8))}, ValueError, "value.shape"),
        ({"query": jnp.ones((2, 40, 2, 8), int)}, TypeError, "query"),
        ({"mask": jnp.ones((2, 2, 40, 41), bool)}, ValueError, "mask.shape"),
        ({"mask": jnp.ones((2, 2, 40, 40))}, TypeError, "mask"),
        ({"bias": jnp.ones((3, 1, 1, 1))}, ValueError, "bias.shape"),
        ({"key_value_seq_lengths": jnp.ones(2)}, TypeError, "key_value_seq_lengths"),
        ({"query_seq_lengths": jnp.ones(3, int)}, ValueError, "query_seq_lengths.shape"),
        ({"local_window_size": (1, 2, 3)}, ValueError, "local_window_size"),
        ({"local_window_size": (1, -2)}, ValueError, r"local_window_size=\(1, -2\)"),
        ({"is_causal": "no"}, TypeError, "is_causal='no'"),
        ({"dropout_rate": True, "dropout_key": ...}, TypeError, "dropout_rate=True"),
    ],
)
@pytest.mark.usefixtures("without_type_checker")
def test_errors_name_the_argument(change, error, words, key):
    query, k, value = operands(Case("fine"))
    arguments = {"query": query, "key": k, "value": value, "dropout_rate": 0.1, "dropout_key": key}
    arguments |= change
    if arguments["dropout_key"] is ...:
        del arguments["dropout_key"]
    with pytest.raises(error, match=words):
        dot_product_attention(**arguments)


@pytest.mark.parametrize("implementation", [slow("naive"), "blockwise", *map(slow, KERNELS)])
@pytest.mark.slow
def test_a_part_of_a_batch_drops_what_the_batch_drops_there(implementation, key):
    arrays = np.random.default_rng(0).standard_normal((3, 6, 100, 4, 8)).astype(np.float32)

    def attend(query, k, value, row_offset=None):
        return dot_product_attention(
            query,
            k,
            value,
            is_causal=True,
            dropout_rate=0.4,
            dropout_key=key,
            dropout_row_offset=row_offset,
            implementation=implementation,
        )

    def gradient(part, row_offset=None):
        return jax.grad(
            lambda q, k, v: (attend(q, k, v, row_offset) ** 2).sum(), argnums=(0, 1, 2)
        )(*part)

    whole, slope = attend(arrays[0], arrays[1], arrays[2]), gradient(arrays)
    in_part = jax.jit(
        lambda part, row_offset: (
            attend(part[0], part[1], part[2], row_offset),
            gradient(part, row_offset),
        )
    )
    for row_offset in (0, 2, 4):
        out, slopes = in_part(arrays[:, row_offset : row_offset + 2], row_offset)
        np.testing.assert_allclose(out, whole[row_offset : row_offset + 2], rtol=1e-5, atol=1e-6)
        for one, other in zip(slopes, slope, strict=True):
            np.testing.assert_allclose(
                one, other[row_offset : row_offset + 2], rtol=1e-4, atol=1e-5
            )
    assert (abs(attend(*(x[2:4] for x in arrays)) - whole[2:4]) > 1e-3).any()
