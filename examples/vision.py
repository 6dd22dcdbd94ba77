"""A small vision transformer on 1,000 MNIST digits: dropout and DropPath beside augmentation.

A ViT over dropout_jax.nn's Encoder: 16 patches of 7 x 7 pixels, 4 pre-norm blocks of width 64, 4
heads. The rate is that of dropout after attention and in the feed-forward network, and of DropPath
in the last block; DropPath grows linearly over depth. RandAugment-like augmentation applies two of
six operations to each image; Mixup mixes pairs of images and their labels. A seed decides the
split, weights, batches, augmentation and masks. For each augmentation the best rate above 0 is
chosen by the accuracy on 2,000 digits and measured on 2,000 others; differences are taken seed by
seed. Training is AdamW for 600 steps of 64, at 2e-3 after a warm-up, falling to 0.
"""

import functools
import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent / "claims"))  # common

from common import charts, claim, data, nets
from common.claim import Finding, Result, by_cell, describe, interval, verdict_by
from dropout_jax import fold, linear_over_depth
from dropout_jax.nn import Encoder

SIDE, PATCH, PER_SIDE, FEATURES, HEADS, CLASSES = 28, 7, 4, 64, 4, 10
RATES = (0.0, 0.1, 0.2)
AUGMENTATIONS = {  # RandAugment's strength, Mixup's alpha
    "none": (0.0, 0.0),
    "RandAugment": (1.0, 0.0),
    "RandAugment, Mixup": (1.0, 0.2),
}
# At strength 1: shifts down and right in pixels, rotation in radians, shear, scale, contrast.
LIMITS = (3.0, 3.0, 0.4, 0.3, 0.2, 0.5)
HUANG = "Huang et al., Deep networks with stochastic depth, ECCV 2016; Steiner et al., TMLR 2022"
HERNANDEZ = "Hernández-García and König, Data augmentation instead of explicit regularization, 2018"
PAPERS = "Cubuk et al., RandAugment, NeurIPS 2020; Zhang et al., mixup, ICLR 2018"


class ViT(nnx.Module):
    """Patches, positions, an encoder with dropout and DropPath, and the mean of its tokens."""

    def __init__(self, layers: int, rate: float, *, rngs: nnx.Rngs):
        self.embed = nnx.Linear(PATCH**2, FEATURES, rngs=rngs)
        positions = jax.random.normal(rngs.params(), (PER_SIDE**2, FEATURES))
        self.positions = nnx.Param(0.02 * positions)
        rates = dict.fromkeys(("attn_out", "mlp_hidden", "mlp_out"), rate)
        rates |= {"drop_path": linear_over_depth(rate, layers)}
        options = {"rates": rates, "activation": "gelu_tanh"}
        self.encoder = Encoder(layers, FEATURES, HEADS, **options, rngs=rngs)
        self.head = nnx.Linear(FEATURES, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array, *, key: jax.Array | None) -> jax.Array:
        """Logits of images (batch, 28, 28); without a key nothing drops."""
        x = self.embed(split_patches(images)) + self.positions[...]
        x = self.encoder(x, deterministic=key is None, rngs=key)
        return self.head(x.mean(1))


def split_patches(images: jax.Array) -> jax.Array:
    """Squares of 7 x 7 pixels, row by row: (batch, 28, 28) becomes (batch, 16, 49)."""
    squares = images.reshape(-1, PER_SIDE, PATCH, PER_SIDE, PATCH).swapaxes(2, 3)
    return squares.reshape(-1, PER_SIDE**2, PATCH**2)


def rand_augment(images: jax.Array, strength: jax.Array | float, *, key: jax.Array) -> jax.Array:
    """Apply two random operations of LIMITS to each image, up to its limit times `strength`."""
    shape = (len(images), len(LIMITS))
    is_chosen = jax.random.uniform(fold(key, "operations"), shape).argsort(-1) < 2
    sizes = jax.random.uniform(fold(key, "sizes"), shape, minval=-1.0, maxval=1.0)
    return jax.vmap(transform)(images, strength * is_chosen * sizes * jnp.array(LIMITS))


def transform(image: jax.Array, sizes: jax.Array) -> jax.Array:
    """Shift, rotate, shear and scale an image about its centre, and change its contrast."""
    _, _, angle, shear, scale, contrast = sizes
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    rotation = jnp.array([[cosine, -sine], [sine, cosine]])
    matrix = (1 + scale) * rotation @ jnp.array([[1.0, 0.0], [shear, 1.0]])
    centre = (SIDE - 1) / 2
    grid = jnp.indices((SIDE, SIDE), jnp.float32) - centre
    sources = jnp.einsum("ij,jhw->ihw", matrix, grid) + centre - sizes[:2, None, None]
    moved = jax.scipy.ndimage.map_coordinates(image, list(sources), order=1)
    return jnp.clip(moved + contrast * (moved - moved.mean()), 0, 1)


def mixup(images, targets, alpha: jax.Array | float, *, key: jax.Array):
    """Mix each image and its target with another row's; the share is Beta(alpha, alpha)."""
    known = jnp.where(alpha > 0, alpha, 1.0)
    share = jax.random.beta(key, known, known, (len(images), 1))
    share = jnp.where(alpha > 0, share, 1.0)  # alpha 0 mixes nothing
    mixed = share[..., None] * images + (1 - share[..., None]) * images[::-1]
    return mixed, share * targets + (1 - share) * targets[::-1]


def augment(images, labels, strength, alpha, *, key: jax.Array):
    """RandAugment, then Mixup: images and the probabilities of their classes."""
    images = rand_augment(images, strength, key=fold(key, "RandAugment"))
    return mixup(images, jax.nn.one_hot(labels, CLASSES), alpha, key=fold(key, "Mixup"))


def train(layers: int, rate: float, steps: int, seed, augmentation):
    """Accuracy on the digits to choose a rate by, and on those to measure it on."""
    images, labels = data.load_all_mnist()
    strength, alpha = jnp.array(list(AUGMENTATIONS.values()))[augmentation]
    key = jax.random.key(seed)
    order = jax.random.permutation(fold(key, "images"), len(images))
    rows_train, *rows_test = jnp.split(order, (1000, 3000))
    model = ViT(layers, rate, rngs=nnx.Rngs(params=fold(key, "weights")))
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rows, key):
        rows = rows_train[rows]
        batch = images[rows], labels[rows]
        x, targets = augment(*batch, strength, alpha, key=fold(key, "augmentation"))
        logits = nnx.merge(graph, params, rest)(x, key=fold(key, "dropout"))
        return optax.softmax_cross_entropy(logits, targets).mean()

    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, steps // 10, steps)
    tx = optax.adamw(schedule, weight_decay=0.05)
    params = nets.fit(loss, params, len(rows_train), fold(key, "fit"), steps=steps, tx=tx)
    model = nnx.merge(graph, params, rest)
    return [nets.accuracy(model(images[rows], key=None), labels[rows]) for rows in rows_test]


def experiment(scale: claim.Scale) -> Result:
    layers, steps = scale.pick(1, 4, 4), scale.pick(3, 600, 5000)
    seeds = range(scale.pick(3, 3, 10))
    programs = {rate: jax.jit(functools.partial(train, layers, rate, steps)) for rate in RATES}
    cells = itertools.product(range(len(AUGMENTATIONS)), RATES, seeds)
    jobs = scale.track(cells, "augmentations, rates, seeds")
    runs = [jax.device_get(programs[rate](seed, each)) for each, rate, seed in jobs]
    accuracy = 100 * np.reshape(runs, (len(AUGMENTATIONS), len(RATES), len(seeds), 2))
    table = dict(zip(AUGMENTATIONS, accuracy[..., 1], strict=True))  # (rate, seed)
    chosen = 1 + accuracy[:, 1:, :, 0].mean(-1).argmax(-1)
    best = dict(zip(AUGMENTATIONS, chosen.tolist(), strict=True))
    gains = {name: table[name][i] - table[name][0] for name, i in best.items()}
    numbers = {
        "rates": RATES,
        "test accuracy, %": {name: list(map(interval, of)) for name, of in table.items()},
        "best rate above 0": {name: RATES[i] for name, i in best.items()},
        "its gain, points": {name: interval(gain) for name, gain in gains.items()},
        "every run (augmentation, rate, seed): to choose by, test": accuracy,
    }
    return Result(findings(table, best, gains), picture(table, gains), numbers)


def findings(table, best, gains) -> list[Finding]:
    """What dropout gains at its best rate with each augmentation, and what augmentation gains."""
    named = {f"{name} (rate {RATES[i]})": interval(gains[name]) for name, i in best.items()}
    none, *others = AUGMENTATIONS
    falls = {name: interval(gains[none] - gains[name]) for name in others}
    beside = dict(list(named.items())[1:])
    needless = {name: cell.high < 0.5 for name, cell in beside.items()}
    raised = {name: interval(table[name][0] - table[none][0]) for name in others}
    what, it = "Points of test accuracy at the best rate above 0, minus rate 0", "augmentation is"
    fall = "Points gained without augmentation minus points gained with it"
    rise = "Points of test accuracy at rate 0, minus those without augmentation"
    raises = "Augmentation raises the accuracy of a ViT without dropout"
    less = "Dropout with DropPath gains less with augmentation than without"
    text = "Beside augmentation dropout with DropPath is needless: it gains less than half a point"
    return [
        by_cell(raises, PAPERS, rise, raised, it, "+.1f"),
        by_cell("Dropout with DropPath raises a ViT's accuracy", HUANG, what, named, it, "+.1f"),
        by_cell(less, HERNANDEZ, fall, falls, it, "+.1f"),
        Finding(text, HERNANDEZ, f"{what}: {describe(beside, '+.1f')}", verdict_by(it, needless)),
    ]


def picture(table, gains: dict[str, np.ndarray]) -> Figure:
    """Accuracy by rate, the gains of the best rates, and what augmentation does to images."""
    figure, (left, middle, right) = charts.panels(4, 3.6, 4, height=3.8)
    for i, (name, of_rates) in enumerate(table.items()):
        x = np.array(RATES) + 0.004 * (i - 1)
        charts.points(left, x, map(interval, of_rates), name, ("o-", "s--", "^:")[i])
    left.set(xlabel="rate of dropout, and of DropPath in the last block", ylabel="test accuracy, %")
    left.legend(title="augmentation", fontsize=8)
    cells = {name.replace(", ", ",\n"): interval(gain) for name, gain in gains.items()}
    charts.forest(middle, cells, xlabel="points gained by the best rate above 0")
    right.imshow(draw_images(), cmap="gray_r", vmin=0, vmax=1)
    right.set_yticks([(i + 0.5) * SIDE for i in range(len(cells))], list(cells))
    right.set(xticks=[], title="the same five digits")
    return figure


def draw_images() -> np.ndarray:
    """Five digits with each augmentation, a row for each."""
    images, labels = (each[250::1000] for each in data.load_all_mnist())
    key, pairs = jax.random.key(0), AUGMENTATIONS.values()
    rows = [augment(images, labels, strength, alpha, key=key)[0] for strength, alpha in pairs]
    return np.vstack([np.hstack(list(row)) for row in rows])


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
