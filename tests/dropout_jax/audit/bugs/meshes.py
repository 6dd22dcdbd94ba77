"""Faulty models on a mesh of devices, and on several processes."""

import jax
import jax.numpy as jnp
from audit_cases import KEY, WEIGHTS, Case, X, at_steps, drop

from mesh_models import on_mesh


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


def own_key_for_layers_only(weights, x, key):
    own = jax.random.fold_in(key, jax.lax.axis_index("data"))
    return drop(own, drop(own, x @ weights) @ weights)  # D05


def one_decision_for_rows(weights, x, key):
    keep = jax.random.bernoulli(key, 0.5, (len(x), 1))  # D08
    return jnp.where(keep, x @ weights / 0.5, 0)


def rows_of_pmap(x, key):
    return drop(key, x)  # D08


def arguments_of_pmap():
    step = jax.pmap(rows_of_pmap, "rows", in_axes=(0, None), devices=jax.devices()[:4])
    return {"train_step": step, "args_at": at_steps(X.reshape(4, 4, 64))}


def key_of_process(weights, x, key):
    return drop(key, x @ weights)  # D08


def arguments_of_processes():
    def args_of_process(process):
        return WEIGHTS, X, jax.random.fold_in(KEY, process)

    args_at = at_steps(WEIGHTS, X)
    return {"train_step": key_of_process, "args_at": args_at, "args_of_process": args_of_process}


CASES = [
    on_mesh(one_key_for_all_rows, "D08", "one key on all devices", is_quick=True),
    on_mesh(one_key_in_scan, "D08", "one key on all devices, in a scan"),
    on_mesh(own_key_for_copies, "D08", "copies of the same data have keys of their own"),
    on_mesh(own_key_for_sum_over_rows, "D08", "a sum over devices is dropped on each"),
    on_mesh(own_key_for_layers_only, "D05", "one key of a device for two layers"),
    on_mesh(one_decision_for_rows, "D08", "small masks: their keys tell"),
    Case(rows_of_pmap, arguments_of_pmap, "D08", "pmap with one key", is_quick=True),
    Case(key_of_process, arguments_of_processes, "D08", "jax.process_index() in the key"),
]
