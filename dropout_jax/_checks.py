"""Every argument error: the argument, its value, what is allowed, and the remedy."""

from __future__ import annotations

import math
import operator
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

# The smallest keep probability is one step of 2^-16; half a step rounds to nothing.
_LARGEST_RATE_BELOW_ONE = 1 - 2.0**-17


def _fail(kind: type[Exception], name: str, value: Any, allowed: str, remedy: str) -> NoReturn:
    shown = repr(value)
    if len(shown) > 200:
        shown = shown[:200] + "..."
    raise kind(f"{name}={shown} is not allowed: {name} must be {allowed}. {remedy}")


def _is_traced(value: Any) -> bool:
    return isinstance(value, Tracer)


def rate(value: Any, name: str = "rate") -> float | jax.Array:
    """Return a Python float for a Python or NumPy number, and the array for a JAX array.

    A concrete value is checked here; a traced one cannot be, and gives NaN in the op.
    """
    allowed = "a probability of dropping, a real number in [0, 1]"
    if isinstance(value, bool | np.bool_) or getattr(value, "dtype", None) == np.bool_:
        _fail(TypeError, name, value, allowed, "Write 0.0 or 1.0 if that is what is meant.")
    is_array = isinstance(value, np.ndarray | jax.Array)
    if is_array and value.ndim:
        _fail(
            ValueError,
            name,
            value,
            "a scalar, one rate for the whole call",
            "For a tensor of rates map over it: jax.vmap(lambda x, rate, key: ...).",
        )
    if is_array and not jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.kind not in "iu":
        _fail(TypeError, name, value, allowed, "Pass a float.")
    if not is_array and not isinstance(value, int | float | np.integer | np.floating):
        _fail(TypeError, name, value, allowed, "Pass a float such as 0.1.")
    if _is_traced(value):
        return jnp.asarray(value, jnp.float32)
    number = float(value)
    if not 0 <= number <= 1:  # also refuses NaN
        remedy = "A rate is the share that is dropped: 0.1 drops a tenth."
        if 1 < number <= 100:
            remedy += f" For {number:g} per cent write {number / 100:g}."
        _fail(ValueError, name, value, allowed, remedy)
    if _LARGEST_RATE_BELOW_ONE <= number < 1:
        _fail(
            ValueError,
            name,
            value,
            "below 1 - 2^-17, or 1",
            "The mask resolves probabilities to 2^-16, so this rate would drop everything: "
            "pass 1.0 to drop everything.",
        )
    return jnp.asarray(value, jnp.float32) if isinstance(value, jax.Array) else number


def array(value: Any, name: str = "x") -> jax.Array:
    """Return a floating or complex JAX array of any shape."""
    allowed = "a floating-point or complex JAX or NumPy array"
    if value is None:
        _fail(TypeError, name, value, allowed, "Pass the array to drop from.")
    if not isinstance(value, np.ndarray | np.generic | jax.Array):
        _fail(TypeError, name, value, allowed, f"Convert it first: jnp.asarray({name}).")
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        _fail(
            TypeError,
            name,
            value,
            allowed + f", not {value.dtype}",
            f"Scaling by 1/(1-rate) needs fractions: {name}.astype(jnp.float32).",
        )
    return jnp.asarray(value)


def mask(value: Any, shape: tuple[int, ...], name: str = "keep") -> jax.Array:
    """Return a bool array that broadcasts to `shape` without changing it."""
    allowed = "a bool array (True is kept) that broadcasts to the shape of x"
    if not isinstance(value, np.ndarray | np.generic | jax.Array) or value.dtype != bool:
        _fail(TypeError, name, value, allowed, f"Make it one: {name} != 0.")
    try:
        fits = np.broadcast_shapes(value.shape, shape) == tuple(shape)
    except ValueError:
        fits = False
    if not fits:
        _fail(
            ValueError,
            f"{name}.shape",
            tuple(value.shape),
            f"broadcastable to the shape of x, {tuple(shape)}",
            "Use size 1 for an axis along which the mask is shared.",
        )
    return jnp.asarray(value)


def key(value: Any, name: str = "key") -> jax.Array | None:
    """Return one typed PRNG key, or None, which means evaluation."""
    allowed = "one PRNG key (training) or None (evaluation)"
    if value is None:
        return None
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        _fail(TypeError, name, value, allowed, f"Make a key of the seed: jax.random.key({value}).")
    if not isinstance(value, np.ndarray | jax.Array):
        _fail(TypeError, name, value, allowed, "Make one with jax.random.key(seed).")
    if not isinstance(value, jax.Array) or not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = _wrap(value, name, allowed)
    if value.ndim:
        _fail(
            ValueError,
            f"{name}.shape",
            tuple(value.shape),
            "(), one key",
            f"For a batch of keys map over it: jax.vmap(lambda {name}: ...)(keys).",
        )
    return value


def _wrap(value: Any, name: str, allowed: str) -> jax.Array:
    """Turn the raw words of jax.random.PRNGKey into a typed key of the default implementation."""
    if value.dtype != jnp.uint32:
        _fail(TypeError, name, value, allowed, "Make one with jax.random.key(seed).")
    width = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape[0]
    if value.ndim == 0 or value.shape[-1] != width:
        _fail(
            ValueError,
            f"{name}.shape",
            tuple(value.shape),
            f"({width},) for a raw key of the default implementation",
            "Use a typed key, jax.random.key(seed), which says its implementation.",
        )
    return jax.random.wrap_key_data(value)


def axis(value: Any, ndim: int, name: str) -> int:
    """Return the axis as a number from 0 to ndim - 1."""
    allowed = f"an integer from {-ndim} to {ndim - 1} for an array of {ndim} axes"
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        _fail(TypeError, name, value, allowed, "Negative numbers count from the last axis.")
    if not -ndim <= number < ndim:
        _fail(ValueError, name, value, allowed, "Negative numbers count from the last axis.")
    return number % ndim


def axes(values: Any, ndim: int, name: str = "broadcast_dims") -> tuple[int, ...]:
    """Return the axes as sorted numbers from 0 to ndim - 1."""
    if not isinstance(values, tuple | list):
        _fail(
            TypeError, name, values, "a tuple or list of axes", f"For one axis write ({values},)."
        )
    numbers = sorted(axis(value, ndim, name) for value in values)
    if len(set(numbers)) != len(numbers):
        _fail(ValueError, name, values, "without repeats", "Name each axis once.")
    return tuple(numbers)


def shape(value: Any, name: str = "shape") -> tuple[int, ...]:
    """Return a tuple of sizes."""
    allowed = "a tuple of sizes, integers of at least 0"
    try:
        if isinstance(value, str):
            raise TypeError
        sizes = tuple(operator.index(size) for size in value)
    except TypeError:
        _fail(TypeError, name, value, allowed, "Pass x.shape.")
    if any(size < 0 for size in sizes):
        _fail(ValueError, name, value, allowed, "Pass x.shape.")
    if math.prod(sizes[:-1]) > 2**32 or sizes[-1:] > (2**34,):
        _fail(
            ValueError,
            name,
            value,
            "at most 2^32 rows of 2^34 elements",
            "Split the array and give each part its own key.",
        )
    return sizes


def path_part(value: Any, name: str = "path") -> Any:
    """Return a string as it is, and an integer as one word that fits 32 bits."""
    allowed = "made of strings and integers from 0 to 2^32 - 1"
    if isinstance(value, str):
        return value
    if isinstance(value, jax.Array) and value.ndim == 0 and value.dtype.kind in "iu":
        if _is_traced(value):
            return value
        value = int(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        _fail(TypeError, name, value, allowed, "Name the site, fold(key, 'block', 3, 'attn').")
    if not 0 <= value < 2**32:
        _fail(ValueError, name, value, allowed, "Fold a large number in as two: n >> 32, n & mask.")
    return int(value)
