"""D08: masks of the devices of a mesh, and of processes that run one program."""

import jax
import jax.numpy as jnp
import pytest
from audit_cases import KEY, WEIGHTS, X, assert_reported, at_steps, drop
from jax.sharding import AxisType, PartitionSpec

import dropout_jax
from dropout_jax import audit

ROWS, WHOLE = PartitionSpec("data"), PartitionSpec()
MESH = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)


def device_step(forward, key_spec=WHOLE):
    """The gradient of a loss on a mesh: the batch is split along "data", the weights are not."""

    def local(weights, x, key):
        def loss(weights):
            return (forward(weights, x, key) ** 2).mean()

        return jax.lax.pmean(jax.grad(loss)(weights), ("data", "tensor"))

    specs = WHOLE, ROWS, key_spec
    return jax.jit(
        jax.shard_map(local, mesh=MESH, in_specs=specs, out_specs=WHOLE, check_vma=False)
    )


def check(forward, **options):
    return audit.check(device_step(forward), args_at=at_steps(WEIGHTS, X), **options)


def accused(findings):
    return [str(finding) for finding in findings if finding.severity != "note"]


def own_key_for_rows(weights, x, key):
    return drop(jax.random.fold_in(key, jax.lax.axis_index("data")), x @ weights)


def own_key_for_columns(weights, x, key):
    """The columns of a matrix split along "tensor" have masks of their own."""
    number = jax.lax.axis_index("tensor")
    weights = jax.lax.dynamic_slice_in_dim(weights, 32 * number, 32, axis=1)
    key = jax.random.fold_in(jax.random.fold_in(key, number), jax.lax.axis_index("data"))
    return jax.lax.all_gather(drop(key, x @ weights), "tensor", axis=1, tiled=True)


def layers_in_scan(weights, x, key):
    def layer(x, number):
        key_of_layer = jax.random.fold_in(jax.random.fold_in(key, number), row_of_mesh())
        return drop(key_of_layer, x @ weights), None

    return jax.lax.scan(layer, x, jnp.arange(3))[0]


def row_of_mesh():
    return jax.lax.axis_index("data")


def declared_shared_rows(weights, x, key):
    return dropout_jax.dropout(x @ weights, 0.3, key=key, broadcast_dims=(0,))


@pytest.mark.parametrize(
    "forward", [own_key_for_rows, own_key_for_columns, layers_in_scan, declared_shared_rows]
)
def test_correct_step_on_a_mesh_is_not_accused(forward):
    assert accused(check(forward)) == []


def one_key_for_all_rows(weights, x, key):
    return drop(key, x @ weights)  # D08


def one_key_in_scan(weights, x, key):
    def layer(x, number):
        return drop(jax.random.fold_in(key, number), x @ weights), None  # D08

    return jax.lax.scan(layer, x, jnp.arange(3))[0]


def own_key_for_copies(weights, x, key):
    names = ("data", "tensor")
    return drop(jax.random.fold_in(key, jax.lax.axis_index(names)), x @ weights)  # D08


def own_key_for_sum_over_rows(weights, x, key):
    total = jax.lax.psum(x, "data") @ weights
    return drop(jax.random.fold_in(key, jax.lax.axis_index("data")), total)  # D08


FAULTY = [one_key_for_all_rows, one_key_in_scan, own_key_for_copies, own_key_for_sum_over_rows]


@pytest.mark.parametrize("forward", FAULTY)
def test_fault_of_devices_is_found(forward):
    assert_reported(check(forward), forward, "D08")


def test_key_reused_in_layers_of_each_device():
    def forward(weights, x, key):
        own = jax.random.fold_in(key, jax.lax.axis_index("data"))
        return drop(own, drop(own, x @ weights) @ weights)  # D05

    assert_reported(check(forward), forward, "D05")


def test_small_masks_are_compared_by_their_keys():
    def drop_rows(weights, x, key):
        keep = jax.random.bernoulli(key, 0.5, (len(x), 1))  # D08
        return jnp.where(keep, x @ weights / 0.5, 0)

    findings = check(drop_rows, shared=[])
    assert "D08" in {finding.code for finding in findings}


def test_pmapped_step_with_one_key():
    def local(x, key):
        return drop(key, x)  # D08

    step = jax.pmap(local, "rows", in_axes=(0, None), devices=jax.devices()[:4])
    findings = audit.check(step, args_at=at_steps(X.reshape(4, 4, 64)))
    assert_reported(findings, local, "D08")


def forward_of_process(weights, x, key):
    return drop(key, x @ weights)  # D08


@pytest.mark.parametrize("is_own_key", [False, True])
def test_processes_must_pass_one_key(is_own_key):
    def args_of_process(process):
        return WEIGHTS, X, jax.random.fold_in(KEY, process * is_own_key)

    findings = audit.check(
        forward_of_process, args_at=at_steps(WEIGHTS, X), args_of_process=args_of_process
    )
    if is_own_key:
        assert_reported(findings, forward_of_process, "D08")
    else:
        assert accused(findings) == []
