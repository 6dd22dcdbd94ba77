"""Dropout on the attention weights or on the context vectors, and a check that padding is ignored.

    python examples/attention_dropout.py [--out docs/attention_dropout.png]

Attention can have dropout on the weights (queries x keys: a query loses some keys), as in the
Transformer, or on the context vectors, weights . values (a query loses some features). Both have
the same mean. The picture shows the weights of one draw, and how far the context deviates from its
mean in each case: if the values have a common part, as in a network, a query with many keys loses
little with some of them, while dropout on the context removes whole features. In a padded batch
the content of the padding changes nothing.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from dropout_jax import dot_product_attention, dropout, fold

BATCH, TIME, HEADS, DIM, RATE = 4, 32, 2, 32, 0.2  # DIM = TIME: identity values return the weights


def drop_weights(query, key, value, dropout_key):
    """Attention with dropout on the weights, the usual meaning of attention dropout."""
    return dot_product_attention(
        *(query, key, value), is_causal=True, dropout_rate=RATE, dropout_key=dropout_key
    )


def drop_context(query, key, value, dropout_key):
    """Attention with dropout on the context vectors, after the product of weights and values."""
    context = dot_product_attention(query, key, value, is_causal=True)
    return dropout(context, RATE, key=dropout_key)


def measure_deviation(attend, arrays, key, draws=1000):
    """Root mean square deviation from the mean by position, and the largest bias in its sd."""
    clean = attend(*arrays, None)
    drawn = jax.vmap(lambda i: attend(*arrays, fold(key, i)))(jnp.arange(draws))
    spread = drawn.std(axis=0)
    bias = jnp.abs(drawn.mean(axis=0) - clean) / jnp.maximum(spread / draws**0.5, 1e-9)
    return jnp.sqrt(jnp.square(spread).mean(axis=(0, 2, 3))), float(bias[:, 1:].max())


def measure_padding_effect(arrays, key):
    """The largest change outside the padding when the padding's content changes."""
    lengths = jnp.array([TIME, TIME - 5, TIME // 2, 1])
    query, k, value = arrays
    padded = (jnp.arange(TIME) >= lengths[:, None])[:, :, None, None]

    def attend(fill):
        dirty = [jnp.where(padded, fill, x) for x in (k, value)]
        return dot_product_attention(
            *(query, *dirty), key_value_seq_lengths=lengths, dropout_rate=RATE, dropout_key=key
        )

    return float(jnp.abs(attend(jnp.nan) - attend(0.0)).max())


def draw(arrays, key, spreads, path):
    """Draw one sample of the weights, and the spread of both kinds by position."""
    query, k, _ = arrays
    one = jnp.eye(TIME)[None, :, None].repeat(HEADS, axis=2)
    weights = {
        "clean": dot_product_attention(query[:1], k[:1], one, is_causal=True),
        "dropout on the weights": drop_weights(query[:1], k[:1], one, key),
    }
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    for ax, (name, image) in zip(axes, weights.items(), strict=False):
        ax.imshow(jnp.sqrt(image[0, :, 0]), cmap="magma", vmin=0, vmax=1)
        ax.set(title=f"weights, {name}" if name == "clean" else name, xlabel="key", ylabel="query")
    for name, spread in spreads.items():
        axes[2].plot(spread, label=name)
    axes[2].set(title="spread of the context about its mean", xlabel="query", ylim=0)
    axes[2].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/attention_dropout.png"))
    out = parser.parse_args(arguments).out
    root = jax.random.key(0)
    shape = (3, BATCH, TIME, HEADS, DIM)
    query, k, value = jax.random.normal(fold(root, "arrays"), shape)
    arrays = (query, k, value + 1)  # + 1 is the common part of the values
    deviations = {
        name: measure_deviation(attend, arrays, fold(root, "draws"))
        for name, attend in (("on weights", drop_weights), ("on context", drop_context))
    }
    result = {
        f"largest bias {name}, in standard errors": bias for name, (_, bias) in deviations.items()
    }
    result["largest change by padding"] = measure_padding_effect(arrays, fold(root, "padding"))
    draw(
        arrays, fold(root, "draw"), {name: spread for name, (spread, _) in deviations.items()}, out
    )
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1), f"\nwrote {out} and {out.with_suffix('.json')}")


if __name__ == "__main__":
    main()
