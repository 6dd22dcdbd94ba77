"""Small networks for the claims, as functions of their parameters: a training run is one scan.

`fit` can be traced: jax.vmap over it does many runs (seeds, rates, sizes) at once.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
    """The share of correct predictions."""
    return (logits.argmax(-1) == labels).mean()


def fit(
    loss: Callable[[Any, jax.Array, jax.Array], jax.Array],
    params: Any,
    examples: int | jax.Array,
    key: jax.Array,
    *,
    steps: int,
    batch_size: int = 64,
    tx: optax.GradientTransformation | None = None,
) -> Any:
    """Minimise loss(params, rows, key) over random rows; by default with Adam at 1e-3."""
    trained, _ = fit_and_evaluate(
        *(loss, params, examples, key, lambda _: None),
        **{"evaluations": 1, "steps": steps, "batch_size": batch_size, "tx": tx},
    )
    return trained


def fit_and_evaluate(
    loss: Callable[..., jax.Array],
    params: Any,
    examples: int | jax.Array,
    key: jax.Array,
    evaluate: Callable[[Any], Any],
    *,
    evaluations: int,
    steps: int,
    per_step: tuple[jax.Array, ...] = (),
    batch_size: int = 64,
    tx: optax.GradientTransformation | None = None,
) -> tuple[Any, Any]:
    """Like `fit`, and return the results of evaluate(params) at evenly spaced steps.

    `evaluations` is their number and divides `steps`. Arrays of `per_step` have a value for each
    step, such as a rate; the loss gets the step's values: loss(params, rows, key, *values).
    """
    tx = tx or optax.adam(1e-3)

    def step(carry, now):
        params, state = carry
        i, values = now
        rows = jax.random.randint(fold(key, "rows", i), (batch_size,), 0, examples)
        gradient = jax.grad(loss)(params, rows, fold(key, "dropout", i), *values)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    def some_steps(carry, now):
        carry = jax.lax.scan(step, carry, now)[0]
        return carry, evaluate(carry[0])

    schedule = (jnp.arange(steps, dtype=jnp.uint32), per_step)
    parts = jax.tree.map(
        lambda leaf: leaf.reshape(evaluations, steps // evaluations, *leaf.shape[1:]), schedule
    )
    (params, _), results = jax.lax.scan(some_steps, (params, tx.init(params)), parts)
    return params, results


def run_grid(run: Callable[..., Any], firsts: Iterable, *axes) -> Any:
    """Call run(first, a, b, ...) for all combinations of the axes' values, one run at a time.

    One program does all combinations for one of `firsts`, such as a seed. The results have an axis
    for `firsts` and for each of the axes. (On a CPU this is faster than jax.vmap.)
    """
    combinations = jnp.meshgrid(*map(jnp.asarray, axes), indexing="ij")
    flat = tuple(values.ravel() for values in combinations)
    of_one = jax.jit(lambda first: jax.lax.map(lambda values: run(first, *values), flat))
    results = [jax.device_get(of_one(first)) for first in firsts]
    sizes = tuple(len(axis) for axis in axes)
    return jax.tree.map(
        lambda *parts: np.stack(parts).reshape(-1, *sizes, *parts[0].shape[1:]), *results
    )


def run_rates_and_seeds(one: Callable, rates, splits) -> Any:
    """Call one(rate, seed, split) for all rates and seeds in one program; results (rate, seed)."""
    seeds = jnp.arange(len(splits.y_test), dtype=jnp.uint32)
    of_rate = jax.vmap(one, (None, 0, 0))
    program = jax.jit(jax.vmap(of_rate, (0, None, None)))
    return jax.tree.map(np.asarray, program(jnp.array(rates), seeds, splits))


def train_mlp(split, seed, rate, hidden: Iterable[int], *, steps: int, drop: Callable = dropout):
    """The layers of an MLP of ten classes with these hidden sizes, trained on a split.

    The seed decides the weights, the batches and the masks.
    """

    def loss(params, rows, key):
        logits = mlp(params, split.x_train[rows], rate, key=key, drop=drop)
        return cross_entropy(logits, split.y_train[rows])

    key = jax.random.key(seed)
    params = mlp_init(fold(key, "weights"), (split.x_train.shape[-1], *hidden, 10))
    return fit(loss, params, len(split.y_train), fold(key, "fit"), steps=steps)


def batch_norm(x, mean, variance):
    """Normalise every unit with this mean and variance; there is nothing to learn."""
    return (x - mean) / jnp.sqrt(variance + 1e-5)


def normed_mlp(layers, x, rates, statistics=None, *, key, norm: Callable = batch_norm):
    """Logits of an MLP with a norm before each ReLU, and mean and variance of each norm's input.

    The norms use `statistics` if given, in the form that this function returns. Each hidden layer
    has its own rate.
    """
    moments = []
    for i, layer in enumerate(layers[:-1]):
        x = dense(layer, x)
        moments.append((x.mean(0), x.var(0)))
        x = jax.nn.relu(norm(x, *(statistics or moments)[i]))
        x = dropout(x, rates[i], key=fold(key, "hidden", i))
    return dense(layers[-1], x), moments
