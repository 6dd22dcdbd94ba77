"""Dropout on the attention weights, or on the context vectors; and padding that does not matter.

    python examples/attention_dropout.py [--out docs/attention_dropout.png]

Two places for dropout in attention: on the weights (queries x keys; a query forgets some keys), as
in the Transformer, or on the context vectors, weights . values (a query loses some features). Both
have the same mean; the picture shows what one draw does to the weights, and how far the context
strays from its mean in each: where values have something in common, as in a network, a query that
sees many keys loses little with some of them, and whole features otherwise. Then a padded batch:
what padding holds changes nothing.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from dropout_jax import dot_product_attention, dropout, fold

BATCH, TIME, HEADS, DIM, RATE = 4, 32, 2, 32, 0.2  # DIM = TIME: values can show the weights


def drop_weights(query, key, value, dropout_key):
    """Weights are dropped: what most people mean by attention dropout."""
    return dot_product_attention(
        *(query, key, value), is_causal=True, dropout_rate=RATE, dropout_key=dropout_key
    )


def drop_context(query, key, value, dropout_key):
    """The context vectors are dropped, after the weights met the values."""
    context = dot_product_attention(query, key, value, is_causal=True)
    return dropout(context, RATE, key=dropout_key)


def measure_deviation(attend, arrays, key, draws=1000):
    """Root mean square distance of a draw from the mean, by position; the largest bias in sd."""
    clean = attend(*arrays, None)
    drawn = jax.vmap(lambda i: attend(*arrays, fold(key, i)))(jnp.arange(draws))
    spread = drawn.std(axis=0)
    bias = jnp.abs(drawn.mean(axis=0) - clean) / jnp.maximum(spread / draws**0.5, 1e-9)
    return jnp.sqrt(jnp.square(spread).mean(axis=(0, 2, 3))), float(bias[:, 1:].max())


def measure_padding_effect(arrays, key):
    """The largest change that anything in the padding makes to what is not padding."""
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
    """One draw of the weights by placement, and the spread by position."""
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
    arrays = (query, k, value + 1)  # what the values have in common
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
