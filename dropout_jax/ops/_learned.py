"""Dropout with a learned rate: concrete dropout and variational (Gaussian) dropout."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from dropout_jax import _validation, random
from dropout_jax.ops import _apply

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32, Key

# Molchanov et al., 2017, equation 14: the fit of the negative KL divergence.
_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695


def concrete_dropout(
    x: ArrayLike, rate_logit: ArrayLike, *, key: jax.Array | None, temperature: float = 0.1
) -> Float[Array, "..."]:
    """Apply dropout with a continuous mask, so that its rate can be learned by gradient.

    Formula: with p = sigmoid(rate_logit) and u uniform (`dropout_jax.random`),
    z = sigmoid((rate_logit + log u - log(1 - u)) / temperature), y = x (1 - z) / (1 - p). As the
    temperature goes to 0, z goes to a Bernoulli(p) and y to `dropout`. Add
    `concrete_dropout_penalty` to the loss.

    Args:
      x: a floating array of any shape.
      rate_logit: log(p / (1 - p)) of the rate p, a scalar array or a number. It gets a gradient.
      key: one PRNG key: training. None: evaluation, returns `x` unchanged.
      temperature: of the relaxation, a positive number; the paper uses 0.1.

    Returns:
      An array of the shape and dtype of `x`, computed in float32 (float64 for float64). A
      rate_logit of -inf is rate 0, the identity; one of inf is rate 1 and gives zeros.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Gal, Hron and Kendall, "Concrete dropout", NeurIPS 2017.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import concrete_dropout
      >>> def loss(logit):
      ...     return (concrete_dropout(jnp.ones(8), logit, key=jax.random.key(0)) ** 2).mean()
      >>> bool(jnp.isfinite(jax.grad(loss)(-1.0)))
      True
    """
    x = _validation.check_real_array(x)
    rate_logit = _validation.check_scalar(rate_logit, "rate_logit")
    temperature = _validation.check_positive(temperature, "temperature")
    key = _validation.check_key(key)
    if key is None:
        return x
    divisor = _validation.put_number(temperature, np.float32)
    return _apply.with_type_of(x, _apply_concrete)(x, rate_logit, key, divisor)


@jax.jit
@jax.checkpoint
def _apply_concrete(
    x: Float[Array, "*shape"],
    rate_logit: Float[Array, ""],
    key: Key[Array, ""],
    temperature: Float32[Array, ""],
) -> Float[Array, "*shape"]:
    dtype = _apply.compute_dtype(x)
    is_one = rate_logit == jnp.inf  # p = 1: zeros, as at rate 1 of every op
    logit = jnp.where(is_one, 0, rate_logit.astype(dtype))
    u = random.draw_uniform(key, x.shape).astype(dtype)
    log_kept = jax.nn.log_sigmoid(-(logit + jnp.log(u) - jnp.log1p(-u)) / temperature.astype(dtype))
    # A difference of logarithms instead of the ratio, since 1 - p may underflow.
    y = _apply.scale_array(x, jnp.exp(log_kept - jax.nn.log_sigmoid(-logit)))
    return jnp.where(is_one, jnp.zeros_like(y), y)


def concrete_dropout_penalty(
    weights: ArrayLike,
    rate_logit: ArrayLike,
    *,
    weight_scale: ArrayLike,
    dropout_scale: ArrayLike,
    features: int | None = None,
) -> Float[Array, ""]:
    """Compute the loss term of concrete dropout: weight decay and the entropy of the rate.

    Formula: weight_scale * sum(W^2) / (1 - p) + dropout_scale * features *
    (p log p + (1 - p) log(1 - p)), p = sigmoid(rate_logit).

    Args:
      weights: the floating weights of the layer that follows the dropout, (inputs, outputs).
      rate_logit: log(p / (1 - p)) of the rate p, a scalar array or a number. It gets a gradient.
      weight_scale: length^2 / N for the prior's length scale and N training examples (over the
        model's precision where the loss is a squared error).
      dropout_scale: 2 / (precision N) for a squared error, 1 / N for a cross-entropy.
      features: the number of inputs that dropout sees; by default the first axis of the weights.

    Returns:
      A scalar, float32 (float64 for float64 weights).

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Gal, Hron and Kendall, NeurIPS 2017, equations 2 to 4 and the published code.

    Example:
      >>> import jax.numpy as jnp
      >>> from dropout_jax import concrete_dropout_penalty
      >>> concrete_dropout_penalty(jnp.ones((4, 2)), 0.0, weight_scale=0.5, dropout_scale=1.0)
      Array(5.2274113, dtype=float32)
    """
    weights = _validation.check_real_array(weights, "weights")
    _validation.check_min_ndim(weights, 1, "weights")
    scalars = (
        _validation.check_scalar(rate_logit, "rate_logit"),
        _validation.check_scalar(weight_scale, "weight_scale"),
        _validation.check_scalar(dropout_scale, "dropout_scale"),
    )
    if features is not None:
        features = _validation.check_integer(features, "features", 1)
    return _compute_penalty(weights, *scalars, features=features)


@functools.partial(jax.jit, static_argnames="features")
def _compute_penalty(
    weights: Float[Array, "..."],
    rate_logit: Float[Array, ""],
    weight_scale: Float[Array, ""],
    dropout_scale: Float[Array, ""],
    *,
    features: int | None,
) -> Float[Array, ""]:
    weights = _apply.widen(weights)
    logit, weight_scale, dropout_scale = (
        scalar.astype(weights.dtype) for scalar in (rate_logit, weight_scale, dropout_scale)
    )
    count = weights.shape[0] if features is None else features
    square = jnp.sum(jnp.square(weights))
    # Weights of 0 cost nothing, also where 1 - p underflows.
    kept = jnp.where(square == 0, 1, jax.nn.sigmoid(-logit))
    is_known = isinstance(count, int)  # also beyond int32; else a symbolic size of jax.export
    count = float(count) if is_known else jnp.asarray(count).astype(logit.dtype)
    return weight_scale * square / kept + dropout_scale * count * _negative_entropy(logit)


def _negative_entropy(logit: Float[Array, ""]) -> Float[Array, ""]:
    """Compute p log p + (1 - p) log(1 - p) for p = sigmoid(logit); 0 where p is exactly 0 or 1."""
    is_certain = jnp.isinf(logit)
    logit = jnp.where(is_certain, 0, logit)
    rate, kept = jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)
    entropy = rate * jax.nn.log_sigmoid(logit) + kept * jax.nn.log_sigmoid(-logit)
    return jnp.where(is_certain, 0, entropy)


def variational_dropout(
    x: ArrayLike, log_alpha: ArrayLike, *, key: jax.Array | None
) -> Float[Array, "..."]:
    """Multiply by Gaussian noise of mean 1 whose variance, alpha, is learned.

    Formula: y = x (1 + sqrt(alpha) e), e standard normal (`dropout_jax.random`). Mean x, variance
    alpha x^2. Add `variational_dropout_kl` to the loss. alpha = rate / (1 - rate) is
    `gaussian_dropout`.

    Args:
      x: a floating array of any shape: activations, or weights for sparse variational dropout.
      log_alpha: log of the variance, an array that broadcasts to the shape of `x`, or a number. It
        gets a gradient.
      key: one PRNG key: training. None: evaluation, returns `x` unchanged.

    Returns:
      An array of the shape and dtype of `x`, computed in float32 (float64 for float64).

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Kingma, Salimans and Welling, "Variational dropout and the local reparameterization
      trick", NeurIPS 2015.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import variational_dropout
      >>> y = variational_dropout(jnp.ones(10_000), jnp.log(0.25), key=jax.random.key(0))
      >>> round(float(y.mean()), 1), round(float(y.var()), 2)
      (1.0, 0.25)
    """
    x = _validation.check_real_array(x)
    log_alpha = _validation.check_broadcastable(log_alpha, x.shape, "log_alpha")
    key = _validation.check_key(key)
    if key is None:
        return x
    return _apply.with_type_of(x, _apply_variational)(x, log_alpha, key)


@jax.jit
@jax.checkpoint
def _apply_variational(
    x: Float[Array, "*shape"], log_alpha: Float[Array, "*#shape"], key: Key[Array, ""]
) -> Float[Array, "*shape"]:
    dtype = _apply.compute_dtype(x)
    deviation = jnp.exp(log_alpha.astype(dtype) / 2)
    return _apply.scale_array(x, 1 + deviation * random.draw_normal(key, x.shape).astype(dtype))


def variational_dropout_kl(log_alpha: ArrayLike) -> Float[Array, "..."]:
    """Compute the divergence of variational dropout from its log-uniform prior, by element.

    Formula: KL ~ k1 - k1 sigmoid(k2 + k3 log_alpha) + log(1 + 1 / alpha) / 2, with k1 = 0.63576,
    k2 = 1.87320 and k3 = 1.48695; within 0.01 of the integral (for log_alpha from -8 to 8), and 0
    where alpha is large. Sum it over the weights and add it to the loss; divide by N if
    the loss is a mean over N examples.

    Args:
      log_alpha: log of the variance, a floating array of any shape or a number.

    Returns:
      An array of the shape and dtype of `log_alpha`, at least 0; computed in float32 (float64 for
      float64) and rounded once. 0 where log_alpha is inf, and inf where it is -inf.

    Raises:
      TypeError: naming the argument, its value, what is allowed and the remedy.

    Source: Molchanov, Ashukha and Vetrov, "Variational dropout sparsifies deep neural networks",
      ICML 2017, equation 14.

    Example:
      >>> from dropout_jax import variational_dropout_kl
      >>> round(float(variational_dropout_kl(0.0)), 4)
      0.4312
    """
    log_alpha = _validation.check_broadcastable(log_alpha, None, "log_alpha")
    return _compute_kl(log_alpha)


@jax.jit
def _compute_kl(log_alpha: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    wide = _apply.widen(log_alpha)
    kl = _K1 * jax.nn.sigmoid(-(_K2 + _K3 * wide)) + 0.5 * jax.nn.softplus(-wide)
    return kl.astype(log_alpha.dtype)
