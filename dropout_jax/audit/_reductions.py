"""Reduce a mask, a number or a key to what the record keeps of it."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dropout_jax.audit._graph import Point
from dropout_jax.audit._rules import is_key

CORNER = (2, 2, 32, 32)  # of the last four axes of a mask, for a picture
MOST_KEYS = 1024  # of a draw with several keys, that are compared


def reduce_point(point: Point, values: list[Any], *, keeps_masks: bool) -> dict[str, jax.Array]:
    """Return the reductions of a point; `ran` is 1, and 0 where the program did not pass."""
    with _mesh_of(values):
        reduced = _reduce(point, [_replicate(value) for value in values], keeps_masks=keeps_masks)
    return reduced | {"ran": jnp.ones((), jnp.int32)}


def _mesh_of(values: list[Any]) -> contextlib.AbstractContextManager:
    """Return the mesh in which the values have their types: that of the program they are in."""
    meshes = [jax.typeof(value).sharding.mesh for value in values]
    mesh = next((mesh for mesh in meshes if not mesh.empty), None)
    return contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh)


def _replicate(value: Any) -> jax.Array:
    """Bring an array with an explicit sharding to every device: slices need all of an axis."""
    mesh = jax.typeof(value).sharding.mesh
    if jax.sharding.AxisType.Explicit not in mesh.axis_types:
        return jnp.asarray(value)
    return jax.sharding.reshard(value, jax.sharding.PartitionSpec())


def _reduce(point: Point, values: list[Any], *, keeps_masks: bool) -> dict[str, jax.Array]:
    match point.reduction:
        case "mask":
            reduced = _reduce_mask(values[0])
            reduced |= {"mask": _as_bool(values[0])} if keeps_masks else {}
        case "application":
            reduced = _reduce_application(values[0])
        case "number":
            reduced = {"number": _first(values[0]).astype(jnp.float32)}
        case "key":
            reduced = {"words": _key_words(values)}
        case "seed":
            reduced = {"words": jnp.concatenate([_seed_words(value) for value in values])}
    return reduced


def _as_bool(mask: jax.Array) -> jax.Array:
    return mask if mask.dtype == jnp.bool_ else mask != 0


def _first(array: jax.Array) -> jax.Array:
    return lax.slice(array.reshape(-1), (0,), (1,))[0]


def _reduce_mask(values: jax.Array) -> dict[str, jax.Array]:
    """Count what is True, and hash the bits: two sums of the positions of what is True."""
    mask = _as_bool(values).reshape(-1)
    position = lax.iota(jnp.uint32, mask.size)
    words = [_mix(position + jnp.uint32(salt)) for salt in (0x9E3779B9, 0x7F4A7C15)]
    hashed = [jnp.sum(jnp.where(mask, word, 0), dtype=jnp.uint32) for word in words]
    return {"count": jnp.sum(mask, dtype=jnp.uint32), "hash": jnp.stack(hashed)}


def _mix(word: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3: neighbours get unlike words."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


def _reduce_application(values: jax.Array) -> dict[str, jax.Array]:
    """Find the axes along which a mask is constant, its largest number, and its corner."""
    mask = _as_bool(values)
    constant = [
        jnp.all(mask == lax.slice_in_dim(mask, 0, 1, axis=axis)) if size else jnp.array(True)
        for axis, size in enumerate(mask.shape)
    ]
    numbers = values.astype(jnp.float32)
    return {
        "constant": jnp.stack(constant) if constant else jnp.zeros((0,), jnp.bool_),
        "count": jnp.sum(mask, dtype=jnp.uint32),
        "most": jnp.max(jnp.abs(numbers), initial=0),
        "corner": _corner(mask),
    }


def _seed_words(value: jax.Array) -> jax.Array:
    words = jax.random.key_data(value) if is_key(jax.typeof(value)) else value
    return words.reshape(-1)[:MOST_KEYS].astype(jnp.uint32)


def _corner(mask: jax.Array) -> jax.Array:
    """Return the beginning of a mask along its last four axes, at the first index of the others."""
    mask = mask.reshape((1,) * (len(CORNER) - mask.ndim) + mask.shape)
    longest = (1,) * (mask.ndim - len(CORNER)) + CORNER
    limits = [min(size, most) for size, most in zip(mask.shape, longest, strict=True)]
    return lax.slice(mask, [0] * mask.ndim, limits).reshape(limits[-len(CORNER) :])


def _key_words(values: list[Any]) -> jax.Array:
    """Return the words of the keys of a draw: (keys, words).

    Of the generator of this package, the four inputs are the two words of the key and the counter.
    """
    if len(values) > 1:
        return jnp.stack([_first(jnp.asarray(value)) for value in values])[None]
    words = jax.random.key_data(values[0]) if is_key(jax.typeof(values[0])) else values[0]
    words = words.reshape(-1, words.shape[-1] if words.ndim else 1)
    return words[:MOST_KEYS].astype(jnp.uint32)
