"""Masks on many devices: the same for any mesh and axis, and no communication to make them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import find_collectives
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from marks import ONE_OP_A_FAMILY, slow
from op_registry import sample

from dropout_jax import apply_mask, dropout, fold, keep_mask

KINDS = pytest.mark.parametrize("kind", [AxisType.Auto, slow(AxisType.Explicit)], ids=str)


def on_mesh(x, axis, devices, kind):
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(kind,))
    spec = [None] * x.ndim
    spec[axis] = "data"
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))


def grad_too(x, key, dims=()):
    """The op's value and its pullback of x."""
    y, pullback = jax.vjp(lambda x: dropout(x, 0.3, key=key, broadcast_dims=dims), x)
    return y, pullback(x)[0]


KINDS_OF_MESH = (AxisType.Auto, AxisType.Explicit)
SHARED = ((), (0,), (1,), (2,))
COMBINATIONS = list(itertools.product(KINDS_OF_MESH, (1, 2, 4, 8), (0, 1, 2), SHARED))
# Each number of devices meets each axis in one of these.
QUICK = {
    (KINDS_OF_MESH[(d + axis) % 2], 2**d, axis, SHARED[(d + axis) % 4])
    for d in range(1, 4)
    for axis in range(3)
}


@pytest.mark.parametrize(
    ("kind", "devices", "axis", "dims"),
    [values if values in QUICK else slow(*values) for values in COMBINATIONS],
    ids=str,
)
def test_same_values_on_any_mesh_and_axis_without_collectives(kind, devices, axis, dims, key):
    x = sample((8, 16, 256))
    expected = dropout(x, 0.3, key=key, broadcast_dims=dims)
    sharded = on_mesh(x, axis, devices, kind)
    with jax.set_mesh(sharded.sharding.mesh):
        fn = jax.jit(lambda x, k: grad_too(x, k, dims))
        y, pulled = fn(sharded, key)
        program = fn.lower(sharded, key).compile()
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(pulled, expected)
    assert y.sharding.is_equivalent_to(sharded.sharding, x.ndim)
    assert not find_collectives(program)


@KINDS
@ONE_OP_A_FAMILY
def test_every_op_is_the_same_with_its_batch_sharded(kind, op, key):
    x = sample((8, 6, 64))
    expected = op.fn(x, 0.3, key=key)
    sharded = on_mesh(x, 0, 8, kind)
    with jax.set_mesh(sharded.sharding.mesh):
        fn = jax.jit(lambda x, k: op.fn(x, 0.3, key=k))
        y = fn(sharded, key)
        program = fn.lower(sharded, key).compile()
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6 if op.ulps else 0)
    assert not find_collectives(program)


@KINDS
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((16, 8, 16), 1),
        ((8, 16), 1),
        *(slow(*case) for case in [((16, 8, 16), 0), ((8,), 0), ((24, 5), 0)]),
    ],
)
def test_short_last_axes_need_no_collective_either(kind, shape, axis, key):
    sharded = on_mesh(sample(shape), axis, 8, kind)
    with jax.set_mesh(sharded.sharding.mesh):
        fn = jax.jit(lambda x, k: dropout(x, 0.3, key=k))
        y, program = fn(sharded, key), fn.lower(sharded, key).compile()
    np.testing.assert_array_equal(y, dropout(sample(shape), 0.3, key=key))
    assert not find_collectives(program)


@KINDS
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_packed_axis_before_the_last_needs_no_collective(kind, axis, key):
    """Shards of the packed axis, which is 1, are multiples of 32; those of axis 2 have 2 places."""
    x = sample((8, 256, 16))
    sharded = on_mesh(x, axis, 8, kind)
    with jax.set_mesh(sharded.sharding.mesh):
        fn = jax.jit(grad_too)
        values, program = fn(sharded, key), fn.lower(sharded, key).compile()
    for y in values:
        np.testing.assert_array_equal(y, dropout(x, 0.3, key=key))
    assert not find_collectives(program)


@KINDS
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((8, 104), 1),
        ((2, 104, 40), 1),
        *(slow(*case) for case in [((8, 96), 1), ((3, 40), 1), ((2, 128, 5), 1)]),
    ],
)
def test_right_whatever_the_shards(kind, shape, axis, key):
    """Shards of no multiple of 32: right, perhaps with communication."""
    x = sample(shape)
    sharded = on_mesh(x, axis, 8, kind)
    with jax.set_mesh(sharded.sharding.mesh):
        y = jax.jit(lambda x, k: dropout(x, 0.3, key=k))(sharded, key)
    np.testing.assert_array_equal(y, dropout(x, 0.3, key=key))


@KINDS
def test_two_axis_mesh(kind, key):
    x = sample((8, 6, 128))
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    spec = PartitionSpec("data", None, "model")
    sharded = jax.device_put(x, NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x, k: dropout(x, 0.3, key=k))(sharded, key)
    np.testing.assert_array_equal(y, dropout(x, 0.3, key=key))


@KINDS
def test_eager_calls_without_a_mesh_in_context(kind, key):
    x = sample((16, 64))
    sharded = on_mesh(x, 0, 8, kind)
    y = dropout(sharded, 0.3, key=key)
    np.testing.assert_array_equal(y, dropout(x, 0.3, key=key))
    assert y.sharding.is_equivalent_to(sharded.sharding, x.ndim)


def test_apply_mask_takes_a_replicated_mask_on_an_explicit_mesh(key):
    x = sample((16, 64))
    keep = keep_mask(key, 0.3, x.shape)
    sharded = on_mesh(x, 0, 8, AxisType.Explicit)
    with jax.set_mesh(sharded.sharding.mesh):
        y = apply_mask(sharded, np.asarray(keep), 0.3)
    np.testing.assert_array_equal(y, apply_mask(x, keep, 0.3))


def test_under_shard_map_each_device_may_fold_its_own_key(key):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    x = jnp.ones((8, 64))

    def local(x, rate):
        return dropout(x, rate[0], key=fold(key, jax.lax.axis_index("data")))

    mapped = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(spec, spec), out_specs=spec))
    rates = jnp.linspace(0, 0.7, 8)
    loop = [dropout(x[i : i + 1], rates[i], key=fold(key, i)) for i in range(8)]
    np.testing.assert_array_equal(mapped(x, rates), jnp.concatenate(loop))
