"""The mask that JAX frameworks draw, jax.random.bernoulli's, bit for bit and in one fusion.

Flax, Equinox, Haiku and Keras on JAX call it.

JAX evaluates its generator as a loop over whole arrays on a CPU; here it is unrolled, and the
comparison is made on integers. Element i, counted in C order, has the block of the counter (0, i);
its number is the top 23 bits of the exclusive or of the block's words (for float64, the top 52 of
the first two), and it is kept when number < ceil(p 2^23), which is u < p for the u in [0, 1) that
JAX makes of those bits. This is jax_threefry_partitionable=True, JAX's default.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dropout_jax import _validation
from dropout_jax.random import threefry2x32

if TYPE_CHECKING:
    from jaxtyping import Array, Bool


def keep_mask(key, rate, shape, *, dtype="float32") -> Bool[Array, "..."]:
    """The mask of `jax.random.bernoulli(key, 1 - rate, shape)`, as peers call it: True is kept.

    Formula: at the head of this module.

    Args:
      key: one PRNG key, typed or raw, of threefry2x32 or philox4x32: the key that reaches the
        framework's bernoulli.
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not.
      shape: the shape of the mask.
      dtype: that of p in JAX's call: "float32", or "float64", which a Python float becomes under
        jax_enable_x64, and which gives another mask (then the rate must be a number).

    Returns:
      A bool array of `shape`.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.
      NotImplementedError: 2^32 elements or more, or another kind of key.

    Source: jax.random.bernoulli and jax.random.uniform of jax 0.10.

    Example:
      >>> import jax
      >>> from dropout_jax.parity import bernoulli
      >>> key = jax.random.key(0)
      >>> ours = bernoulli.keep_mask(key, 0.1, (3, 40))
      >>> bool((ours == jax.random.bernoulli(key, 1 - 0.1, (3, 40))).all())
      True
    """
    key = _validation.check_key(key)
    rate = _validation.check_rate(rate)
    shape = _validation.check_shape(shape)
    if key is None:
        raise TypeError("key=None is not allowed: key must be one PRNG key.")
    if math.prod(shape) >= 2**32:
        raise NotImplementedError(f"shape={shape}: only fewer than 2^32 elements are supported.")
    impl = str(jax.random.key_impl(key))
    if impl not in _BLOCKS:
        raise NotImplementedError(f"a key of {impl}: only {' and '.join(_BLOCKS)} are supported.")
    wide = _validation.check_choice(dtype, "dtype", ("float32", "float64")) == "float64"
    if wide and isinstance(rate, jax.Array):
        _validation.fail(TypeError, "rate", rate, "a Python number for float64", "Pass a number.")
    if wide:
        limit = math.ceil((1 - rate) * 2**52)
        limits = jnp.array([limit >> 32, limit & 0xFFFFFFFF], jnp.uint32)
    else:
        p = 1 - rate if isinstance(rate, jax.Array) else np.float32(1 - rate)
        limits = jnp.ceil(jnp.float32(p) * 2**23).astype(jnp.uint32)[None]
    return _keep_mask(jax.random.key_data(key), limits, impl=impl, shape=shape)


@functools.partial(jax.jit, static_argnames=("impl", "shape"))
def _keep_mask(words, limits, *, impl, shape):
    place, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        place = place + lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    first, second, rest = _BLOCKS[impl](words, place)
    if limits.size == 1:
        return (first ^ second ^ rest) >> 9 < limits[0]
    high, low = first >> 12, (first << 20) | (second >> 12)
    return (high < limits[0]) | ((high == limits[0]) & (low < limits[1]))


def _threefry_block(words, place):
    """The block's two words, and what else JAX xors to them: nothing."""
    zero = jnp.zeros_like(place)
    return *threefry2x32((words[0], words[1]), (zero, place)), zero


def _philox_block(words, place):
    """The first two words of Philox4x32-10's block, and the exclusive or of the others."""
    zero = jnp.zeros_like(place)
    c0, c1, c2, c3 = zero, place, zero, zero
    k0, k1 = words
    for _ in range(10):
        (high0, low0), (high2, low2) = _product(0xD2511F53, c0), _product(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + jnp.uint32(0x9E3779B9), k1 + jnp.uint32(0xBB67AE85)
    return c0, c1, c2 ^ c3


def _product(constant: int, x):
    """The two words of a product of 32-bit words, by halves: there is no uint64 without x64."""
    low, high = jnp.uint32(constant & 0xFFFF), jnp.uint32(constant >> 16)
    x_low, x_high = x & 0xFFFF, x >> 16
    middle = x_high * low + (x_low * low >> 16)
    cross = x_low * high + (middle & 0xFFFF)
    return x_high * high + (middle >> 16) + (cross >> 16), x * jnp.uint32(constant)


_BLOCKS = {"threefry2x32": _threefry_block, "philox4x32": _philox_block}
