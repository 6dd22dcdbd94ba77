"""Modules over the functional ops: each has a rate, gets a key and calls its op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors, nnx
from jax.typing import ArrayLike

from dropout_jax import _validation, ops

Rngs = nnx.Rngs | nnx.RngStream


class Stochastic(nnx.Dropout):
    """The base of all layers: whether to draw, and where the key comes from.

    It is an `nnx.Dropout` to be found as one. It sets the attributes of Flax's constructor but the
    rate, which a learned layer does not have.

    Args:
      deterministic: True evaluates; `model.train()`, `model.eval()` and `nnx.view` set it.
      rng_collection: the stream of an `nnx.Rngs` that gives the keys.
      rngs: an `nnx.Rngs`, an `nnx.RngStream` (a fork of it is stored), or None.

    Raises:
      TypeError: `rngs` is of another type.
      ValueError: in a call, `deterministic` is missing, or `rngs` is missing and needed.
    """

    def __init__(
        self,
        *,
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: Rngs | None = None,
    ) -> None:
        self.deterministic = deterministic
        self.rng_collection = rng_collection
        self.rngs = nnx.data(_fork_stream(rngs, rng_collection))

    def _next_key(
        self, deterministic: bool | None, rngs: Rngs | jax.Array | None, rate: object = None
    ) -> jax.Array | None:
        """Return a key for training, and None for evaluation or for a known rate of 0.

        As in Flax, a known rate of 0 or 1 needs no stream and draws from none (at 1 any key does).
        """
        deterministic = self._first_given(deterministic, self.deterministic, _NOT_DETERMINISTIC)
        if deterministic:
            return None
        if isinstance(rate, int | float | np.number) and rate in (0, 1):
            return jax.random.key(0) if rate else None
        rngs = self._first_given(rngs, self.rngs, _NO_RNGS)
        if isinstance(rngs, nnx.Rngs):
            rngs = rngs[self.rng_collection]
        if isinstance(rngs, nnx.RngStream):
            return _draw_from(rngs)
        if not isinstance(rngs, jax.Array | np.ndarray):
            raise TypeError(
                f"key={rngs!r} is not allowed: the call's rngs must be a Rngs, RngStream or "
                f"jax.Array, but got {type(rngs)}. Pass rngs=jax.random.key(seed)."
            )
        return rngs

    def _first_given(self, argument: Any, attribute: Any, message: str) -> Any:
        value = attribute if argument is None else argument
        if value is None:
            raise ValueError(message.format(type(self).__name__))
        return value


def _draw_from(stream: nnx.RngStream) -> jax.Array:
    """Draw the next key of a stream."""
    try:
        return stream()
    except errors.TraceContextError as error:
        raise errors.TraceContextError(
            "The stream of keys was created outside of the function that JAX transforms, and the "
            "call would change it. Pass the model as an argument of the function, under nnx.jit or "
            f"nnx.grad, or pass a key to the call: layer(x, rngs=key). ({error})"
        ) from None


# The sentences of Flax, for those who look for them.
_NOT_DETERMINISTIC = (
    "deterministic=None is not allowed in the constructor and in the call at once. No "
    "`deterministic` argument was provided to {0}. Consider one of the following options: pass "
    "deterministic=True or False to the constructor or to the call, or use "
    "nnx.view(model, deterministic=...), model.train() or model.eval()."
)
_NO_RNGS = (
    "`deterministic` is False, but no `rngs` argument was provided to {0} as either a __call__ "
    "argument or class attribute: rngs=None is not allowed. Pass rngs=nnx.Rngs(0) to the "
    "constructor or to the call."
)


class RateLayer(Stochastic):
    """The base of the layers of one fixed rate.

    Args:
      rate: the probability of dropping.
      **stochastic: `deterministic`, `rng_collection` and `rngs`, as in `Stochastic`.
    """

    def __init__(self, rate: ArrayLike, **stochastic: Any) -> None:
        super().__init__(**stochastic)
        _validation.check_rate(rate)
        self.rate = rate


class Layer(RateLayer):
    """The base of the layers of one input; arguments as in `RateLayer`."""

    def __call__(
        self,
        inputs: ArrayLike,
        *,
        deterministic: bool | None = None,
        rngs: Rngs | jax.Array | None = None,
    ) -> jax.Array:
        """Apply the layer; arguments of the call take precedence over those of the constructor."""
        return self._apply(inputs, self._next_key(deterministic, rngs, self.rate))

    def _apply(self, inputs: ArrayLike, key: jax.Array | None) -> jax.Array:
        raise NotImplementedError


class Dropout(Layer):
    """`dropout` as a layer; a drop-in for `flax.nnx.Dropout` with the same arguments.

    Args:
      rate: the probability of dropping.
      broadcast_dims: axes along which one decision is shared.
      deterministic: True returns the input unchanged; `train()`, `eval()` and `nnx.view` set it.
      rng_collection: the stream of an `nnx.Rngs` that gives the keys.
      rngs: an `nnx.Rngs`, an `nnx.RngStream` (a fork of it is stored), or None.

    Differs from Flax: the mask is that of `dropout_jax.keep_mask`, which costs less; a rate outside
    [0, 1] and an integer input are errors.

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
        rate: ArrayLike,
        *,
        broadcast_dims: Sequence[int] = (),
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: Rngs | None = None,
    ) -> None:
        super().__init__(
            rate, deterministic=deterministic, rng_collection=rng_collection, rngs=rngs
        )
        self.broadcast_dims = _validation.check_sequence(broadcast_dims, "broadcast_dims")

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


class SpatialDropout(Layer):
    """`spatial_dropout`, with its `channel_axis` and `batch_axis`."""

    def __init__(
        self,
        rate: ArrayLike,
        *,
        channel_axis: int = -1,
        batch_axis: int | None = 0,
        **stochastic: Any,
    ) -> None:
        super().__init__(rate, **stochastic)
        self.channel_axis, self.batch_axis = channel_axis, batch_axis

    def _apply(self, inputs: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.spatial_dropout(
            inputs, self.rate, key=key, channel_axis=self.channel_axis, batch_axis=self.batch_axis
        )


class LockedDropout(Layer):
    """`locked_dropout`, with its `time_axis`."""

    def __init__(self, rate: ArrayLike, *, time_axis: int = -2, **stochastic: Any) -> None:
        super().__init__(rate, **stochastic)
        self.time_axis = time_axis

    def _apply(self, inputs: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.locked_dropout(inputs, self.rate, key=key, time_axis=self.time_axis)


class TokenDropout(Layer):
    """`token_dropout`, with its `time_axis` and `fill`."""

    def __init__(
        self, rate: ArrayLike, *, time_axis: int = -2, fill: int | None = None, **stochastic: Any
    ) -> None:
        super().__init__(rate, **stochastic)
        self.time_axis, self.fill = time_axis, fill

    def _apply(self, inputs: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.token_dropout(
            inputs, self.rate, key=key, time_axis=self.time_axis, fill=self.fill
        )


class HeadDropout(Layer):
    """`head_dropout`, with its `head_axis`."""

    def __init__(self, rate: ArrayLike, *, head_axis: int, **stochastic: Any) -> None:
        super().__init__(rate, **stochastic)
        self.head_axis = head_axis

    def _apply(self, inputs: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.head_dropout(inputs, self.rate, key=key, head_axis=self.head_axis)


class DropBlock(Layer):
    """`drop_block`, with its `block_size`, `scale_by_keep` and `broadcast_dims`."""

    def __init__(
        self,
        rate: ArrayLike,
        *,
        block_size: int | Sequence[int],
        scale_by_keep: bool = True,
        broadcast_dims: Sequence[int] = (),
        **stochastic: Any,
    ) -> None:
        super().__init__(rate, **stochastic)
        self.block_size, self.scale_by_keep = block_size, scale_by_keep
        self.broadcast_dims = _validation.check_sequence(broadcast_dims, "broadcast_dims")

    def _apply(self, inputs: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.drop_block(
            inputs,
            self.rate,
            self.block_size,
            key=key,
            scale_by_keep=self.scale_by_keep,
            broadcast_dims=self.broadcast_dims,
        )


class DropPath(Layer):
    """`drop_path`, with its `mode` and `scale`: call it on a residual branch's output."""

    def __init__(
        self, rate: ArrayLike, *, mode: str = "row", scale: bool = True, **stochastic: Any
    ) -> None:
        super().__init__(rate, **stochastic)
        self.mode, self.scale = mode, scale

    def _apply(self, inputs: ArrayLike, key: jax.Array | None) -> jax.Array:
        return ops.drop_path(inputs, self.rate, key=key, mode=self.mode, scale=self.scale)


class MaskedDropout(RateLayer):
    """`masked_dropout`: call it on (inputs, where)."""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  # one input more
        self,
        inputs: ArrayLike,
        where: ArrayLike,
        *,
        deterministic: bool | None = None,
        rngs: Rngs | jax.Array | None = None,
    ) -> jax.Array:
        """Apply dropout where `where`; other arguments as in `Layer`."""
        key = self._next_key(deterministic, rngs, self.rate)
        return ops.masked_dropout(inputs, self.rate, where, key=key)


class Zoneout(RateLayer):
    """`zoneout`: call it on (new, old) states."""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  # one input more
        self,
        new: ArrayLike,
        old: ArrayLike,
        *,
        deterministic: bool | None = None,
        rngs: Rngs | jax.Array | None = None,
    ) -> jax.Array:
        """Keep the old state, unit by unit; other arguments as in `Layer`."""
        key = self._next_key(deterministic, rngs, self.rate)
        return ops.zoneout(new, old, self.rate, key=key)


class ConcreteDropout(Stochastic):
    """`concrete_dropout` with its rate as a parameter, `rate_logit`.

    Args:
      rate: the initial rate, in (0, 1).
      temperature: of the relaxation.
      **stochastic: `deterministic`, `rng_collection` and `rngs`, as in `Stochastic`.
    """

    def __init__(self, rate: float = 0.1, *, temperature: float = 0.1, **stochastic: Any) -> None:
        super().__init__(**stochastic)
        if not 0 < _validation.check_rate(rate) < 1:
            _validation.fail(
                ValueError, "rate", rate, "in (0, 1)", "Pass the initial rate, such as 0.1."
            )
        self.temperature = temperature
        self.rate_logit = nnx.Param(jax.scipy.special.logit(jnp.float32(rate)))

    def __call__(
        self,
        inputs: ArrayLike,
        *,
        deterministic: bool | None = None,
        rngs: Rngs | jax.Array | None = None,
    ) -> jax.Array:
        """Apply the layer; arguments as in `Layer`."""
        key = self._next_key(deterministic, rngs)
        logit = self.rate_logit[...]
        return ops.concrete_dropout(inputs, logit, key=key, temperature=self.temperature)

    def penalty(
        self,
        weights: ArrayLike,
        *,
        weight_scale: ArrayLike,
        dropout_scale: ArrayLike,
        features: int | None = None,
    ) -> jax.Array:
        """Compute `concrete_dropout_penalty` at the rate of this layer."""
        return ops.concrete_dropout_penalty(
            weights,
            self.rate_logit[...],
            weight_scale=weight_scale,
            dropout_scale=dropout_scale,
            features=features,
        )


class VariationalDropout(Stochastic):
    """`variational_dropout` with `log_alpha` as a parameter.

    Args:
      shape: of log_alpha, which broadcasts to the inputs: () for one, (features,) for each.
      log_alpha: the initial value; -3 is a dropout rate of about 0.05.
      **stochastic: `deterministic`, `rng_collection` and `rngs`, as in `Stochastic`.
    """

    def __init__(
        self, shape: tuple[int, ...] = (), *, log_alpha: float = -3.0, **stochastic: Any
    ) -> None:
        super().__init__(**stochastic)
        self.log_alpha = nnx.Param(jnp.full(shape, log_alpha, jnp.float32))

    def __call__(
        self,
        inputs: ArrayLike,
        *,
        deterministic: bool | None = None,
        rngs: Rngs | jax.Array | None = None,
    ) -> jax.Array:
        """Apply the layer; arguments as in `Layer`."""
        key = self._next_key(deterministic, rngs)
        return ops.variational_dropout(inputs, self.log_alpha[...], key=key)

    def kl(self) -> jax.Array:
        """Compute the sum of `variational_dropout_kl`."""
        return ops.variational_dropout_kl(self.log_alpha[...]).sum()


def _fork_stream(rngs: object, collection: str) -> nnx.RngStream | None:
    """Fork the stream, as Flax does, so that layers do not share a counter."""
    if isinstance(rngs, nnx.Rngs):
        return rngs[collection].fork()
    if isinstance(rngs, nnx.RngStream):
        return rngs.fork()
    if rngs is None:
        return None
    raise TypeError(
        f"rngs={rngs!r} is not allowed: the constructor's rngs must be a Rngs, RngStream or None, "
        f"but got {type(rngs)}. Pass a plain key at the call: layer(x, rngs=key)."
    )
