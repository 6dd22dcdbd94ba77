"""Equinox modules over the functional ops: each has a rate `p`, gets a key and calls its op.

All follow the conventions of `equinox.nn.Dropout`: the rate is `p`, the key is the `key=` of the
call, and `inference` (the module's, or the call's, which takes precedence) switches the layer off;
`equinox.nn.inference_mode` sets it in a whole model. As in Equinox, a layer works on one example,
and `jax.vmap` makes a batch: axis arguments do not count the batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

try:
    import equinox
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "dropout_jax.equinox needs equinox: pip install equinox", name=missing.name
    ) from None

from dropout_jax import _validation, ops


class Layer(equinox.Module):
    """The base of the layers of one input.

    Args:
      p: the probability of dropping.
      inference: True returns the input unchanged; `equinox.nn.inference_mode` sets it.
    """

    p: ArrayLike
    inference: bool = False

    def __check_init__(self) -> None:
        """Refuse a rate outside [0, 1]."""
        _validation.check_rate(self.p, "p")

    def __call__(
        self, x: ArrayLike, *, key: jax.Array | None = None, inference: bool | None = None
    ) -> jax.Array:
        """Apply the layer; `inference` takes precedence over that of the module."""
        return self._apply(x, _choose_key(self, key, inference, self.p))

    def _apply(self, x: ArrayLike, key: jax.Array | None) -> jax.Array:
        raise NotImplementedError


def _choose_key(
    layer: Any, key: jax.Array | None, inference: bool | None, rate: object = None
) -> jax.Array | None:
    """Return the key for training, and None for inference or for a known rate of 0."""
    inference = layer.inference if inference is None else inference
    if inference or (isinstance(rate, int | float) and rate == 0):
        return None
    if key is None:
        raise RuntimeError(
            f"{type(layer).__name__} requires a key when running in non-deterministic mode: "
            "key=None is not allowed. Pass key=jax.random.key(seed) to the call, or "
            "inference=True; equinox.nn.inference_mode(model) sets it in a whole model."
        )
    return key


class Dropout(Layer):
    """`dropout` as a module; a drop-in for `equinox.nn.Dropout` with the same arguments.

    Args:
      p: the probability of dropping.
      inference: True returns the input unchanged; `equinox.nn.inference_mode` sets it.
      deterministic: the name of `inference` in old versions of Equinox.
      broadcast_dims: axes along which one decision is shared.

    Raises:
      RuntimeError: in a call, the key is missing.

    Differs from Equinox: the mask is that of `dropout_jax.keep_mask`, which costs less; a rate
    outside [0, 1] and an integer input are errors.

    Example:
      >>> import equinox, jax, jax.numpy as jnp
      >>> from dropout_jax.equinox import Dropout
      >>> layer = Dropout(0.5)
      >>> layer(jnp.ones((2, 4)), key=jax.random.key(0)).shape
      (2, 4)
      >>> equinox.nn.inference_mode(layer)(jnp.ones(3))
      Array([1., 1., 1.], dtype=float32)
    """

    broadcast_dims: tuple[int, ...] = equinox.field(default=(), static=True)

    def __init__(
        self,
        p: ArrayLike = 0.5,
        inference: bool = False,
        *,
        deterministic: bool | None = None,
        broadcast_dims: Sequence[int] = (),
    ) -> None:
        self.p = p
        self.inference = _rename_deterministic(inference, deterministic)
        self.broadcast_dims = _validation.check_sequence(broadcast_dims, "broadcast_dims")

    @property
    def deterministic(self) -> bool:
        """The name of `inference` in old versions of Equinox."""
        return self.inference

    def __call__(
        self,
        x: ArrayLike,
        *,
        key: jax.Array | None = None,
        inference: bool | None = None,
        deterministic: bool | None = None,
    ) -> jax.Array:
        """Apply the layer; `inference` takes precedence over that of the module."""
        return super().__call__(
            x, key=key, inference=_rename_deterministic(inference, deterministic)
        )

    def _apply(self, x: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.dropout(x, self.p, key=key, broadcast_dims=self.broadcast_dims)


def _rename_deterministic(inference: Any, deterministic: bool | None) -> Any:
    if deterministic is None:
        return inference
    warnings.warn(
        "Dropout(deterministic=...) is deprecated in favour of Dropout(inference=...)",
        stacklevel=3,
    )
    return deterministic


class AlphaDropout(Dropout):
    """`alpha_dropout`; with the spatial axes in `broadcast_dims`, PyTorch's FeatureAlphaDropout."""

    def _apply(self, x: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.alpha_dropout(x, self.p, key=key, broadcast_dims=self.broadcast_dims)


class DropoutUnscaled(Layer):
    """`dropout_unscaled`: the input times 1 - p at inference."""

    def _apply(self, x: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.dropout_unscaled(x, self.p, key=key)


class GaussianDropout(Layer):
    """`gaussian_dropout`."""

    def _apply(self, x: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.gaussian_dropout(x, self.p, key=key)


class DropConnect(Layer):
    """`drop_connect`: call it on the weights."""

    def _apply(self, x: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.drop_connect(x, self.p, key=key)


class EmbeddingDropout(Layer):
    """`embedding_dropout`: call it on the table, and look words up in the result."""

    def _apply(self, x: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.embedding_dropout(x, self.p, key=key)


class SpatialDropout(Layer):
    """`spatial_dropout` of one example, (..., channel), with its `channel_axis`."""

    channel_axis: int = equinox.field(default=-1, static=True, kw_only=True)

    def _apply(self, x: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.spatial_dropout(
            x, self.p, key=key, channel_axis=self.channel_axis, batch_axis=None
        )


class LockedDropout(Layer):
    """`locked_dropout`, with its `time_axis`."""

    time_axis: int = equinox.field(default=-2, static=True, kw_only=True)

    def _apply(self, x: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.locked_dropout(x, self.p, key=key, time_axis=self.time_axis)


class TokenDropout(Layer):
    """`token_dropout`, with its `time_axis` and `fill`."""

    time_axis: int = equinox.field(default=-2, static=True, kw_only=True)
    fill: int | None = equinox.field(default=None, static=True, kw_only=True)

    def _apply(self, x: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.token_dropout(x, self.p, key=key, time_axis=self.time_axis, fill=self.fill)


class HeadDropout(Layer):
    """`head_dropout` of one example, with its `head_axis`: one decision for each head."""

    head_axis: int = equinox.field(static=True, kw_only=True)

    def _apply(self, x: ArrayLike, key: jax.Array | None) -> jax.Array:
        axis = _validation.check_axis(self.head_axis, jnp.ndim(x), "head_axis") + 1
        return ops.head_dropout(jnp.asarray(x)[None], self.p, key=key, head_axis=axis)[0]


class DropBlock(Layer):
    """`drop_block` of one example, (1 to 3 spatial axes, channel), with its options.

    `is_shared` says whether all channels have the same blocks.
    """

    block_size: int | Sequence[int] = equinox.field(static=True, kw_only=True)
    scale_by_keep: bool = equinox.field(default=True, static=True, kw_only=True)
    is_shared: bool = equinox.field(default=False, static=True, kw_only=True)

    def _apply(self, x: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.drop_block(
            jnp.asarray(x)[None],
            self.p,
            self.block_size,
            key=key,
            scale_by_keep=self.scale_by_keep,
            broadcast_dims=(-1,) if self.is_shared else (),
        )[0]


class DropPath(Layer):
    """`drop_path` of one example, with its `scale`: call it on a residual branch's output."""

    scale: bool = equinox.field(default=True, static=True, kw_only=True)

    def _apply(self, x: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.drop_path(x, self.p, key=key, mode="batch", scale=self.scale)


class MaskedDropout(Layer):
    """`masked_dropout`: call it on (x, where)."""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  # one input more
        self,
        x: ArrayLike,
        where: ArrayLike,
        *,
        key: jax.Array | None = None,
        inference: bool | None = None,
    ) -> jax.Array:
        """Apply dropout where `where`; other arguments as in `Layer`."""
        key = _choose_key(self, key, inference, self.p)
        return ops.masked_dropout(x, self.p, where, key=key)


class Zoneout(Layer):
    """`zoneout`: call it on (new, old) states."""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  # one input more
        self,
        new: ArrayLike,
        old: ArrayLike,
        *,
        key: jax.Array | None = None,
        inference: bool | None = None,
    ) -> jax.Array:
        """Keep the old state, unit by unit; other arguments as in `Layer`."""
        return ops.zoneout(new, old, self.p, key=_choose_key(self, key, inference, self.p))


class ConcreteDropout(equinox.Module):
    """`concrete_dropout` with its rate as a parameter, `rate_logit`.

    Args:
      p: the initial rate, in (0, 1).
      temperature: of the relaxation.
      inference: True returns the input unchanged.
    """

    rate_logit: jax.Array
    temperature: float = equinox.field(static=True)
    inference: bool

    def __init__(
        self, p: float = 0.1, *, temperature: float = 0.1, inference: bool = False
    ) -> None:
        if not 0 < _validation.check_rate(p, "p") < 1:
            _validation.fail(ValueError, "p", p, "in (0, 1)", "Pass the initial rate, such as 0.1.")
        self.rate_logit = jax.scipy.special.logit(jnp.float32(p))
        self.temperature = temperature
        self.inference = inference

    def __call__(
        self, x: ArrayLike, *, key: jax.Array | None = None, inference: bool | None = None
    ) -> jax.Array:
        """Apply the layer; arguments as in `Layer`."""
        key = _choose_key(self, key, inference)
        return ops.concrete_dropout(x, self.rate_logit, key=key, temperature=self.temperature)

    def penalty(self, weights: ArrayLike, **scales: Any) -> jax.Array:
        """Compute `concrete_dropout_penalty` at the rate of this layer; its options by name."""
        return ops.concrete_dropout_penalty(weights, self.rate_logit, **scales)


class VariationalDropout(equinox.Module):
    """`variational_dropout` with `log_alpha` as a parameter.

    Args:
      shape: of log_alpha, which broadcasts to the input: () for one, (features,) for each.
      log_alpha: the initial value; -3 is a dropout rate of about 0.05.
      inference: True returns the input unchanged.
    """

    log_alpha: jax.Array
    inference: bool

    def __init__(
        self, shape: tuple[int, ...] = (), *, log_alpha: float = -3.0, inference: bool = False
    ) -> None:
        self.log_alpha = jnp.full(shape, log_alpha, jnp.float32)
        self.inference = inference

    def __call__(
        self, x: ArrayLike, *, key: jax.Array | None = None, inference: bool | None = None
    ) -> jax.Array:
        """Apply the layer; arguments as in `Layer`."""
        key = _choose_key(self, key, inference)
        return ops.variational_dropout(x, self.log_alpha, key=key)

    def kl(self) -> jax.Array:
        """Compute the sum of `variational_dropout_kl`."""
        return ops.variational_dropout_kl(self.log_alpha).sum()
