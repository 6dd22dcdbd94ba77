"""Generation by its definition: a pass over the whole window for each token, and no cache."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dropout_jax import fold


def generate(logits, params, prompt, *, tokens, block_size, vocab_size, seed, **options):
    """The ids that continue the prompt; the model reads the last block_size ids."""
    key, ids = fold(jax.random.key(seed), "sample"), list(map(int, prompt))
    for i in range(tokens):
        window = np.zeros((1, block_size), np.int32)
        last = ids[-block_size:]
        window[0, : len(last)] = last
        scores = logits(params, jnp.asarray(window))[0, len(last) - 1, :vocab_size]
        ids.append(int(draw(scores, fold(key, i), **options)))
    return ids[len(prompt) :]


def draw(scores, key, *, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        return jnp.argmax(scores)
    scores = (scores - scores.max()) / temperature
    if top_k is not None and top_k < scores.shape[0]:
        scores = jnp.where(scores < lax.top_k(scores, top_k)[0][-1], -jnp.inf, scores)
    if top_p is not None:
        ranked = jnp.sort(scores, descending=True)
        probability_of_likelier = jnp.cumsum(jax.nn.softmax(ranked)) - jax.nn.softmax(ranked)
        lowest = jnp.min(jnp.where(probability_of_likelier < top_p, ranked, jnp.inf))
        scores = jnp.where(scores < lowest, -jnp.inf, scores)
    return jax.random.categorical(key, scores)
