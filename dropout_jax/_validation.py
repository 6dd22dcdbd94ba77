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


def fail(kind: type[Exception], name: str, value: Any, allowed: str, remedy: str) -> NoReturn:
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
        fail(TypeError, name, value, allowed, "Write 0.0 or 1.0 if that is what is meant.")
    is_array = isinstance(value, np.ndarray | jax.Array)
    if is_array and value.ndim:
        fail(
            ValueError,
            name,
            value,
            "a scalar, one rate for the whole call",
            "For a tensor of rates map over it: jax.vmap(lambda x, rate, key: ...).",
        )
    kinds = (jnp.floating, jnp.integer)
    if is_array and not any(jnp.issubdtype(value.dtype, kind) for kind in kinds):
        fail(TypeError, name, value, allowed, "Pass a float.")
    if not is_array and not isinstance(value, int | float | np.integer | np.floating):
        fail(TypeError, name, value, allowed, "Pass a float such as 0.1.")
    if _is_traced(value):
        return jnp.asarray(value, jnp.float32)
    number = float(value)
    if not 0 <= number <= 1:  # also refuses NaN
        remedy = "A rate is the share that is dropped: 0.1 drops a tenth."
        if 1 < number <= 100:
            remedy += f" For {number:g} per cent write {number / 100:g}."
        fail(ValueError, name, value, allowed, remedy)
    if _LARGEST_RATE_BELOW_ONE <= number < 1:
        fail(
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
        fail(TypeError, name, value, allowed, "Pass the array to drop from.")
    if not isinstance(value, np.ndarray | np.generic | jax.Array):
        fail(TypeError, name, value, allowed, f"Convert it first: jnp.asarray({name}).")
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        fail(
            TypeError,
            name,
            value,
            allowed + f", not {value.dtype}",
            f"Scaling by 1/(1-rate) needs fractions: {name}.astype(jnp.float32).",
        )
    return jnp.asarray(value)


def real_array(value: Any, name: str = "x") -> jax.Array:
    """Return a floating JAX array of any shape."""
    array_ = array(value, name)
    if jnp.iscomplexobj(array_):
        fail(
            TypeError,
            name,
            value,
            f"a floating-point array, not {array_.dtype}",
            "Drop the real and the imaginary part by themselves.",
        )
    return array_


def mask(
    value: Any, shape: tuple[int, ...], name: str = "keep", of: str = "the shape of x"
) -> jax.Array:
    """Return a bool array that broadcasts to `shape`, that of `of`, without changing it."""
    allowed = f"a bool array that broadcasts to {of}"
    if not isinstance(value, np.ndarray | np.generic | jax.Array) or value.dtype != bool:
        fail(TypeError, name, value, allowed, f"Make it one: {name} != 0.")
    if not _broadcasts(value.shape, shape):
        fail(
            ValueError,
            f"{name}.shape",
            tuple(value.shape),
            f"broadcastable to {of}, {tuple(shape)}",
            "Use size 1 for an axis along which the mask is shared.",
        )
    return jnp.asarray(value)


def key(value: Any, name: str = "key") -> jax.Array | None:
    """Return one typed PRNG key, or None, which means evaluation."""
    allowed = "one PRNG key (training) or None (evaluation)"
    if value is None:
        return None
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        fail(TypeError, name, value, allowed, f"Make a key of the seed: jax.random.key({value}).")
    if not isinstance(value, np.ndarray | jax.Array):
        fail(TypeError, name, value, allowed, "Make one with jax.random.key(seed).")
    if not isinstance(value, jax.Array) or not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = _wrap(value, name, allowed)
    if value.ndim:
        fail(
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
        fail(TypeError, name, value, allowed, "Make one with jax.random.key(seed).")
    width = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape[0]
    if value.ndim == 0 or value.shape[-1] != width:
        fail(
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
        fail(TypeError, name, value, allowed, "Negative numbers count from the last axis.")
    if not -ndim <= number < ndim:
        fail(ValueError, name, value, allowed, "Negative numbers count from the last axis.")
    return number % ndim


def axes(values: Any, ndim: int, name: str = "broadcast_dims") -> tuple[int, ...]:
    """Return the axes as sorted numbers from 0 to ndim - 1."""
    numbers = sorted(axis(value, ndim, name) for value in sequence(values, name))
    if len(set(numbers)) != len(numbers):
        fail(ValueError, name, values, "without repeats", "Name each axis once.")
    return tuple(numbers)


def sequence(values: Any, name: str) -> tuple:
    """Return a tuple of what a tuple, list or range holds."""
    if not isinstance(values, tuple | list | range):
        fail(TypeError, name, values, "a tuple or list of axes", f"For one axis write ({values},).")
    return tuple(values)


def shape(value: Any, name: str = "shape") -> tuple[int, ...]:
    """Return a tuple of sizes."""
    allowed = "a tuple of sizes, integers of at least 0"
    try:
        if isinstance(value, str):
            raise TypeError
        sizes = tuple(operator.index(size) for size in value)
    except TypeError:
        fail(TypeError, name, value, allowed, "Pass x.shape.")
    if any(size < 0 for size in sizes):
        fail(ValueError, name, value, allowed, "Pass x.shape.")
    if math.prod(sizes[:-1]) > 2**32 or sizes[-1:] > (2**34,):
        fail(
            ValueError,
            name,
            value,
            "at most 2^32 rows of 2^34 elements",
            "Split the array and give each part its own key.",
        )
    return sizes


def integer(value: Any, name: str, low: int, high: int | None = None) -> int:
    """Return a Python integer from low to high."""
    allowed = (
        f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    )
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        fail(TypeError, name, value, allowed, f"Pass a plain integer such as {max(low, 1)}.")
    if number < low or (high is not None and number > high):
        fail(ValueError, name, value, allowed, f"The smallest that works is {low}.")
    return number


def start(value: Any, name: str = "start") -> jax.Array | None:
    """Return a row number of at least 0 as uint32, traced or not, or None."""
    if value is None:
        return None
    allowed = "an integer of at least 0, or a scalar integer array"
    if isinstance(value, jax.Array) and value.ndim == 0 and value.dtype != bool:
        if jnp.issubdtype(value.dtype, jnp.integer):
            return value.astype(jnp.uint32)
        fail(TypeError, name, value, allowed, "It counts rows.")
    if isinstance(value, jax.Array):
        fail(TypeError, name, value, allowed, "It counts rows.")
    return jnp.uint32(integer(value, name, 0, 2**32 - 1))


def at_least_axes(value: jax.Array, count: int, name: str) -> None:
    """Refuse an array with fewer axes."""
    if value.ndim < count:
        fail(
            ValueError,
            f"{name}.shape",
            tuple(value.shape),
            f"of at least {count} axes",
            f"Add an axis: {name}[None].",
        )


def between_axes(value: jax.Array, low: int, high: int, name: str, layout: str) -> None:
    """Refuse an array with too few or too many axes."""
    if not low <= value.ndim <= high:
        fail(
            ValueError,
            f"{name}.shape",
            tuple(value.shape),
            f"of {low} to {high} axes, {layout}",
            "Reshape or map over it with jax.vmap.",
        )


def choice(value: Any, name: str, allowed: tuple[str, ...]) -> str:
    """Return one of a few words."""
    if not isinstance(value, str) or value not in allowed:
        kind = ValueError if isinstance(value, str) else TypeError
        words = " or ".join(map(repr, allowed))
        fail(kind, name, value, words, f"The default is {allowed[0]!r}.")
    return value


def positive(value: Any, name: str) -> float:
    """Return a positive, finite number."""
    allowed = "a positive, finite number"
    if isinstance(value, bool | np.bool_) or not isinstance(
        value, int | float | np.integer | np.floating
    ):
        fail(TypeError, name, value, allowed, "Pass a plain number.")
    if not 0 < value < math.inf:
        fail(ValueError, name, value, allowed, "Pass a plain number above 0.")
    return float(value)


def flag(value: Any, name: str) -> bool:
    """Return a Python bool."""
    if not isinstance(value, bool | np.bool_):
        fail(TypeError, name, value, "True or False, known when tracing", "Pass a plain bool.")
    return bool(value)


def number(value: Any, name: str) -> float:
    """Return a finite Python number."""
    allowed = "a finite Python number"
    plain = int | float | np.integer | np.floating
    if isinstance(value, bool | np.bool_) or not isinstance(value, plain):
        fail(TypeError, name, value, allowed, "To learn it, multiply the query by it instead.")
    if not math.isfinite(value):
        fail(ValueError, name, value, allowed, "Leave it out for the default.")
    return float(value)


def attention_shapes(query: jax.Array, key: jax.Array) -> None:
    """Refuse a key that does not fit the query, both (batch, positions, heads, dim)."""
    if key.dtype != query.dtype:
        fail(TypeError, "key.dtype", key.dtype, f"that of the query, {query.dtype}", "Convert it.")
    if query.ndim != key.ndim:
        allowed = f"of as many axes as the query's {tuple(query.shape)}"
        fail(ValueError, "key.shape", tuple(key.shape), allowed, "4 axes go with 4, 3 with 3.")
    batch, _, heads, dim = query.shape
    fits = (key.shape[0], key.shape[3]) == (batch, dim)
    if not fits or heads % max(key.shape[2], 1) or key.shape[2] == 0 < heads:
        fail(
            ValueError,
            "key.shape",
            tuple(key.shape),
            f"({batch}, keys, key heads, {dim}), its heads a divisor of the query's {heads}",
            "Batch and dim are the query's, and 4 axes go with 4, 3 with 3.",
        )


def lengths(value: Any, batch: int, name: str) -> jax.Array:
    """Return int32 lengths, one for each row of the batch."""
    allowed = f"{batch} integers, one for each row of the batch"
    is_array = isinstance(value, np.ndarray | jax.Array)
    if not is_array or not jnp.issubdtype(value.dtype, jnp.integer):
        fail(TypeError, name, value, allowed, "Pass jnp.array([...]).")
    if value.shape != (batch,):
        fail(ValueError, f"{name}.shape", tuple(value.shape), f"({batch},)", "One for each row.")
    return jnp.asarray(value, jnp.int32)


def scalar(value: Any, name: str) -> jax.Array:
    """Return a real scalar array, traced or not, in its own floating dtype."""
    return _floats(value, name, "a real number or a scalar floating array", shape_=())


def broadcastable(value: Any, shape_: tuple[int, ...] | None, name: str) -> jax.Array:
    """Return a floating array that broadcasts to a shape without changing it (None: any shape)."""
    allowed = "a real number or a floating array"
    if shape_ is not None:
        allowed += f" that broadcasts to {tuple(shape_)}"
    return _floats(value, name, allowed, shape_)


def _floats(value: Any, name: str, allowed: str, shape_: tuple[int, ...] | None) -> jax.Array:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_array = isinstance(value, np.ndarray | np.generic | jax.Array)
    if not is_number and not (is_array and jnp.issubdtype(value.dtype, jnp.floating)):
        fail(TypeError, name, value, allowed, f"Convert it: jnp.asarray({name}, jnp.float32).")
    made = jnp.asarray(value, None if is_array else jnp.float32)
    if shape_ is not None and not _broadcasts(made.shape, shape_):
        fail(
            ValueError,
            f"{name}.shape",
            tuple(made.shape),
            allowed,
            "Use size 1 where it is shared.",
        )
    return made


def _broadcasts(small: tuple[int, ...], shape_: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(small, shape_) == tuple(shape_)
    except ValueError:
        return False


def floating(value: Any, name: str) -> np.dtype:
    """Return a floating dtype."""
    allowed = "a floating dtype such as jnp.float32"
    try:
        dtype = jnp.dtype("none" if value is None else value)
    except TypeError:
        fail(TypeError, name, value, allowed, "Pass logits.dtype.")
    if not jnp.issubdtype(dtype, jnp.floating):
        fail(TypeError, name, value, allowed, "Pass logits.dtype.")
    return dtype


def same_form(value: Any, like: Any, name: str, like_name: str) -> None:
    """Refuse an array of another shape or dtype."""
    for part in ("shape", "dtype"):
        found, wanted = getattr(value, part, None), getattr(like, part)
        if found != wanted:
            fail(
                ValueError,
                f"{name}.{part}",
                found,
                f"that of {like_name}, {wanted}",
                "Reshape it." if part == "shape" else f"Convert it: {name}.astype({wanted}).",
            )


def labels(value: Any, shape_: tuple[int, ...], classes: int) -> jax.Array:
    """Return an integer array of a shape, whose values (if known) are classes."""
    allowed = f"integers from 0 to {classes - 1}, of shape {tuple(shape_)}"
    is_array = isinstance(value, np.ndarray | np.generic | jax.Array)
    if not is_array or not jnp.issubdtype(value.dtype, jnp.integer):
        fail(TypeError, "labels", value, allowed, "Convert them: labels.astype(int).")
    if value.shape != tuple(shape_):
        fail(ValueError, "labels.shape", tuple(value.shape), allowed, "One label an example.")
    if not _is_traced(value) and value.size and (value.min() < 0 or value.max() >= classes):
        fail(ValueError, "labels", value, allowed, "Is a class missing from the last axis?")
    return jnp.asarray(value)


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
        fail(TypeError, name, value, allowed, "Name the site, fold(key, 'block', 3, 'attn').")
    if not 0 <= value < 2**32:
        fail(ValueError, name, value, allowed, "Fold a large number in as two: n >> 32, n & mask.")
    return int(value)
