"""Every way that JAX can run a function, each as a check of a case.

A check computes the case's value, or its derivatives, in its mode, and compares it with the value
under jit, on one device, without the mode.
"""

import functools
import threading
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

BATCH, RATE = 4, 0.3
# Of sums in another order, as another program may take them.
RTOL = 2e-5


def key():
    return jax.random.key(7)


def inputs(case, batch=BATCH):
    """The arrays, the rate and the key of a case; a rate or a key that it lacks is a constant."""
    return case.arrays(batch), np.float32(RATE), key()


def call(case, arrays, rate, k):
    return case.fn(arrays, rate, k)


@functools.cache
def expected(case):
    return jax.jit(functools.partial(call, case))(*inputs(case))


def assert_equal(actual, wanted):
    jax.tree.map(_assert_leaf_equal, actual, wanted)


def _assert_leaf_equal(actual, wanted):
    assert actual.dtype == wanted.dtype, (actual.dtype, wanted.dtype)
    wanted = np.asarray(wanted)
    scale = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0)) if wanted.dtype != bool else 0
    np.testing.assert_allclose(actual, wanted, rtol=RTOL, atol=RTOL * scale)


def stack(values):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *values)


def run_eagerly(case):
    assert_equal(call(case, *inputs(case)), expected(case))


def run_with_a_known_rate(case):
    """The rate is a Python number, under jit and without."""
    arrays, _, k = inputs(case)
    assert_equal(call(case, arrays, RATE, k), expected(case))
    assert_equal(jax.jit(lambda arrays, k: call(case, arrays, RATE, k))(arrays, k), expected(case))


def run_without_jit(case):
    with jax.disable_jit():
        assert_equal(call(case, *inputs(case)), expected(case))


def evaluate(case):
    """key=None, where the function has that."""
    arrays, rate, _ = inputs(case)
    wanted = jax.jit(lambda arrays, rate: case.fn(arrays, rate, None))(arrays, rate)
    assert_equal(case.fn(arrays, rate, None), wanted)
    with jax.disable_jit():
        assert_equal(case.fn(arrays, rate, None), wanted)


# Derivatives


def split_floats(arrays):
    """Split into the arrays with derivatives, and a function that puts the others back."""
    is_float = [np.issubdtype(x.dtype, np.floating) for x in arrays]
    floats = tuple(x for x, yes in zip(arrays, is_float, strict=True) if yes)

    def merge(floats):
        rest = iter(floats)
        return tuple(next(rest) if yes else x for x, yes in zip(arrays, is_float, strict=True))

    return floats, merge


def build_loss(case):
    """A smooth scalar of the result, of the floating arrays."""
    arrays, rate, k = inputs(case)
    floats, merge = split_floats(arrays)

    def loss(floats):
        leaves = jax.tree.leaves(call(case, merge(floats), rate, k))
        return sum((jnp.cos(leaf.astype(jnp.float32)).sum() for leaf in leaves), jnp.float32(0))

    return floats, loss


@functools.cache
def expected_gradient(case):
    floats, loss = build_loss(case)
    return jax.jit(jax.grad(loss))(floats)


def directions(floats, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(x.shape).astype(np.float32) for x in floats)


def take_gradient(case):
    floats, loss = build_loss(case)
    assert_equal(jax.grad(loss)(floats), expected_gradient(case))


def take_value_and_gradient(case):
    floats, loss = build_loss(case)
    value, gradient = jax.value_and_grad(loss)(floats)
    assert_equal(value, jax.jit(loss)(floats))
    assert_equal(gradient, expected_gradient(case))


def _along(case, floats):
    """The derivative along a direction, from the gradient."""
    products = zip(expected_gradient(case), directions(floats), strict=True)
    return sum((jnp.vdot(g, v) for g, v in products), jnp.float32(0))


def _assert_close(actual, wanted):
    """Sums with cancellation: to 1e-4 of the numbers' size."""
    np.testing.assert_allclose(actual, wanted, rtol=1e-3, atol=1e-3)


def push_forward(case):
    floats, loss = build_loss(case)
    _assert_close(jax.jvp(loss, (floats,), (directions(floats),))[1], _along(case, floats))


def linearize(case):
    floats, loss = build_loss(case)
    _assert_close(jax.linearize(loss, floats)[1](directions(floats)), _along(case, floats))


def take_hessian(case):
    """Along two directions: forward over reverse, against reverse over reverse."""
    floats, loss = build_loss(case)
    one, two = directions(floats, 1), directions(floats, 2)

    def along(t):
        steps = zip(floats, one, two, strict=True)
        return loss(tuple(x + t[0] * a + t[1] * b for x, a, b in steps))

    twice = jax.jit(jax.jacrev(jax.jacrev(along)))(jnp.zeros(2, jnp.float32))
    scale = 1 + float(np.abs(twice).max())
    hessian = jax.jit(jax.hessian(along))(jnp.zeros(2, jnp.float32))
    np.testing.assert_allclose(hessian / scale, twice / scale, atol=1e-4)


# vmap


def map_over(case, axes):
    """vmap over those of (arrays, rate, key) that `axes` names equals a loop."""
    several = [case.arrays(BATCH) for _ in range(3)]
    several = [tuple(_vary(x, i) for x in arrays) for i, arrays in enumerate(several)]
    rates, ks = np.array([0, RATE, 0.5], np.float32), jax.random.split(key(), 3)
    arrays = jax.tree.map(lambda *xs: np.stack(xs), *several)
    names = ("arrays", "rate", "key")
    first = several[0], rates[1], ks[0]
    mapped = [
        full if n in axes else one
        for n, full, one in zip(names, (arrays, rates, ks), first, strict=True)
    ]
    fn = functools.partial(call, case)
    loop = stack(
        [
            fn(
                *(
                    jax.tree.map(lambda x, i=i: x[i], m) if n in axes else m
                    for n, m in zip(names, mapped, strict=True)
                )
            )
            for i in range(3)
        ]
    )
    together = jax.vmap(fn, tuple(0 if n in axes else None for n in names))(*mapped)
    assert_equal(together, loop)


def _vary(x, i):
    """Other floats in each copy; labels stay."""
    return np.roll(x, i, axis=0) if np.issubdtype(x.dtype, np.floating) else x


# Control flow


def scan(case):
    arrays, rate, k = inputs(case)

    def body(_, each):
        return None, call(case, arrays, rate, each)

    together = lax.scan(body, None, jax.random.split(k, 2))[1]
    loop = stack([call(case, arrays, rate, each) for each in jax.random.split(k, 2)])
    assert_equal(together, loop)


def loop_while(case):
    arrays, rate, k = inputs(case)
    start = jax.tree.map(jnp.zeros_like, expected(case))

    def step(state):
        return state[0] + 1, call(case, arrays, rate, k)

    _, out = lax.while_loop(lambda state: state[0] < 2, step, (jnp.int32(0), start))
    assert_equal(out, expected(case))


def branch(case):
    arrays, rate, k = inputs(case)
    zeros = jax.tree.map(jnp.zeros_like, expected(case))

    def fn(yes, arrays):
        return lax.cond(yes, lambda: call(case, arrays, rate, k), lambda: zeros)

    assert_equal(jax.jit(fn)(True, arrays), expected(case))
    assert_equal(jax.jit(fn)(False, arrays), zeros)


def rematerialize(case):
    floats, loss = build_loss(case)
    policies = jax.checkpoint_policies
    for policy in (None, policies.everything_saveable, policies.dots_saveable):
        gradient = jax.jit(jax.grad(jax.checkpoint(loss, policy=policy)))(floats)
        assert_equal(gradient, expected_gradient(case))


# Devices


def shard_by_hand(case, check_vma):
    """shard_map: each device has its rows of the batch, and the same key."""
    arrays, rate, k = inputs(case)
    mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,))
    rows, everywhere = PartitionSpec("a"), PartitionSpec()

    def local(arrays, rate, k):
        return jax.tree.map(lambda y: y[None], call(case, arrays, rate, k))

    specs = (rows, everywhere, everywhere)
    fn = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=check_vma)
    halves = [tuple(x[i : i + BATCH // 2] for x in arrays) for i in (0, BATCH // 2)]
    wanted = stack([call(case, half, rate, k) for half in halves])
    assert_equal(jax.jit(fn)(arrays, rate, k), wanted)


def shard_by_hand_with_offsets(case, check_vma):
    """shard_map with row_offset: together the devices have the mask of the batch."""
    arrays, rate, k = inputs(case)
    mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("a")

    def local(arrays):
        offset = lax.axis_index("a") * (BATCH // 2)
        return case.fn(arrays, rate, k, row_offset=offset)

    fn = jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=check_vma)
    assert_equal(jax.jit(fn)(arrays), expected(case))


def shard_gradients_by_hand(case, check_vma):
    """The gradient inside shard_map, of each device's rows."""
    arrays, rate, k = inputs(case)
    mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,))
    rows, everywhere = PartitionSpec("a"), PartitionSpec()

    def gradient(arrays, rate, k):
        floats, merge = split_floats(arrays)

        def loss(floats):
            leaves = jax.tree.leaves(call(case, merge(floats), rate, k))
            return sum((jnp.cos(leaf.astype(jnp.float32)).sum() for leaf in leaves), jnp.float32(0))

        return jax.grad(loss)(floats)

    specs = (rows, everywhere, everywhere)
    fn = jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=check_vma)
    halves = [tuple(x[i : i + BATCH // 2] for x in arrays) for i in (0, BATCH // 2)]
    parts = [jax.jit(gradient)(half, rate, k) for half in halves]
    wanted = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
    assert_equal(jax.jit(fn)(arrays, rate, k), wanted)


def shard_on_a_mesh(case, kinds):
    """Arrays sharded over their rows on a mesh of two axes of the given types."""
    arrays, rate, k = inputs(case)
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=kinds)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec("a"))
        sharded = tuple(jax.device_put(x, rows) for x in arrays)
        out = jax.jit(functools.partial(call, case))(sharded, rate, k)
        assert_equal(jax.tree.map(np.asarray, out), expected(case))


# Export


def export_for(case, platforms):
    exported = export.export(jax.jit(functools.partial(_call_raw, case)), platforms=platforms)(
        *_raw(*inputs(case))
    )
    if "cpu" in platforms:
        assert_equal(exported.call(*_raw(*inputs(case))), expected(case))


def export_with_a_symbolic_batch(case):
    arrays, rate, k = inputs(case)
    (b,) = export.symbolic_shape("b")
    specs = tuple(jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype) for x in arrays)
    raw = _raw(arrays, rate, k)
    exported = export.export(jax.jit(functools.partial(_call_raw, case)))(specs, *raw[1:])
    assert_equal(exported.call(*raw), expected(case))


def _raw(arrays, rate, k):
    return arrays, rate, jax.random.key_data(k)


def _call_raw(case, arrays, rate, words):
    return call(case, arrays, rate, jax.random.wrap_key_data(words))


# The rest


def evaluate_shapes(case):
    shapes = jax.eval_shape(functools.partial(call, case), *inputs(case))
    jax.tree.map(lambda s, y: _assert_same_type(s, y), shapes, expected(case))


def _assert_same_type(shape, y):
    assert (shape.shape, shape.dtype) == (y.shape, y.dtype)


def donate(case):
    arrays, rate, k = inputs(case)
    donated = tuple(jnp.asarray(x) for x in arrays)
    fn = jax.jit(lambda arrays, rate, k: call(case, arrays, rate, k), donate_argnums=0)
    with warnings.catch_warnings():  # JAX says so where a result is smaller than its input
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")
        assert_equal(fn(donated, rate, k), expected(case))


def run_with(case, context):
    """Value and gradient inside a context manager, under jit and without."""
    with context():
        arrays, rate, _ = inputs(case)
        fn = jax.jit(lambda arrays, rate, k: call(case, arrays, rate, k))
        assert_equal(fn(arrays, rate, key()), expected(case))
        assert_equal(call(case, arrays, rate, key()), expected(case))
        floats, loss = build_loss(case)
        assert_equal(jax.jit(jax.grad(loss))(floats), expected_gradient(case))


def debug_nans_without_jit(case):
    """Each operation is checked alone: even a constant NaN, which a valid input does not need."""
    floats, merge = split_floats(inputs(case)[0])
    _, rate, k = inputs(case)

    def pull_back(floats):
        outputs, vjp = jax.vjp(lambda floats: call(case, merge(floats), rate, k), floats)
        return vjp(jax.tree.map(_build_cotangent, outputs))

    gradient = jax.jit(pull_back)(floats)
    with jax.debug_nans(True), jax.disable_jit():
        assert_equal(call(case, *inputs(case)), expected(case))
        assert_equal(pull_back(floats), gradient)
        if "rate" in case.needs:
            map_over(case, ["rate"])


def _build_cotangent(y):
    if jnp.issubdtype(y.dtype, jnp.floating):
        return jnp.ones_like(y)
    return np.zeros(y.shape, jax.dtypes.float0)


def run_in_x64(case):
    """float32 arrays give the same with 64-bit types enabled."""
    with jax.enable_x64(True):
        arrays, rate, k = inputs(case)
        assert_equal(jax.jit(functools.partial(call, case))(arrays, rate, k), expected(case))
        assert_equal(call(case, arrays, RATE, k), expected(case))


def run_with_default_keys_of(case, impl):
    """Raw keys of the default implementation are the typed keys of it."""
    arrays, rate, _ = inputs(case)
    with jax.default_prng_impl(impl):
        typed = call(case, arrays, rate, jax.random.key(7))
        assert_equal(call(case, arrays, rate, jax.random.PRNGKey(7)), typed)
        assert_equal(jax.jit(functools.partial(call, case))(arrays, rate, jax.random.key(7)), typed)


def run_in_threads(case):
    results = {}

    def work(i):
        results[i] = jax.jit(functools.partial(call, case))(*inputs(case))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert_equal(results[i], expected(case))


def run_eagerly_under_a_transfer_guard(case):
    """Only explicit transfers: of a known rate and of constants too."""
    arrays, rate, k = inputs(case)
    arrays, rate = jax.tree.map(jax.device_put, (arrays, rate))
    calls = [(rate, k), (RATE, k)] if "rate" in case.needs else [(rate, k)]
    if "evaluation" in case.needs:
        calls += [(rate, None), (RATE, None)]
    wanted = [call(case, arrays, *each) for each in calls]
    with jax.transfer_guard("disallow"):
        outputs = [call(case, arrays, *each) for each in calls]
    assert_equal(outputs, wanted)


def run_under_a_transfer_guard(case):
    """Nothing goes between host and device behind the caller's back once it is compiled."""
    arrays, rate, k = inputs(case)
    arrays, rate = jax.tree.map(jax.device_put, (arrays, rate))
    fn = jax.jit(functools.partial(call, case))
    fn(arrays, rate, k)
    with jax.transfer_guard("disallow"):
        out = fn(arrays, rate, k)
    assert_equal(out, expected(case))


def any_case(case):
    return True


def has(*needs):
    return lambda case: set(needs) <= case.needs


def _setting(setting, value):
    return functools.partial(run_with, context=functools.partial(setting, value))


AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
part = functools.partial

# name -> (check, which cases have it)
MODES = {
    "eager": (run_eagerly, any_case),
    "a known rate": (run_with_a_known_rate, has("rate")),
    "disable_jit": (run_without_jit, any_case),
    "key=None": (evaluate, has("evaluation")),
    "grad": (take_gradient, any_case),
    "value_and_grad": (take_value_and_gradient, any_case),
    "jvp": (push_forward, any_case),
    "linearize": (linearize, any_case),
    "hessian": (take_hessian, any_case),
    "vmap over arrays": (part(map_over, axes=["arrays"]), any_case),
    "vmap over rates": (part(map_over, axes=["rate"]), has("rate")),
    "vmap over keys": (part(map_over, axes=["key"]), has("key")),
    "vmap over all": (part(map_over, axes=["arrays", "rate", "key"]), has("key", "rate")),
    "scan": (scan, any_case),
    "while_loop": (loop_while, any_case),
    "cond": (branch, any_case),
    "remat": (rematerialize, any_case),
    "shard_map": (part(shard_by_hand, check_vma=True), any_case),
    "shard_map, check_vma off": (part(shard_by_hand, check_vma=False), any_case),
    "shard_map, row_offset": (part(shard_by_hand_with_offsets, check_vma=True), has("offset")),
    "shard_map, row_offset, check_vma off": (
        part(shard_by_hand_with_offsets, check_vma=False),
        has("offset"),
    ),
    "grad in shard_map": (part(shard_gradients_by_hand, check_vma=True), any_case),
    "grad in shard_map, check_vma off": (
        part(shard_gradients_by_hand, check_vma=False),
        any_case,
    ),
    "auto mesh": (part(shard_on_a_mesh, kinds=(AUTO, AUTO)), any_case),
    "explicit mesh": (part(shard_on_a_mesh, kinds=(EXPLICIT, EXPLICIT)), any_case),
    "mixed mesh": (part(shard_on_a_mesh, kinds=(EXPLICIT, AUTO)), any_case),
    "export for cpu": (part(export_for, platforms=["cpu"]), any_case),
    "export for cuda": (part(export_for, platforms=["cuda"]), any_case),
    "export for tpu": (part(export_for, platforms=["tpu"]), any_case),
    "export, symbolic batch": (export_with_a_symbolic_batch, any_case),
    "eval_shape": (evaluate_shapes, any_case),
    "donated arguments": (donate, any_case),
    "debug_nans": (_setting(jax.debug_nans, True), any_case),
    "debug_nans, disable_jit": (debug_nans_without_jit, any_case),
    "debug_infs": (_setting(jax.debug_infs, True), any_case),
    "enable_checks": (_setting(jax.enable_checks, True), any_case),
    "checking_leaks": (part(run_with, context=jax.checking_leaks), any_case),
    "strict dtype promotion": (_setting(jax.numpy_dtype_promotion, "strict"), any_case),
    "rank promotion refused": (_setting(jax.numpy_rank_promotion, "raise"), any_case),
    "x64": (run_in_x64, any_case),
    "threefry_partitionable off": (
        _setting(jax.threefry_partitionable, False),
        lambda case: "split" not in case.needs,
    ),
    "threefry_partitionable on": (_setting(jax.threefry_partitionable, True), any_case),
    "keys of rbg": (part(run_with_default_keys_of, impl="rbg"), has("key")),
    "keys of unsafe_rbg": (part(run_with_default_keys_of, impl="unsafe_rbg"), has("key")),
    "threads": (run_in_threads, any_case),
    "transfer guard, eager": (run_eagerly_under_a_transfer_guard, any_case),
    "transfer guard, under jit": (run_under_a_transfer_guard, any_case),
}


class Refusal(NamedTuple):
    """An error that names the reason, a part of its message, and what docs/modes.md says."""

    error: type[Exception]
    message: str
    reason: str


_ONLY_COUNTERS = Refusal(
    NotImplementedError,
    "must be of threefry2x32 or philox4x32",
    "refused, as it draws JAX's bits for keys of threefry2x32 and philox4x32 only",
)

REFUSALS = {
    ("dropkey_bias", "debug_infs"): Refusal(
        FloatingPointError, "inf", "JAX reports its -inf, which is the result"
    ),
    ("calibration.auroc", "export, symbolic batch"): Refusal(
        ValueError,
        "scores.shape.*Export for a fixed number of examples",
        "refused, as JAX has no cumulative sum of a symbolic size",
    ),
    ("parity.bernoulli.keep_mask", "threefry_partitionable off"): Refusal(
        NotImplementedError,
        "jax_threefry_partitionable=False is not supported",
        "refused, as JAX draws other masks then",
    ),
    ("parity.bernoulli.keep_mask", "keys of rbg"): _ONLY_COUNTERS,
    ("parity.bernoulli.keep_mask", "keys of unsafe_rbg"): _ONLY_COUNTERS,
}
