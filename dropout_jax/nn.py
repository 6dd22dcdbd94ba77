"""flax.nnx modules over the functional ops: they hold a rate and fetch a key; no arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import nnx

from dropout_jax.elementwise import dropout


class Dropout(nnx.Module):
    """`dropout` as a layer; a drop-in for `flax.nnx.Dropout`, argument for argument.

    Args:
      rate: the probability of dropping.
      broadcast_dims: axes along which one decision is shared.
      deterministic: True returns the input as it is; `model.train()`, `model.eval()` and
        `nnx.view` set it.
      rng_collection: which stream of an `nnx.Rngs` to take keys from.
      rngs: an `nnx.Rngs`, an `nnx.RngStream` (a fork of it is stored), or None.

    Raises:
      TypeError: `rngs` is of another type.
      ValueError: at a call, there is no `deterministic`, or no `rngs` and one is needed.

    Differs from Flax: the mask is `dropout_jax.keep_mask`'s (another one, at a fraction of the
    cost), a rate outside [0, 1] is an error, and rate 1 takes a key like any other rate.

    Example:
      >>> import jax.numpy as jnp
      >>> from dropout_jax.nn import Dropout
      >>> from flax import nnx
      >>> layer = Dropout(0.5, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 4))).shape
      (2, 4)
      >>> layer(jnp.ones(3), deterministic=True)
      Array([1., 1., 1.], dtype=float32)
    """

    def __init__(
        self,
        rate: float,
        *,
        broadcast_dims: Sequence[int] = (),
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ):
        self.rate = rate
        self.broadcast_dims = tuple(broadcast_dims)
        self.deterministic = deterministic
        self.rng_collection = rng_collection
        self.rngs = nnx.data(_stored(rngs, rng_collection))

    def __call__(
        self,
        inputs: jax.Array,
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | jax.Array | None = None,
    ) -> jax.Array:
        """Apply dropout; arguments given here take precedence over the constructor's."""
        deterministic = _first(deterministic, self.deterministic, "deterministic", "True or False")
        no_key_needed = deterministic or (isinstance(self.rate, int | float) and self.rate == 0)
        key = None if no_key_needed else _key(_first(rngs, self.rngs, "rngs", "nnx.Rngs(0)"), self)
        return dropout(inputs, self.rate, key=key, broadcast_dims=self.broadcast_dims)

    def set_view(self, deterministic: bool | None = None) -> None:
        """Let `nnx.view(model, deterministic=...)` switch this layer.

        Args:
          deterministic: True turns dropout off, False on, None leaves it.
        """
        if deterministic is not None:
            self.deterministic = deterministic


def _stored(rngs, collection: str) -> nnx.RngStream | None:
    """A fork of the stream, as Flax stores it, so that layers do not share a counter."""
    if isinstance(rngs, nnx.Rngs):
        return rngs[collection].fork()
    if isinstance(rngs, nnx.RngStream):
        return rngs.fork()
    if rngs is None:
        return None
    raise TypeError(
        f"rngs={rngs!r} is not allowed: the constructor's rngs must be an nnx.Rngs, an "
        "nnx.RngStream or None. Pass a plain key at the call: layer(x, rngs=key)."
    )


def _first(given, stored, name: str, example: str):
    chosen = stored if given is None else given
    if chosen is None:
        raise ValueError(
            f"{name}=None is not allowed: Dropout needs {name} from its constructor or its call. "
            f"Pass {name}={example} to one of them (nnx.view and model.eval() set deterministic)."
        )
    return chosen


def _key(rngs, module: Dropout) -> jax.Array:
    if isinstance(rngs, nnx.Rngs):
        return rngs[module.rng_collection]()
    if isinstance(rngs, nnx.RngStream):
        return rngs()
    return rngs
