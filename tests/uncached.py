"""Generation by its definition: a pass over the whole window for each token, and no cache."""

import jax
import jax.numpy as jnp
import numpy as np

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
    """The Gumbel maximum over what is left, chosen by rank in float64."""
    scores = np.asarray(scores, np.float64)
    if temperature == 0:
        return scores.argmax()
    scores = (scores - scores.max()) / temperature
    ranking = np.sort(scores)[::-1]
    if top_k is not None:
        scores[scores < ranking[min(top_k, len(ranking)) - 1]] = -np.inf
    if top_p is not None:
        shares = np.exp(np.sort(scores)[::-1])
        count = np.searchsorted(np.cumsum(shares) / shares.sum(), top_p) + 1
        scores[scores < ranking[min(count, len(ranking)) - 1]] = -np.inf
    return (scores + np.asarray(jax.random.gumbel(key, scores.shape, jnp.float32))).argmax()
