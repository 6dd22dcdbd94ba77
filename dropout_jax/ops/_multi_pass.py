"""Several passes with different masks: multi-sample dropout and the divergence of R-Drop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dropout_jax import _validation
from dropout_jax.ops import _apply
from dropout_jax.ops._elementwise import dropout
from dropout_jax.ops._weak_types import with_weak_type_of
from dropout_jax.random import fold

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def multi_sample_dropout(
    head: Callable[[jax.Array], Any],
    x: ArrayLike,
    rate: ArrayLike,
    *,
    key: jax.Array | None,
    samples: int,
) -> Any:
    """Average a head over several masks of its input; the layers below it run once.

    Formula: y = mean over i of head(dropout(x, rate, key=fold(key, i))), i from 0 to samples - 1.
    At evaluation y = head(x).

    Args:
      head: a function of `x`, such as a classifier with its loss; it may return any pytree.
      x: a floating or complex array of any shape.
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not.
      key: one PRNG key: training. None: evaluation.
      samples: how many masks, an integer from 1 to 2^32. The passes run as one, under vmap.

    Returns:
      The mean of what `head` returns, leaf by leaf.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Inoue, "Multi-sample dropout for accelerated training and better generalization", 2019.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import multi_sample_dropout
      >>> x = jnp.ones(4)
      >>> multi_sample_dropout(jnp.sum, x, 0.5, samples=8, key=jax.random.key(0))
      Array(4., dtype=float32)
    """
    if not callable(head):
        _validation.fail(TypeError, "head", head, "a function of x", "Pass lambda x: ...")
    x = _validation.check_array(x)
    rate = _validation.check_rate(rate)
    samples = _validation.check_integer(samples, "samples", 1, 2**32)
    key = _validation.check_key(key)
    if key is None:
        return head(x)
    indices = jnp.arange(samples, dtype=jnp.uint32)
    outputs = jax.vmap(lambda i: head(dropout(x, rate, key=fold(key, i))))(indices)
    return jax.tree.map(lambda leaf: with_weak_type_of(leaf, jnp.mean(leaf, axis=0)), outputs)


def r_drop_divergence(logits_a: ArrayLike, logits_b: ArrayLike) -> Float[Array, "..."]:
    """Compute the symmetric divergence of two passes, which R-Drop adds to the loss.

    Formula: (KL(a || b) + KL(b || a)) / 2 over the last axis, a and b the softmaxes of the logits.

    Args:
      logits_a: the logits of one pass, a floating array (..., classes).
      logits_b: the logits of the other, of the same shape and dtype.

    Returns:
      An array of the leading shape, in nats, at least 0, float32 (float64 for float64). A class
      that both exclude by a logit of -inf adds 0, one that only one of them excludes inf; so a row
      that is masked (all -inf) in both gives 0, with zero gradients. NaN for NaN and for +inf.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Liang et al., "R-Drop: regularized dropout for neural networks", NeurIPS 2021.

    Example:
      >>> import jax.numpy as jnp
      >>> from dropout_jax import r_drop_divergence
      >>> round(float(r_drop_divergence(jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0]))), 5)
      0.46212
    """
    logits_a = _validation.check_real_array(logits_a, "logits_a")
    logits_b = _validation.check_real_array(logits_b, "logits_b")
    _validation.check_classes(logits_a, "logits_a")
    _validation.check_same_shape_and_dtype(logits_b, logits_a, "logits_b", "logits_a")
    return _compute_divergence(logits_a, logits_b)


@jax.jit
def _compute_divergence(
    logits_a: Float[Array, "*batch classes"], logits_b: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    log_a, log_b = (_log_softmax(_apply.widen(x)) for x in (logits_a, logits_b))
    # The two divergences add up to (a - b)(log a - log b); a class that both exclude (-inf) adds 0.
    # One that only one of them excludes adds inf, also where the other's probability underflows.
    excluded = (log_a == -jnp.inf) & (log_b == -jnp.inf)
    finite_a, finite_b = (jnp.where(excluded, 0, x) for x in (log_a, log_b))
    difference = finite_a - finite_b
    product = (jnp.exp(log_a) - jnp.exp(log_b)) * difference
    terms = jnp.where(jnp.isinf(difference), jnp.inf, product)
    return 0.5 * jnp.sum(terms, axis=-1)


def _log_softmax(logits: Float[Array, "*batch classes"]) -> Float[Array, "*batch classes"]:
    """Compute the logarithm of the softmax; a row whose classes are all -inf stays so."""
    is_empty = (logits == -jnp.inf).all(-1, keepdims=True)
    return jnp.where(is_empty, logits, jax.nn.log_softmax(jnp.where(is_empty, 0, logits)))
