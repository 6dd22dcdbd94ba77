"""Correct models, of every form: a file for each framework, and those of this repository."""

from correct import (
    equinox,
    examples,
    haiku,
    keras,
    kernels,
    linen,
    meshes,
    nnx,
    padding,
    plain_jax,
    this_package,
)

CASES = {
    "plain JAX": plain_jax.CASES,
    "flax.nnx": nnx.CASES,
    "flax.linen": linen.CASES,
    "Equinox": equinox.CASES,
    "Haiku": haiku.CASES,
    "Keras on JAX": keras.CASES,
    "meshes": meshes.CASES,
    "padding": padding.CASES,
    "kernels": kernels.CASES,
    "this package": this_package.CASES,
    "examples": examples.CASES,
}
