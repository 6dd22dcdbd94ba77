"""A picture of every mask: which elements are kept or dropped, and which share a decision.

    python examples/gallery.py [--out docs/gallery.png]

Each op is applied to ones. Dropped elements are dark, kept ones grey. Elements that share a
decision have the same colour, so they are kept or dropped together.
"""

import argparse
import colorsys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import dropout_jax as dj

DROPPED = (0.13, 0.13, 0.16)
ALONE = (0.80, 0.82, 0.85)
SHAPE = (4, 8, 8)  # (batch, time, dim), or (batch, height, width) with one channel


def number_decisions(*axes):
    """Number the decisions along these axes of SHAPE; other axes share them."""
    sizes = [n if axis in axes else 1 for axis, n in enumerate(SHAPE)]
    return np.broadcast_to(np.arange(np.prod(sizes)).reshape(sizes), SHAPE)


def make_panels(key):
    """Title, note, and for each element whether it is kept and its decision, for every op."""
    x = jnp.ones(SHAPE)
    rate = 0.4

    def kept(fn, *args, **options):
        return np.asarray(fn(x, rate, *args, key=dj.fold(key, fn.__name__), **options)) != 0

    each = number_decisions(0, 1, 2)
    yield "dropout", "each element", kept(dj.dropout), each
    yield (
        "dropout, broadcast_dims=(0,)",
        "one mask for the batch",
        kept(dj.dropout, broadcast_dims=(0,)),
        number_decisions(1, 2),
    )
    yield "alpha_dropout", "dark: SELU's saturation", kept(_alpha), each
    yield "drop_connect", "each weight", kept(dj.drop_connect), each
    yield "spatial_dropout", "(batch, channel)", kept(dj.spatial_dropout), number_decisions(0, 2)
    yield (
        "locked_dropout",
        "one mask for all steps",
        kept(dj.locked_dropout),
        number_decisions(0, 2),
    )
    yield "token_dropout", "whole tokens", kept(dj.token_dropout), number_decisions(0, 1)
    yield (
        "head_dropout, head_axis=1",
        "(batch, head)",
        kept(dj.head_dropout, head_axis=1),
        number_decisions(0, 1),
    )
    yield "drop_path", "a branch, row by row", kept(dj.drop_path), number_decisions(0)
    skipped = np.asarray(dj.drop_path(x, rate, mode="batch", key=dj.fold(key, "skip"))) != 0
    yield "drop_path, mode='batch'; layer_drop", "all or nothing", skipped, number_decisions()
    blocks = dj.drop_block(x[..., None], 0.3, 3, key=dj.fold(key, "block"))[..., 0] != 0
    yield "drop_block, 3 by 3", "blocks in a map", np.asarray(blocks), each
    table = dj.embedding_dropout(jnp.ones((8, 8)), rate, key=dj.fold(key, "table")) != 0
    words = np.array([[0, 1, 2, 0, 3, 1, 4, 0], [5, 0, 6, 2, 1, 7, 0, 3]] * 2)
    yield (
        "embedding_dropout",
        "a word, wherever it stands",
        np.asarray(table)[words],
        words[..., None] + 0 * each,
    )
    zone = dj.zoneout(x, 0 * x, rate, key=dj.fold(key, "zone")) != 0
    yield "zoneout", "dark: the old state", np.asarray(zone), each
    bias = dj.dropkey_bias(SHAPE, rate, key=dj.fold(key, "bias")) == 0
    yield "dropkey_bias", "logits; no row is empty", np.asarray(bias), each
    where = np.broadcast_to(np.arange(8)[:, None] < np.array([8, 6, 3, 5])[:, None, None], SHAPE)
    padded = dj.masked_dropout(x, rate, where, key=dj.fold(key, "pad")) != 0
    yield (
        "masked_dropout",
        "white: padding, untouched",
        np.asarray(padded),
        np.where(where, each, -1),
    )


def _alpha(x, rate, *, key):
    """True where kept; alpha dropout replaces the other elements by a constant."""
    return dj.alpha_dropout(x, rate, key=key) > 0


def color_decisions(kept, decision):
    """Dark where dropped, white for padding (-1), grey where alone, a colour where shared."""
    names = range(decision.max() + 1)
    table = np.array([colorsys.hls_to_rgb(n * 5 % 8 / 8, 0.82 - n // 8 * 0.1, 0.7) for n in names])
    shared = np.bincount(decision[decision >= 0].ravel()) > 1
    table[~shared] = ALONE
    image = np.where(kept[..., None], table[decision], DROPPED)
    return np.where((decision == -1)[..., None], 1.0, image)


def shade_noise(key):
    """Shade the factor of Gaussian dropout, which has no mask."""
    factor = np.asarray(dj.gaussian_dropout(jnp.ones(SHAPE), 0.4, key=key))
    return np.clip(0.5 + (factor - 1) / 4, 0, 1)[..., None] * np.ones(3)


def draw(path):
    """Draw all panels, each a batch of four rows."""
    key = jax.random.key(4)
    images = [
        (title, note, color_decisions(kept, by)) for title, note, kept, by in make_panels(key)
    ]
    images.append(
        ("gaussian_dropout", "a factor; dark is small", shade_noise(dj.fold(key, "noise")))
    )
    figure = Figure(figsize=(14, 6.6), layout="constrained")
    figure.suptitle(
        "dark: dropped     grey: kept, decided alone     colour: kept, and decided together with "
        "all of its colour in the panel",
        fontsize=12,
    )
    grids = np.asarray(figure.subfigures(4, 4, wspace=0.04, hspace=0.03), object)
    for grid, (title, note, image) in zip(grids.ravel(), images, strict=True):
        grid.suptitle(f"{title}: {note}", fontsize=9.5)
        for row, axes in enumerate(grid.subplots(1, len(image))):
            axes.imshow(image[row])
            axes.set_xticks(np.arange(-0.5, 8), labels=[])
            axes.set_yticks(np.arange(-0.5, 8), labels=[])
            axes.grid(color="white", lw=0.7)
            axes.tick_params(length=0)
            axes.set_xlabel(f"row {row}", fontsize=7, color="0.4", labelpad=2)
            axes.spines[:].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main(args=None):
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/gallery.png"))
    out = parser.parse_args(args).out
    draw(out)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
