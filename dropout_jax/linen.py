"""flax.linen modules over the functional ops: each has a rate, gets a key and calls its op.

All follow the conventions of linen's Dropout: `deterministic` in the constructor or in the call,
not in both; the key from `make_rng(rng_collection)` unless `rng` is passed to the call. The options
of a layer follow its rate, by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

try:
    from flax import linen
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "dropout_jax.linen needs flax: pip install 'dropout-jax[flax]'", name=missing.name
    ) from None

from dropout_jax import _validation, ops
from dropout_jax.attention import attention_fn as attention_fn


class Stochastic(linen.Module):
    """The base of all layers: whether to draw, and where the key comes from.

    A layer has the attributes `deterministic`, which is None, True or False, and `rng_collection`,
    the name of the key in `apply(..., rngs={"dropout": key})`.
    """

    def _next_key(
        self, deterministic: bool | None, rng: jax.Array | None, rate: object = None
    ) -> jax.Array | None:
        """Return a key for training, and None for evaluation or for a known rate of 0.

        As in linen, a known rate of 0 or 1 needs no key (at 1 any key does).
        """
        own = self.deterministic  # pyright: ignore[reportAttributeAccessIssue]
        if own is None and deterministic is None:
            raise ValueError(_NOT_DETERMINISTIC.format(type(self).__name__))
        if linen.merge_param("deterministic", own, deterministic):
            return None
        if isinstance(rate, int | float | np.number) and rate in (0, 1):
            return jax.random.key(0) if rate else None
        if rng is not None:
            return rng
        collection = self.rng_collection  # pyright: ignore[reportAttributeAccessIssue]
        if not self.has_rng(collection):
            raise ValueError(_NO_RNG.format(type(self).__name__, collection))
        return self.make_rng(collection)


_NOT_DETERMINISTIC = (
    'Parameter "deterministic" must be passed to the constructor or at call time of {0}: '
    "deterministic=None is not allowed in both. Pass deterministic=not train."
)
_NO_RNG = (
    "`deterministic` is False, but no `rngs` with {1!r} were provided to {0}: it needs a key. Pass "
    "rngs={{{1!r}: jax.random.key(seed)}} to apply() and init(), or deterministic=True."
)


class OneInput(Stochastic):
    """The base of the layers of one input. (A module has its own attributes, in their order.)"""

    @linen.compact
    def __call__(
        self,
        inputs: ArrayLike,
        deterministic: bool | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Apply the layer; `deterministic` is given here or to the constructor."""
        rate = self.rate  # pyright: ignore[reportAttributeAccessIssue]
        return self._apply(inputs, self._next_key(deterministic, rng, rate))

    def _apply(self, inputs: ArrayLike, key: jax.Array | None) -> jax.Array:
        raise NotImplementedError


class Layer(OneInput):
    """The base of the layers of one input whose options are by name.

    Args:
      rate: the probability of dropping.
      deterministic: True returns the input unchanged; None: the call says it.
      rng_collection: the name of the key.
    """

    rate: ArrayLike
    deterministic: bool | None = None
    rng_collection: str = "dropout"


class Dropout(OneInput):
    """`dropout` as a module; a drop-in for `flax.linen.Dropout` with the same arguments.

    Args:
      rate: the probability of dropping.
      broadcast_dims: axes along which one decision is shared.
      deterministic: True returns the input unchanged; None: the call says it.
      rng_collection: the name of the key in `apply(..., rngs={"dropout": key})`.

    Raises:
      ValueError: in a call, `deterministic` or the key is missing.

    Differs from Flax: the mask is that of `dropout_jax.keep_mask`, which costs less; a rate outside
    [0, 1] and an integer input are errors.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax.linen import Dropout
      >>> layer = Dropout(0.5)
      >>> rngs = {"dropout": jax.random.key(0)}
      >>> layer.apply({}, jnp.ones((2, 4)), deterministic=False, rngs=rngs).shape
      (2, 4)
      >>> layer.apply({}, jnp.ones(3), deterministic=True)
      Array([1., 1., 1.], dtype=float32)
    """

    rate: ArrayLike
    broadcast_dims: Sequence[int] = ()
    deterministic: bool | None = None
    rng_collection: str = "dropout"

    def _apply(self, inputs: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.dropout(inputs, self.rate, key=key, broadcast_dims=self.broadcast_dims)


class AlphaDropout(Dropout):
    """`alpha_dropout`; with the spatial axes in `broadcast_dims`, PyTorch's FeatureAlphaDropout."""

    def _apply(self, inputs: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.alpha_dropout(inputs, self.rate, key=key, broadcast_dims=self.broadcast_dims)


class DropoutUnscaled(Layer):
    """`dropout_unscaled`: the input times 1 - rate at evaluation."""

    def _apply(self, inputs: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.dropout_unscaled(inputs, self.rate, key=key)


class GaussianDropout(Layer):
    """`gaussian_dropout`."""

    def _apply(self, inputs: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.gaussian_dropout(inputs, self.rate, key=key)


class DropConnect(Layer):
    """`drop_connect`: call it on the weights."""

    def _apply(self, inputs: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.drop_connect(inputs, self.rate, key=key)


class EmbeddingDropout(Layer):
    """`embedding_dropout`: call it on the table, and look words up in the result."""

    def _apply(self, inputs: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.embedding_dropout(inputs, self.rate, key=key)


class SpatialDropout(Layer, kw_only=True):
    """`spatial_dropout`, with its `channel_axis` and `batch_axis`."""

    channel_axis: int = -1
    batch_axis: int | None = 0

    def _apply(self, inputs: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.spatial_dropout(
            inputs, self.rate, key=key, channel_axis=self.channel_axis, batch_axis=self.batch_axis
        )


class LockedDropout(Layer, kw_only=True):
    """`locked_dropout`, with its `time_axis`."""

    time_axis: int = -2

    def _apply(self, inputs: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.locked_dropout(inputs, self.rate, key=key, time_axis=self.time_axis)


class TokenDropout(Layer, kw_only=True):
    """`token_dropout`, with its `time_axis` and `fill`."""

    time_axis: int = -2
    fill: int | None = None

    def _apply(self, inputs: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.token_dropout(
            inputs, self.rate, key=key, time_axis=self.time_axis, fill=self.fill
        )


class HeadDropout(Layer, kw_only=True):
    """`head_dropout`, with its `head_axis`."""

    head_axis: int

    def _apply(self, inputs: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.head_dropout(inputs, self.rate, key=key, head_axis=self.head_axis)


class DropBlock(Layer, kw_only=True):
    """`drop_block`, with its `block_size`, `scale_by_keep` and `broadcast_dims`."""

    block_size: int | Sequence[int]
    scale_by_keep: bool = True
    broadcast_dims: Sequence[int] = ()

    def _apply(self, inputs: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.drop_block(
            inputs,
            self.rate,
            self.block_size,
            key=key,
            scale_by_keep=self.scale_by_keep,
            broadcast_dims=self.broadcast_dims,
        )


class DropPath(Layer, kw_only=True):
    """`drop_path`, with its `mode` and `scale`: call it on a residual branch's output."""

    mode: str = "row"
    scale: bool = True

    def _apply(self, inputs: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.drop_path(inputs, self.rate, key=key, mode=self.mode, scale=self.scale)


class MaskedDropout(Stochastic):
    """`masked_dropout`: call it on (inputs, where)."""

    rate: ArrayLike
    deterministic: bool | None = None
    rng_collection: str = "dropout"

    @linen.compact
    def __call__(
        self,
        inputs: ArrayLike,
        where: ArrayLike,
        deterministic: bool | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Apply dropout where `where`; other arguments as in `Layer`."""
        key = self._next_key(deterministic, rng, self.rate)
        return ops.masked_dropout(inputs, self.rate, where, key=key)


class Zoneout(Stochastic):
    """`zoneout`: call it on (new, old) states."""

    rate: ArrayLike
    deterministic: bool | None = None
    rng_collection: str = "dropout"

    @linen.compact
    def __call__(
        self,
        new: ArrayLike,
        old: ArrayLike,
        deterministic: bool | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Keep the old state, unit by unit; other arguments as in `Layer`."""
        key = self._next_key(deterministic, rng, self.rate)
        return ops.zoneout(new, old, self.rate, key=key)


class ConcreteDropout(Stochastic):
    """`concrete_dropout` with its rate as a parameter, `rate_logit`.

    Args:
      rate: the initial rate, in (0, 1).
      temperature: of the relaxation.
      deterministic: True returns the input unchanged; None: the call says it.
      rng_collection: the name of the key.
    """

    rate: float = 0.1
    temperature: float = 0.1
    deterministic: bool | None = None
    rng_collection: str = "dropout"

    def setup(self) -> None:
        """Create the parameter."""
        if not 0 < _validation.check_rate(self.rate) < 1:
            remedy = "Pass the initial rate, such as 0.1."
            _validation.fail(ValueError, "rate", self.rate, "in (0, 1)", remedy)
        self.rate_logit = self.param(
            "rate_logit", lambda _: jax.scipy.special.logit(jnp.float32(self.rate))
        )

    def __call__(
        self,
        inputs: ArrayLike,
        deterministic: bool | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Apply the layer; arguments as in `Layer`."""
        key = self._next_key(deterministic, rng)
        return ops.concrete_dropout(inputs, self.rate_logit, key=key, temperature=self.temperature)

    def penalty(self, weights: ArrayLike, **scales: Any) -> jax.Array:
        """Compute `concrete_dropout_penalty` at the rate of this layer; its options by name."""
        return ops.concrete_dropout_penalty(weights, self.rate_logit, **scales)


class VariationalDropout(Stochastic):
    """`variational_dropout` with `log_alpha` as a parameter.

    Args:
      shape: of log_alpha, which broadcasts to the inputs: () for one, (features,) for each.
      log_alpha_init: the initial value; -3 is a dropout rate of about 0.05.
      deterministic: True returns the input unchanged; None: the call says it.
      rng_collection: the name of the key.
    """

    shape: tuple[int, ...] = ()
    log_alpha_init: float = -3.0
    deterministic: bool | None = None
    rng_collection: str = "dropout"

    def setup(self) -> None:
        """Create the parameter."""
        self.log_alpha = self.param(
            "log_alpha", lambda _: jnp.full(self.shape, self.log_alpha_init, jnp.float32)
        )

    def __call__(
        self,
        inputs: ArrayLike,
        deterministic: bool | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Apply the layer; arguments as in `Layer`."""
        key = self._next_key(deterministic, rng)
        return ops.variational_dropout(inputs, self.log_alpha, key=key)

    def kl(self) -> jax.Array:
        """Compute the sum of `variational_dropout_kl`."""
        return ops.variational_dropout_kl(self.log_alpha).sum()
