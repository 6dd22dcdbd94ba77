"""Faulty models, written afresh from public reports: a file for each framework."""

from bugs import equinox, haiku, keras, kernels, linen, meshes, nnx, padding, plain_jax

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
}
