"""Correct models on a mesh of devices, and on several processes."""

import jax
import jax.numpy as jnp
from audit_cases import WEIGHTS, Case, X, at_steps, drop

import dropout_jax
from mesh_models import on_mesh


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


def one_key_for_all_processes(weights, x, key):
    return drop(key, x @ weights)


def arguments_of_processes():
    args_at = at_steps(WEIGHTS, X)
    step = one_key_for_all_processes
    return {"train_step": step, "args_at": args_at, "args_of_process": lambda process: args_at(0)}


CASES = [
    on_mesh(own_key_for_rows, is_quick=True),
    on_mesh(own_key_for_columns),
    on_mesh(layers_in_scan),
    on_mesh(declared_shared_rows),
    Case(one_key_for_all_processes, arguments_of_processes),
]
