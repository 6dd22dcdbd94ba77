"""Rates over depth and over steps. A schedule over steps has the signature of optax, step -> rate.

optax has linear and cosine schedules: `optax.linear_schedule(0.1, 0.0, 1000)` is a rate that falls
to 0. A jitted step traces the rate of a schedule, so it changes without recompilation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from dropout_jax import _validation
from dropout_jax.random import rate_array

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float32

Schedule = Callable[[ArrayLike], jax.Array]


def linear_over_depth(rate: ArrayLike, n_layer: int) -> tuple[float, ...]:
    """Compute rates that grow from 0 at the first layer to `rate` at the last.

    Formula: rate * i / (n_layer - 1) for i from 0; (rate,) for one layer.

    Args:
      rate: the last layer's rate, a number in [0, 1].
      n_layer: the number of layers, an integer of at least 1.

    Returns:
      A tuple of n_layer floats.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Huang et al., ECCV 2016, "linear decay rule"; as in timm and Swin (torch.linspace).

    Example:
      >>> from dropout_jax import linear_over_depth
      >>> linear_over_depth(0.5, 3)
      (0.0, 0.25, 0.5)
    """
    rate = _validation.check_rate(rate)
    if isinstance(rate, Tracer):
        _validation.fail(
            TypeError, "rate", rate, "a known number", "Pass a constant: depth is static."
        )
    rate = float(rate)
    n_layer = _validation.check_integer(n_layer, "n_layer", 1)
    if n_layer == 1:
        return (rate,)
    return tuple(rate * i / (n_layer - 1) for i in range(n_layer))


def early_dropout(rate: ArrayLike, until: int) -> Schedule:
    """Build a schedule of dropout until a step, against underfitting.

    Formula: rate if step < until, else 0.

    Args:
      rate: a number in [0, 1].
      until: the first step without dropout, an integer of at least 0.

    Returns:
      A function of a step, of any integer or floating dtype, traced or not, that returns a float32
      scalar. A known step below 0 is an error.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Liu et al., "Dropout reduces underfitting", ICML 2023.

    Example:
      >>> from dropout_jax import early_dropout
      >>> schedule = early_dropout(0.1, until=100)
      >>> round(float(schedule(99)), 6), float(schedule(100))
      (0.1, 0.0)
    """
    on, step_off = _check_rate_and_step(rate, until, "until")
    return lambda step: jnp.where(_is_before(step, step_off), rate_array(on), rate_array(0.0))


def late_dropout(rate: ArrayLike, start: int) -> Schedule:
    """Build a schedule of dropout from a step on, against overfitting.

    Formula: 0 if step < start, else rate.

    Args:
      rate: a number in [0, 1].
      start: the first step with dropout, an integer of at least 0.

    Returns:
      A function of a step, of any integer or floating dtype, traced or not, that returns a float32
      scalar. A known step below 0 is an error.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Liu et al., ICML 2023.

    Example:
      >>> from dropout_jax import late_dropout
      >>> schedule = late_dropout(0.1, start=100)
      >>> float(schedule(99)), round(float(schedule(100)), 6)
      (0.0, 0.1)
    """
    on, step_on = _check_rate_and_step(rate, start, "start")
    return lambda step: jnp.where(_is_before(step, step_on), rate_array(0.0), rate_array(on))


def curriculum_dropout(rate: ArrayLike, gamma: float) -> Schedule:
    """Build a schedule that grows exponentially from 0 to the rate, as a curriculum.

    Formula: rate * (1 - exp(-gamma * step)): with theta = 1 - rate, the kept share is
    (1 - theta) exp(-gamma step) + theta.

    Args:
      rate: the limit, a number in [0, 1).
      gamma: positive; the paper uses 10 / (steps of training).

    Returns:
      A function of a step, of any integer or floating dtype, traced or not, that returns a float32
      scalar. A known step below 0 is an error.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Morerio et al., "Curriculum dropout", ICCV 2017.

    Example:
      >>> from dropout_jax import curriculum_dropout
      >>> schedule = curriculum_dropout(0.5, gamma=0.01)
      >>> float(schedule(0)), round(float(schedule(100)), 3)
      (0.0, 0.316)
    """
    checked = _validation.check_rate(rate)
    if not isinstance(checked, Tracer) and not checked < 1:
        _validation.fail(
            ValueError, "rate", rate, "in [0, 1)", "Pass the limit of the rate, such as 0.5."
        )
    gamma = _validation.check_positive(gamma, "gamma")

    def schedule(step: ArrayLike) -> jax.Array:
        steps = _validation.check_step(step)
        is_known = isinstance(steps, np.ndarray)
        steps = _validation.put_number(steps, np.float32) if is_known else steps.astype(jnp.float32)
        decay = _validation.put_number(-gamma, np.float32)
        return rate_array(checked) * -jnp.expm1(decay * steps)

    return schedule


def _check_rate_and_step(
    rate: ArrayLike, step: int, name: str
) -> tuple[float | Float32[Array, ""], int]:
    return _validation.check_rate(rate), _validation.check_integer(step, name, 0)


def _is_before(step: ArrayLike, limit: int) -> Bool[Array, "..."]:
    """Whether the step is below the limit, in a dtype that holds both."""
    steps = _validation.check_step(step)
    is_integer = jnp.issubdtype(steps.dtype, jnp.integer)
    if is_integer and limit > int(jnp.iinfo(steps.dtype).max):
        return _validation.put_number(np.ones(steps.shape), bool)
    is_before = steps < steps.dtype.type(limit)
    return (
        is_before if isinstance(is_before, jax.Array) else _validation.put_number(is_before, bool)
    )
