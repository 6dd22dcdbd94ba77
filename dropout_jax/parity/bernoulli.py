"""Draw the mask of jax.random.bernoulli, bit for bit and in one fusion.

Flax, Equinox, Haiku and Keras on JAX draw their masks with it.

On a CPU, JAX evaluates its generator as a loop over whole arrays; here it is unrolled, and the
comparison is on integers. Element i, in C order, has the block of the counter (0, i). Its number is
the top 23 bits of the exclusive or of the words of the block (for float64, the top 52 bits of the
first two words). The element is kept if number < ceil(p 2^23), which equals u < p for the u in
[0, 1) that JAX computes from those bits. This is jax_threefry_partitionable=True, JAX's default;
with False JAX counts otherwise, and keys of threefry2x32 are refused.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from dropout_jax import _validation
from dropout_jax.random import threefry2x32

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, UInt32


def keep_mask(
    key: jax.Array, rate: ArrayLike, shape: Sequence[int], *, dtype: str = "float32"
) -> Bool[Array, "..."]:
    """Draw the mask of `jax.random.bernoulli(key, 1 - rate, shape)`: True is kept.

    Formula: see the docstring of this module.

    Args:
      key: one PRNG key, typed or raw, of threefry2x32 or philox4x32: the key that the
        framework passes to its bernoulli.
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not. (JAX
        draws another mask for a float16 or bfloat16 p, so a rate of these is refused.)
      shape: the shape of the mask.
      dtype: the dtype of p in the call of JAX: "float32", or "float64", which gives another mask.
        Under jax_enable_x64 a Python float is float64. Then the rate must be a number.

    Returns:
      A bool array of `shape`.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.
      NotImplementedError: for 2^32 elements or more, a key of another implementation, or a key of
        threefry2x32 where jax_threefry_partitionable is False.

    Source: jax.random.bernoulli and jax.random.uniform of jax 0.10.

    Example:
      >>> import jax
      >>> from dropout_jax.parity import bernoulli
      >>> key = jax.random.key(0)
      >>> ours = bernoulli.keep_mask(key, 0.1, (3, 40))
      >>> bool((ours == jax.random.bernoulli(key, 1 - 0.1, (3, 40))).all())
      True
    """
    typed_key = _validation.check_key(key)
    p = _check_rate(rate)
    shape = _validation.check_shape(shape)
    dtype = _validation.check_choice(dtype, "dtype", ("float32", "float64"))
    if typed_key is None:
        raise TypeError("key=None is not allowed: key must be one PRNG key. Pass the layer's key.")
    size = math.prod(shape)
    if not jax.export.is_symbolic_dim(size) and size >= 2**32:
        raise NotImplementedError(
            f"shape={shape} is not supported: it must have fewer than 2^32 elements. Draw parts of "
            "the array with keys of their own."
        )
    impl = _check_impl(typed_key)
    if dtype == "float64":
        if isinstance(rate, jax.Array):
            allowed = "a Python number for float64"
            _validation.fail(TypeError, "rate", rate, allowed, "Pass float(rate).")
        limit = math.ceil(p * 2**52)
        limits = _validation.put_number([limit >> 32, limit & 0xFFFFFFFF], np.uint32)
    else:
        limits = _compute_limits(jax.device_put(p))  # explicit, as jax.transfer_guard wants
    return _draw_mask(jax.random.key_data(typed_key), limits, impl=impl, shape=shape)


@jax.jit
def _compute_limits(p: Float[Array, ""]) -> UInt32[Array, "1"]:
    # A traced rate may be outside [0, 1] or NaN, whose conversion depends on the platform.
    share = jnp.where(p > 0, jnp.minimum(p, 1), 0)
    return jnp.ceil(share * 2**23).astype(jnp.uint32)[None]


def _check_rate(rate: ArrayLike) -> float | jax.Array:
    """Return p = 1 - rate: in float64 of a known rate, in float32 of a traced one."""
    dtype = getattr(rate, "dtype", np.dtype(np.float32))
    if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4:
        allowed = "a Python number or of float32 (JAX draws another mask for p of another dtype)"
        _validation.fail(TypeError, "rate", rate, allowed, "Convert it: jnp.float32(rate).")
    if isinstance(rate, Tracer):
        _validation.check_rate(rate)
        return (1 - jnp.asarray(rate)).astype(jnp.float32)
    if isinstance(rate, np.ndarray | jax.Array) and rate.ndim == 0:
        rate = np.asarray(jax.device_get(rate))[()]
    return 1 - _validation.check_probability(rate, "rate")


def _check_impl(key: jax.Array) -> str:
    impl = str(jax.random.key_impl(key))
    if impl not in _BLOCKS:
        raise NotImplementedError(
            f"a key of {impl} is not supported: it must be of {' or '.join(_BLOCKS)}. Pass "
            "jax.random.key(seed, impl='threefry2x32'), in the framework too."
        )
    is_partitionable = jax.config.jax_threefry_partitionable  # pyright: ignore
    if impl == "threefry2x32" and not is_partitionable:
        raise NotImplementedError(
            "jax_threefry_partitionable=False is not supported: JAX draws other masks then. Call "
            "jax.config.update('jax_threefry_partitionable', True), which is JAX's default."
        )
    return impl


@functools.partial(jax.jit, static_argnames=("impl", "shape"))
def _draw_mask(
    words: UInt32[Array, " words"],
    limits: UInt32[Array, " limits"],
    *,
    impl: str,
    shape: tuple[int, ...],
) -> Bool[Array, "..."]:
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        index = index + lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    first, second, rest = _BLOCKS[impl](words, index)
    if limits.size == 1:
        return (first ^ second ^ rest) >> 9 < limits[0]
    high, low = first >> 12, (first << 20) | (second >> 12)
    return (high < limits[0]) | ((high == limits[0]) & (low < limits[1]))


Block = tuple[jax.Array, jax.Array, jax.Array]


def _compute_threefry_block(words: UInt32[Array, "2"], index: UInt32[Array, "..."]) -> Block:
    """Compute the two words of the block, and the third operand of the xor, 0."""
    zero = jnp.zeros_like(index)
    return *threefry2x32((words[0], words[1]), (zero, index)), zero


def _compute_philox_block(words: UInt32[Array, "2"], index: UInt32[Array, "..."]) -> Block:
    """Compute the first two words of the Philox4x32-10 block, and the xor of the others."""
    zero = jnp.zeros_like(index)
    c0, c1, c2, c3 = zero, index, zero, zero
    k0, k1 = words
    for _ in range(10):
        (high0, low0), (high2, low2) = _multiply(0xD2511F53, c0), _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + jnp.uint32(0x9E3779B9), k1 + jnp.uint32(0xBB67AE85)
    return c0, c1, c2 ^ c3


def _multiply(
    constant: int, x: UInt32[Array, "*shape"]
) -> tuple[UInt32[Array, "*shape"], UInt32[Array, "*shape"]]:
    """Compute the two words of a product of 32-bit words, by halves: no uint64 without x64."""
    low, high = jnp.uint32(constant & 0xFFFF), jnp.uint32(constant >> 16)
    x_low, x_high = x & 0xFFFF, x >> 16
    middle = x_high * low + (x_low * low >> 16)
    cross = x_low * high + (middle & 0xFFFF)
    return x_high * high + (middle >> 16) + (cross >> 16), x * jnp.uint32(constant)


_BLOCKS = {"threefry2x32": _compute_threefry_block, "philox4x32": _compute_philox_block}
