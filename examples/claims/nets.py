"""Small networks for the claims, as functions of their parameters: a training run is one scan.

`fit` is traced, so that many runs (over seeds, rates, sizes) are one jax.vmap over it.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dropout_jax import dropout, fold


def dense_init(key, inputs: int, outputs: int) -> dict[str, jax.Array]:
    """He's initial weights."""
    weights = jax.random.normal(key, (inputs, outputs)) * jnp.sqrt(2 / inputs)
    return {"weights": weights, "bias": jnp.zeros(outputs)}


def dense(layer, x):
    """A linear layer."""
    return x @ layer["weights"] + layer["bias"]


def mlp_init(key, sizes: tuple[int, ...]) -> list[dict[str, jax.Array]]:
    """The layers of an MLP, such as sizes (64, 256, 256, 10)."""
    pairs = itertools.pairwise(sizes)
    return [dense_init(fold(key, "layer", i), *pair) for i, pair in enumerate(pairs)]


def mlp(layers, x, rate, *, key, drop: Callable = dropout):
    """Logits of an MLP with ReLU and dropout on every hidden layer; `key=None` evaluates."""
    for i, layer in enumerate(layers[:-1]):
        x = drop(jax.nn.relu(dense(layer, x)), rate, key=fold(key, "hidden", i))
    return dense(layers[-1], x)


def cross_entropy(logits, labels):
    """Mean cross-entropy in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def accuracy(logits, labels):
    """The share of right answers."""
    return (logits.argmax(-1) == labels).mean()


def fit(
    loss: Callable[[Any, jax.Array, jax.Array], jax.Array],
    params: Any,
    examples: int,
    key: jax.Array,
    *,
    steps: int,
    batch_size: int = 64,
    tx: optax.GradientTransformation | None = None,
) -> Any:
    """Minimise loss(params, rows, key) over random rows of `examples`; Adam at 1e-3 unless told."""
    tx = tx or optax.adam(1e-3)

    def step(carry, i):
        params, state = carry
        rows = jax.random.randint(fold(key, "rows", i), (batch_size,), 0, examples)
        gradient = jax.grad(loss)(params, rows, fold(key, "dropout", i))
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    places = jnp.arange(steps, dtype=jnp.uint32)
    return jax.lax.scan(step, (params, tx.init(params)), places)[0][0]
