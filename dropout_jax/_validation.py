"""Check arguments. Every error names the argument, its value, what is allowed, and a remedy."""

from __future__ import annotations

import functools
import math
import operator
from typing import Any, NoReturn

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike

_NUMBER = int | float | np.integer | np.floating

_INT32_MAX = 2**31 - 1
# float8_e8m0fnu has no 0; the others have no NaN.
_UNUSABLE_DTYPES = ("float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn", "float8_e8m0fnu")


def fail(error: type[Exception], name: str, value: object, allowed: str, remedy: str) -> NoReturn:
    """Raise an error about an argument."""
    text = repr(value)
    if len(text) > 200:
        text = text[:200] + "..."
    raise error(f"{name}={text} is not allowed: {name} must be {allowed}. {remedy}")


def check_rate(value: Any, name: str = "rate") -> float | jax.Array:
    """Return a Python float for a Python or NumPy number, and the array for a JAX array.

    A known value outside [0, 1] is an error. A traced one cannot be checked; the op gives NaN.
    """
    allowed = "a probability of dropping, a real number in [0, 1]"
    if isinstance(value, bool | np.bool_) or getattr(value, "dtype", None) == np.bool_:
        fail(TypeError, name, value, allowed, "Pass 0.0 or 1.0 instead of a bool.")
    if isinstance(value, np.ndarray | jax.Array):
        _check_rate_array(value, name, allowed)
    elif not isinstance(value, _NUMBER):
        fail(TypeError, name, value, allowed, "Pass a float such as 0.1.")
    if isinstance(value, Tracer):
        return jnp.asarray(value, jnp.float32)
    number = float(jax.device_get(value))  # explicit, as jax.transfer_guard wants
    if not 0 <= number <= 1:  # also refuses NaN
        remedy = "A rate is the share that is dropped: 0.1 drops a tenth."
        if 1 < number <= 100:
            remedy += f" For {number:g} per cent write {number / 100:g}."
        fail(ValueError, name, value, allowed, remedy)
    return jnp.asarray(value, jnp.float32) if isinstance(value, jax.Array) else number


def _check_rate_array(value: np.ndarray | jax.Array, name: str, allowed: str) -> None:
    if value.ndim:
        fail(
            ValueError,
            name,
            value,
            "a scalar, one rate for the whole call",
            "For an array of rates map over it: jax.vmap(lambda x, rate, key: ...).",
        )
    if not any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        fail(TypeError, name, value, allowed, "Pass a float such as 0.1.")


def check_array(value: Any, name: str = "x") -> jax.Array:
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
    _check_has_zero_and_nan(value.dtype, name, value)
    return jnp.asarray(value)


def _check_has_zero_and_nan(dtype: np.dtype, name: str, value: object) -> None:
    """Refuse a floating dtype that cannot hold what is dropped (0) or what is invalid (NaN)."""
    if dtype.name in _UNUSABLE_DTYPES:
        fail(
            TypeError,
            name,
            value,
            f"of a dtype that holds 0 and NaN, not {dtype}",
            f"Convert it: {name}.astype(jnp.float32).",
        )


def check_real_array(value: Any, name: str = "x") -> jax.Array:
    """Return a floating JAX array of any shape."""
    array = check_array(value, name)
    if jnp.iscomplexobj(array):
        fail(
            TypeError,
            name,
            value,
            f"a floating-point array, not {array.dtype}",
            "Drop from the real and the imaginary part separately.",
        )
    return array


def check_mask(
    value: Any, shape: tuple[int, ...], name: str = "keep", of: str = "the shape of x"
) -> jax.Array:
    """Return a bool array that broadcasts to `shape`, the shape of `of`, without changing it."""
    allowed = f"a bool array that broadcasts to {of}"
    if not isinstance(value, np.ndarray | np.generic | jax.Array) or value.dtype != bool:
        fail(TypeError, name, value, allowed, f"Convert it: jnp.asarray({name}) != 0.")
    if not _broadcasts(value.shape, shape):
        fail(
            ValueError,
            f"{name}.shape",
            tuple(value.shape),
            f"broadcastable to {of}, {tuple(shape)}",
            "Use size 1 for an axis along which the mask is shared.",
        )
    return jnp.asarray(value)


def check_key(value: Any, name: str = "key") -> jax.Array | None:
    """Return one typed PRNG key, or None, which means evaluation."""
    allowed = "one PRNG key (training) or None (evaluation)"
    if value is None:
        return None
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        remedy = f"Derive a key from the seed: jax.random.key({value})."
        fail(TypeError, name, value, allowed, remedy)
    if not isinstance(value, np.ndarray | jax.Array):
        fail(TypeError, name, value, allowed, "Pass jax.random.key(seed).")
    if not isinstance(value, jax.Array) or not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = _wrap_raw_key(value, name, allowed)
    if value.ndim:
        fail(
            ValueError,
            f"{name}.shape",
            tuple(value.shape),
            "(), one key",
            f"For a batch of keys map over it: jax.vmap(lambda {name}: ...)(keys).",
        )
    return value


def _wrap_raw_key(value: np.ndarray | jax.Array, name: str, allowed: str) -> jax.Array:
    """Convert the raw words of jax.random.PRNGKey to a typed key of the default implementation."""
    if value.dtype != jnp.uint32:
        fail(TypeError, name, value, allowed, "Pass jax.random.key(seed).")
    width = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape[0]
    if value.ndim == 0 or value.shape[-1] != width:
        fail(
            ValueError,
            f"{name}.shape",
            tuple(value.shape),
            f"({width},) for a raw key of the default implementation",
            "Use a typed key, jax.random.key(seed), which names its implementation.",
        )
    return jax.random.wrap_key_data(jnp.asarray(value))


def check_axis(value: Any, ndim: int, name: str) -> int:
    """Return the axis as a number from 0 to ndim - 1."""
    allowed = f"an integer from {-ndim} to {ndim - 1} for an array of {ndim} axes"
    number = _as_index(value)
    if number is None:
        fail(TypeError, name, value, allowed, "Negative numbers count from the last axis.")
    if not -ndim <= number < ndim:
        fail(ValueError, name, value, allowed, "Negative numbers count from the last axis.")
    return number % ndim


def _as_index(value: Any) -> int | None:
    """Return a Python integer, or None for a bool and for anything that is no known integer."""
    if isinstance(value, bool | np.bool_):
        return None
    if _is_integer_array(value) and value.ndim == 0 and not isinstance(value, Tracer):
        return int(jax.device_get(value))  # int4 and uint4 have no __index__
    try:
        return operator.index(value)
    except TypeError:
        return None


def _is_integer_array(value: Any) -> bool:
    """Whether it is an array or a NumPy scalar of any integer dtype; bool is none."""
    is_array = isinstance(value, np.ndarray | np.generic | jax.Array)
    return is_array and jnp.issubdtype(value.dtype, jnp.integer)


def check_axes(values: Any, ndim: int, name: str = "broadcast_dims") -> tuple[int, ...]:
    """Return the axes as sorted numbers from 0 to ndim - 1."""
    numbers = sorted(check_axis(value, ndim, name) for value in check_sequence(values, name))
    if len(set(numbers)) != len(numbers):
        fail(ValueError, name, values, "without repeats", "Name each axis once.")
    return tuple(numbers)


def check_sequence(values: Any, name: str) -> tuple:
    """Return the elements of a tuple, list or range as a tuple."""
    if not isinstance(values, tuple | list | range):
        fail(TypeError, name, values, "a tuple or list of axes", f"For one axis write ({values},).")
    return tuple(values)


def check_shape(value: Any, name: str = "shape") -> tuple[Any, ...]:
    """Return a tuple of sizes."""
    allowed = "a tuple of sizes, integers of at least 0"
    try:
        if isinstance(value, str):
            raise TypeError
        sizes = tuple(
            size if jax.export.is_symbolic_dim(size) else operator.index(size) for size in value
        )
    except TypeError:
        fail(TypeError, name, value, allowed, "Pass x.shape.")
    if any(size < 0 for size in sizes if isinstance(size, int)):
        fail(ValueError, name, value, allowed, "Pass x.shape.")
    return sizes


def check_integer(value: Any, name: str, low: int, high: int | None = None) -> int:
    """Return a Python integer from low to high."""
    allowed = (
        f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    )
    number = _as_index(value)
    if number is None:
        fail(TypeError, name, value, allowed, f"Pass a plain integer such as {max(low, 1)}.")
    if number < low:
        fail(ValueError, name, value, allowed, f"The smallest allowed value is {low}.")
    if high is not None and number > high:
        fail(ValueError, name, value, allowed, f"The largest allowed value is {high}.")
    return number


def check_row_offset(
    value: Any, shape: tuple[int, ...], largest: int, name: str = "row_offset"
) -> jax.Array | None:
    """Return the index of the first row of a mask of this shape as uint32, or None.

    A known offset above `largest` is an error. A traced one cannot be checked.
    """
    if value is None:
        return None
    if not shape:
        fail(ValueError, name, value, "None for an array without axes", f"Omit {name}.")
    allowed = f"an integer from 0 to {largest} for a mask of shape {tuple(shape)}"
    remedy = "It counts rows of axis 0 of the whole array: pass the index of the first row."
    if isinstance(value, Tracer) and _is_integer_array(value) and value.ndim == 0:
        return _widen_to_32_bits(value).astype(jnp.uint32)
    number = _as_index(value)
    if number is None:
        fail(TypeError, name, value, allowed, remedy)
    if number > largest:
        remedy = "Number the rows within a part of the array, and give each part its own key."
    if not 0 <= number <= largest:
        fail(ValueError, name, value, allowed, remedy)
    return put_number(number, np.uint32)


def put_number(value: Any, dtype: DTypeLike) -> jax.Array:
    """Convert a number, or a NumPy array, by an explicit transfer, as jax.transfer_guard wants."""
    return jax.device_put(np.asarray(value, dtype))


def _widen_to_32_bits(value: jax.Array) -> jax.Array:
    """Convert a narrower dtype to int32 or float32: in it a larger constant would wrap or round."""
    if value.dtype.itemsize >= 4:
        return value
    is_floating = jnp.issubdtype(value.dtype, jnp.floating)
    return value.astype(jnp.float32 if is_floating else jnp.int32)


def _saturate_to_int32(value: Any) -> jax.Array:
    """Convert integers of any dtype to int32; what does not fit becomes the nearest that does."""
    limits = jnp.iinfo(value.dtype)
    if limits.bits < 32 or value.dtype == jnp.int32:
        return jnp.asarray(value, jnp.int32)
    low, high = max(int(limits.min), -_INT32_MAX - 1), _INT32_MAX
    if isinstance(value, jax.Array):
        return _clip_to_int32(value, low, high)
    return jnp.asarray(value.clip(low, high).astype(np.int32))  # JAX would cut int64 to 32 bits


@functools.partial(jax.jit, static_argnames=("low", "high"))
def _clip_to_int32(value: jax.Array, low: int, high: int) -> jax.Array:
    return jnp.clip(value, low, high).astype(jnp.int32)


def _known_values(value: np.ndarray | np.generic | jax.Array) -> np.ndarray | None:
    """Return the values, or None if they are traced, on other hosts, or none at all."""
    is_known = not isinstance(value, Tracer) and getattr(value, "is_fully_addressable", True)
    return np.asarray(jax.device_get(value)) if is_known and value.size else None


def check_min_ndim(value: jax.Array, count: int, name: str) -> None:
    """Refuse an array with fewer axes."""
    if value.ndim < count:
        fail(
            ValueError,
            f"{name}.shape",
            tuple(value.shape),
            f"of at least {count} axes",
            f"Add an axis: {name}[None].",
        )


def check_ndim(value: jax.Array, low: int, high: int, name: str, layout: str) -> None:
    """Refuse an array with too few or too many axes."""
    if not low <= value.ndim <= high:
        fail(
            ValueError,
            f"{name}.shape",
            tuple(value.shape),
            f"of {low} to {high} axes, {layout}",
            "Reshape it, or map over it with jax.vmap.",
        )


def check_choice(value: Any, name: str, allowed: tuple[str, ...]) -> str:
    """Return one of a few words."""
    if not isinstance(value, str) or value not in allowed:
        error = ValueError if isinstance(value, str) else TypeError
        words = " or ".join(map(repr, allowed))
        fail(error, name, value, words, f"The default is {allowed[0]!r}.")
    return value


def check_positive(value: Any, name: str) -> float:
    """Return a positive, finite number."""
    allowed = "a positive, finite number"
    if isinstance(value, bool | np.bool_) or not isinstance(value, _NUMBER):
        fail(TypeError, name, value, allowed, "Pass a plain number.")
    number = _to_float(value)
    if not 0 < number < math.inf:
        fail(ValueError, name, value, allowed, "Pass a plain number above 0.")
    return number


def check_flag(value: Any, name: str) -> bool:
    """Return a Python bool."""
    if not isinstance(value, bool | np.bool_):
        fail(TypeError, name, value, "True or False, known when tracing", "Pass a plain bool.")
    return bool(value)


def check_number(value: Any, name: str) -> float:
    """Return a finite Python number."""
    allowed = "a finite Python number"
    if isinstance(value, bool | np.bool_) or not isinstance(value, _NUMBER):
        fail(TypeError, name, value, allowed, "To learn it, multiply the query by it instead.")
    number = _to_float(value)
    if not math.isfinite(number):
        fail(ValueError, name, value, allowed, "Omit it for the default.")
    return number


def _to_float(value: Any) -> float:
    """Convert a number to float; an integer too large for it becomes an infinity."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def check_attention_shapes(query: jax.Array, key: jax.Array) -> None:
    """Refuse a key that does not fit the query, both (batch, positions, heads, dim)."""
    if key.dtype != query.dtype:
        remedy = f"Convert it: key.astype({query.dtype})."
        fail(TypeError, "key.dtype", key.dtype, f"that of the query, {query.dtype}", remedy)
    if query.ndim != key.ndim:
        allowed = f"of as many axes as the query's {tuple(query.shape)}"
        remedy = "Pass 4 axes for both, or 3 for both."
        fail(ValueError, "key.shape", tuple(key.shape), allowed, remedy)
    batch, _, heads, dim = query.shape
    fits = (key.shape[0], key.shape[3]) == (batch, dim)
    if not fits or heads % max(key.shape[2], 1) or key.shape[2] == 0 < heads:
        fail(
            ValueError,
            "key.shape",
            tuple(key.shape),
            f"({batch}, keys, key heads, {dim}), its heads a divisor of the query's {heads}",
            "Give the key the query's batch and dim.",
        )


def check_lengths(value: Any, batch: int, name: str) -> jax.Array:
    """Return int32 lengths, one for each row of the batch; one beyond int32 is the largest int32.

    A known negative length is an error. A traced one is a row of length 0.
    """
    allowed = f"{batch} integers of at least 0, one for each row of the batch"
    if isinstance(value, list | tuple):
        value = np.asarray(value)
    if not _is_integer_array(value):
        fail(TypeError, name, value, allowed, f"Convert them: jnp.asarray({name}, jnp.int32).")
    if value.shape != (batch,):
        fail(ValueError, f"{name}.shape", tuple(value.shape), f"({batch},)", "Pass one per row.")
    known = _known_values(value)
    if known is not None and known.min() < 0:
        fail(ValueError, name, value, allowed, "Pass 0 for an empty row.")
    return _saturate_to_int32(value)


def check_step(value: Any) -> np.ndarray | jax.Array:
    """Return a step of a schedule, or an array of them, in a dtype of at least 32 bits.

    Known steps are at least 0, and a NumPy array of 64 bits, which JAX would cut to 32.
    """
    allowed = "a number of steps of at least 0, or an array of them"
    is_array = isinstance(value, np.ndarray | np.generic | jax.Array)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_floating = is_array and jnp.issubdtype(value.dtype, jnp.floating)
    if not (is_number or is_floating or _is_integer_array(value)):
        fail(TypeError, "step", value, allowed, "Pass the number of steps done, such as 0.")
    if isinstance(value, Tracer):
        return _widen_to_32_bits(value)
    steps = np.asarray(_to_float(value) if is_number else jax.device_get(value))
    if not (steps >= 0).all():
        fail(ValueError, "step", value, allowed, "Steps count from 0.")
    return steps.astype(np.uint64 if _is_integer_array(steps) else np.float64)


def check_scalar(value: Any, name: str) -> jax.Array:
    """Return a real scalar array, traced or not, in its own floating dtype."""
    return _check_floats(value, name, "a real number or a scalar floating array", shape=())


def check_broadcastable(value: Any, shape: tuple[int, ...] | None, name: str) -> jax.Array:
    """Return a floating array that broadcasts to a shape without changing it (None: any shape)."""
    allowed = "a real number or a floating array"
    if shape is not None:
        allowed += f" that broadcasts to {tuple(shape)}"
    return _check_floats(value, name, allowed, shape)


def _check_floats(value: Any, name: str, allowed: str, shape: tuple[int, ...] | None) -> jax.Array:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_array = isinstance(value, np.ndarray | np.generic | jax.Array)
    if not is_number and not (is_array and jnp.issubdtype(value.dtype, jnp.floating)):
        fail(TypeError, name, value, allowed, f"Convert it: jnp.asarray({name}, jnp.float32).")
    if is_array:
        _check_has_zero_and_nan(value.dtype, name, value)
    if isinstance(value, np.ndarray | jax.Array):
        array = jnp.asarray(value)
    else:
        number, dtype = (value, value.dtype) if is_array else (_to_float(value), np.float32)
        array = put_number(number, dtype)
    if shape is not None and not _broadcasts(array.shape, shape):
        remedy = "Use size 1 for an axis along which it is shared."
        fail(ValueError, f"{name}.shape", tuple(array.shape), allowed, remedy)
    return array


def _broadcasts(small: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    aligned = zip(reversed(small), reversed(shape), strict=False)
    return len(small) <= len(shape) and all(a == 1 or a == b for a, b in aligned)


def check_floating_dtype(value: Any, name: str) -> np.dtype:
    """Return a floating dtype."""
    allowed = "a floating dtype such as jnp.float32"
    try:
        dtype = jnp.dtype("none" if value is None else value)
    except TypeError:
        fail(TypeError, name, value, allowed, "Pass logits.dtype.")
    if not jnp.issubdtype(dtype, jnp.floating):
        fail(TypeError, name, value, allowed, "Pass logits.dtype.")
    if not np.isinf(np.array(-np.inf, np.float32).astype(dtype).astype(np.float32)):
        allowed = f"a floating dtype with an infinity, not {dtype}"
        fail(TypeError, name, value, allowed, "Pass jnp.float32 and add it to logits of float32.")
    return dtype


def check_same_shape_and_dtype(value: Any, like: Any, name: str, like_name: str) -> None:
    """Refuse an array of another shape or dtype."""
    for part in ("shape", "dtype"):
        actual, expected = getattr(value, part, None), getattr(like, part)
        if actual != expected:
            fail(
                ValueError,
                f"{name}.{part}",
                actual,
                f"that of {like_name}, {expected}",
                "Reshape it." if part == "shape" else f"Convert it: {name}.astype({expected}).",
            )


def check_window(value: Any, name: str = "local_window_size") -> tuple[int, int]:
    """Return how many keys a query sees to the left and to the right."""
    allowed = "an integer of at least 0, or a pair of them, (left, right), known when tracing"
    remedy = "(3, 0) is the three keys before."
    if isinstance(value, np.ndarray | jax.Array) and not isinstance(value, Tracer):
        value = np.asarray(value).tolist()
    both = value if isinstance(value, tuple | list) else (value, value)
    numbers = tuple(number for number in map(_as_index, both) if number is not None)
    if len(numbers) < len(both):
        fail(TypeError, name, value, allowed, remedy)
    if len(numbers) != 2 or min(numbers) < 0:
        fail(ValueError, name, value, allowed, remedy)
    return numbers[0], numbers[1]


def check_labels(value: Any, shape: tuple[int, ...], classes: int) -> jax.Array:
    """Return int32 labels of a shape, whose values (if known) are classes."""
    allowed = f"integers from 0 to {classes - 1}, of shape {tuple(shape)}"
    if not _is_integer_array(value):
        fail(TypeError, "labels", value, allowed, "Convert them: jnp.asarray(labels, jnp.int32).")
    if value.shape != tuple(shape):
        remedy = "Pass one label per example."
        fail(ValueError, "labels.shape", tuple(value.shape), allowed, remedy)
    known = _known_values(value)
    if known is not None and known.min() < 0:
        remedy = "Leave out the examples without a class: scores[labels >= 0], labels[labels >= 0]."
        fail(ValueError, "labels", value, allowed, remedy)
    if known is not None and known.max() >= classes:
        remedy = "Add the missing class to the last axis of the scores."
        fail(ValueError, "labels", value, allowed, remedy)
    return _saturate_to_int32(value)


def check_classes(value: jax.Array, name: str) -> None:
    """Refuse an array whose last axis, that of the classes, is missing or empty."""
    check_min_ndim(value, 1, name)
    if value.shape[-1] == 0:
        allowed = "of at least 1 class on the last axis"
        remedy = "Put the classes on the last axis; there may be no examples, but not no class."
        fail(ValueError, f"{name}.shape", tuple(value.shape), allowed, remedy)


def check_path_part(value: Any, name: str = "path") -> Any:
    """Return a string unchanged, and an integer as one word of 32 bits."""
    allowed = "strings and integers from 0 to 2^32 - 1"
    if isinstance(value, str):
        return value
    if isinstance(value, Tracer) and _is_integer_array(value) and value.ndim == 0:
        return _widen_to_32_bits(value).astype(jnp.uint32)
    number = _as_index(value)
    if number is None:
        fail(TypeError, name, value, allowed, "Name the site: fold(key, 'block', 3, 'attn').")
    if number < 0:
        fail(ValueError, name, value, allowed, "Name it by a string instead: str(number).")
    if number >= 2**32:
        remedy = "Fold a large number in as two parts: n >> 32, n & 0xFFFFFFFF."
        fail(ValueError, name, value, allowed, remedy)
    return number


def check_probability(value: Any, name: str) -> float:
    """Return a Python float for a known real number in [0, 1]."""
    allowed = "a probability of dropping, a Python number in [0, 1]"
    if isinstance(value, bool | np.bool_) or not isinstance(value, _NUMBER):
        is_scalar = getattr(value, "ndim", 1) == 0 and not isinstance(value, Tracer)
        remedy = f"Pass float({name})." if is_scalar else "Pass a float such as 0.1."
        fail(TypeError, name, value, allowed, remedy)
    if not 0 <= value <= 1:  # also refuses NaN
        remedy = "It is the share that is dropped: 0.1 drops a tenth."
        fail(ValueError, name, value, allowed, remedy)
    return float(value)


def check_scalar_integer(value: Any, name: str, low: int, high: int) -> int | jax.Array:
    """Return a Python integer from low to high; a traced scalar integer is returned as it is."""
    if not isinstance(value, Tracer):
        return check_integer(value, name, low, high)
    if value.ndim or not jnp.issubdtype(value.dtype, jnp.integer):
        allowed = f"an integer from {low} to {high}, or a scalar integer array"
        fail(TypeError, name, value, allowed, f"Convert it: {name}.astype(jnp.uint32).")
    return value
