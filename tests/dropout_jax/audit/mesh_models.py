"""The steps of the models that run on a mesh of forced devices."""

import jax
from audit_cases import WEIGHTS, Case, X, at_steps
from jax.sharding import AxisType, PartitionSpec

ROWS, WHOLE = PartitionSpec("data"), PartitionSpec()


def device_step(forward):
    """The gradient of a loss on a mesh: the batch is split along "data", the weights are not."""

    def local(weights, x, key):
        def loss(weights):
            return (forward(weights, x, key) ** 2).mean()

        return jax.lax.pmean(jax.grad(loss)(weights), ("data", "tensor"))

    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    specs = WHOLE, ROWS, WHOLE
    return jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=WHOLE, check_vma=False)
    )


def on_mesh(forward, code="", about="", **kwargs):
    """The case of a forward pass on a mesh."""

    def arguments():
        return {"train_step": device_step(forward), "args_at": at_steps(WEIGHTS, X)}

    return Case(forward, arguments, code, about, **kwargs)
