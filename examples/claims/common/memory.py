"""Common parts of the claims on recurrent dropout: a memory task, and an LSTM that learns it.

A sequence has 24 steps with one of eight random symbols at each; one step is marked. At the end the
model predicts the marked symbol. Every training step has fresh data, so the task measures memory
and not overfitting. The LSTM has 32 units, a forget gate's bias of 1, and a linear readout of the
last h.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from common import nets
from dropout_jax import fold

LENGTH, SYMBOLS, UNITS = 24, 8, 32


def train(step, seeds: int, steps: int):
    """Accuracy by (seed, delay) with dropout off and on; `step` has the signature of lstm."""

    def one(seed):
        key = jax.random.key(seed)

        def loss(params, _, step_key):
            x, y, _ = sample_sequences(fold(step_key, "data"), 32)
            return nets.cross_entropy(predict_symbol(params, x, step, key=step_key), y)

        tx = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
        tx = optax.chain(optax.clip_by_global_norm(1.0), tx)
        params = nets.fit(loss, init(key), 1, key, steps=steps, batch_size=1, tx=tx)
        x, y, ago = sample_sequences(fold(key, "test"), 2000)
        one_hot_delay = jax.nn.one_hot(ago - 1, LENGTH)

        def share(key):
            right = predict_symbol(params, x, step, key=key).argmax(-1) == y
            return right @ one_hot_delay / one_hot_delay.sum(0)

        return share(None), share(fold(key, "masks"))

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(jnp.arange(seeds)))


def sample_sequences(key, count: int):
    """Inputs, the marked symbols, and how many steps ago they were (1 is the last)."""
    symbols = jax.random.randint(fold(key, "symbols"), (count, LENGTH), 0, SYMBOLS)
    marked = jax.random.randint(fold(key, "place"), (count,), 0, LENGTH)
    marks = jax.nn.one_hot(marked, LENGTH)[..., None]
    inputs = jnp.concatenate([jax.nn.one_hot(symbols, SYMBOLS), marks], -1)
    return inputs, jnp.take_along_axis(symbols, marked[:, None], 1)[:, 0], LENGTH - marked


def init(key):
    """An LSTM and its readout; the forget gate's bias is 1."""
    cell = nets.dense_init(fold(key, "cell"), SYMBOLS + 1 + UNITS, 4 * UNITS)
    cell["weights"] = cell["weights"] / jnp.sqrt(2)
    cell["bias"] = cell["bias"].at[UNITS : 2 * UNITS].set(1)
    return {"cell": cell, "readout": nets.dense_init(fold(key, "readout"), UNITS, SYMBOLS)}


def predict_symbol(params, x, step, *, key):
    """Logits of the marked symbol from sequences (batch, time, features)."""

    def one(state, inputs):
        t, x = inputs
        return step(params["cell"], x, *state, key=key, now=fold(key, "step", t)), None

    zeros = jnp.zeros((len(x), UNITS))
    indices = jnp.arange(LENGTH, dtype=jnp.uint32)
    (h, _), _ = jax.lax.scan(one, (zeros, zeros), (indices, x.swapaxes(0, 1)))
    return nets.dense(params["readout"], h)


def lstm(cell, x, h, c, **_):
    """The next h and c, without dropout."""
    i, f, g, o = jnp.split(nets.dense(cell, jnp.concatenate([x, h], -1)), 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c
