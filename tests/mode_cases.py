"""Every public function of dropout_jax that takes arrays, as the table of modes calls it."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import dropout_jax
from dropout_jax import calibration
from dropout_jax.parity import bernoulli, keys

KEYED = frozenset(("rate", "key", "evaluation"))


@dataclasses.dataclass(frozen=True)
class Case:
    """A public function as fn(arrays, rate, key), and arrays whose first axis is the batch.

    `needs` names what a mode may vary: "rate", "key", "offset" (as `row_offset`), and "evaluation",
    which is key=None. "split" is a function that follows jax.random.split, which
    jax_threefry_partitionable changes.
    """

    name: str
    fn: Callable
    arrays: Callable  # batch -> a tuple of arrays
    needs: frozenset = KEYED

    def __str__(self):
        return self.name


def numbers(*shape):
    """An array of normals for each call, with the batch first."""
    return lambda batch: (_normals((batch, *shape)),)


def _normals(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def probabilities(batch, classes=3, samples=()):
    scores = np.exp(_normals((batch, *samples, classes)))
    return (scores / scores.sum(-1, keepdims=True)).astype(np.float32)


def _labelled(batch):
    return probabilities(batch), np.arange(batch, dtype=np.int32) % 3


def _heads(batch, queries=34, keys=34, heads=2):
    shape = (batch, queries, heads, 4), (batch, keys, heads, 4), (batch, keys, heads, 4)
    return tuple(_normals(each, i) for i, each in enumerate(shape))


def _attend(implementation):
    def fn(arrays, rate, key, row_offset=None):
        return dropout_jax.dot_product_attention(
            *arrays,
            is_causal=True,
            dropout_rate=rate,
            dropout_key=key,
            dropout_row_offset=row_offset,
            implementation=implementation,
        )

    return fn


def _op(name, shape=(34, 3), *, also=(), **options):
    """A case of an op (x, rate, *, key, ...)."""
    op = getattr(dropout_jax, name)

    def fn(arrays, rate, key, **offset):
        return op(arrays[0], rate, key=key, **options, **offset)

    label = name + "".join(f", {word}" for word in also)
    offset = {"offset"} if name in ("dropout", "drop_path") else set()
    return Case(label, fn, numbers(*shape), KEYED | offset)


def _plain(name, fn, arrays, *needs):
    return Case(name, fn, arrays, frozenset(needs))


def _square(x):
    return x * x


CASES = [
    _op("dropout"),
    _op("dropout", (3, 40), also=["last axis packed"]),
    _op("dropout", (5,), also=["flat"]),
    _op("dropout_unscaled"),
    _op("alpha_dropout"),
    _op("gaussian_dropout"),
    _op("spatial_dropout"),
    _op("locked_dropout"),
    _op("token_dropout"),
    _op("embedding_dropout"),
    _op("head_dropout", (2, 34, 3), head_axis=1),
    _op("drop_path"),
    _op("drop_path", also=["mode='batch'"], mode="batch"),
    _op("drop_connect"),
    _op("drop_block", (9, 3), block_size=2),
    Case(
        "zoneout",
        lambda arrays, rate, key: dropout_jax.zoneout(arrays[0], arrays[1], rate, key=key),
        lambda batch: (_normals((batch, 34, 3)), _normals((batch, 34, 3), 1)),
    ),
    Case(
        "masked_dropout",
        lambda arrays, rate, key: dropout_jax.masked_dropout(arrays[0], rate, arrays[1], key=key),
        lambda batch: (_normals((batch, 34, 3)), _normals((batch, 34, 3), 1) > 0),
    ),
    Case(
        "layer_drop",
        lambda arrays, rate, key: dropout_jax.layer_drop(_square, arrays[0], rate, key=key),
        numbers(34, 3),
    ),
    Case(
        "multi_sample_dropout",
        lambda arrays, rate, key: dropout_jax.multi_sample_dropout(
            _square, arrays[0], rate, key=key, samples=3
        ),
        numbers(34, 3),
    ),
    _plain(
        "concrete_dropout",
        lambda arrays, rate, key: dropout_jax.concrete_dropout(arrays[0], -1.0, key=key),
        numbers(34, 3),
        "key",
    ),
    _plain(
        "concrete_dropout_penalty",
        lambda arrays, rate, key: dropout_jax.concrete_dropout_penalty(
            arrays[0], -1.0, weight_scale=0.1, dropout_scale=0.2
        ),
        numbers(3),
    ),
    _plain(
        "variational_dropout",
        lambda arrays, rate, key: dropout_jax.variational_dropout(arrays[0], -1.0, key=key),
        numbers(34, 3),
        "key",
    ),
    _plain(
        "variational_dropout_kl",
        lambda arrays, rate, key: dropout_jax.variational_dropout_kl(*arrays),
        numbers(3),
    ),
    Case(
        "keep_mask",
        lambda arrays, rate, key, **offset: dropout_jax.keep_mask(
            key, rate, arrays[0].shape, **offset
        ),
        numbers(34, 3),
        frozenset(("rate", "key", "offset")),
    ),
    _plain(
        "apply_mask",
        lambda arrays, rate, key: dropout_jax.apply_mask(arrays[0], arrays[1], rate),
        lambda batch: (_normals((batch, 34, 3)), _normals((batch, 34, 3), 1) > 0),
        "rate",
    ),
    Case(
        "dropkey_bias",
        lambda arrays, rate, key: dropout_jax.dropkey_bias(arrays[0].shape, rate, key=key),
        numbers(34, 3),
    ),
    Case(
        "dot_product_attention",
        _attend(None),
        _heads,
        KEYED | {"offset"},
    ),
    Case(
        "dot_product_attention, 130 queries",
        _attend(None),
        functools.partial(_heads, queries=130, keys=40, heads=1),
        KEYED | {"offset"},
    ),
    _plain(
        "r_drop_divergence",
        lambda arrays, rate, key: dropout_jax.r_drop_divergence(*arrays),
        lambda batch: (_normals((batch, 5)), _normals((batch, 5), 1)),
    ),
    _plain(
        "fold",
        lambda arrays, rate, key: jax.random.key_data(dropout_jax.fold(key, "block", 3, "attn")),
        numbers(3),
        "key",
    ),
    *[
        _plain(
            name,
            lambda arrays, rate, key, name=name: getattr(dropout_jax, name)(
                jnp.swapaxes(arrays[0], 0, 1)
            ),
            lambda batch: (probabilities(batch, samples=(5,)),),
        )
        for name in (
            "predictive_mean_and_std",
            "predictive_entropy",
            "expected_entropy",
            "mutual_information",
            "variation_ratio",
        )
    ],
    Case(
        "mc_dropout",
        lambda arrays, rate, key: dropout_jax.mc_dropout(
            lambda k: dropout_jax.dropout(arrays[0], rate, key=k), key, 3
        ),
        numbers(34, 3),
        frozenset(("rate", "key")),
    ),
    *[
        _plain(
            f"calibration.{name}",
            lambda arrays, rate, key, name=name: getattr(calibration, name)(*arrays),
            _labelled,
        )
        for name in (
            "brier_score",
            "negative_log_likelihood",
            "expected_calibration_error",
            "fit_temperature",
        )
    ],
    _plain(
        "calibration.auroc",
        lambda arrays, rate, key: calibration.auroc(*arrays),
        lambda batch: (_normals((batch,)), np.arange(batch) % 2 == 0),
    ),
    *[
        _plain(
            name,
            lambda arrays, rate, key, name=name, option=option: getattr(dropout_jax, name)(
                0.3, option
            )(*arrays),
            lambda batch: (np.arange(batch, dtype=np.int32),),
        )
        for name, option in (("early_dropout", 2), ("late_dropout", 2), ("curriculum_dropout", 0.1))
    ],
    Case(
        "parity.bernoulli.keep_mask",
        lambda arrays, rate, key: bernoulli.keep_mask(key, rate, arrays[0].shape),
        numbers(34, 3),
        frozenset(("rate", "key")),
    ),
    *[
        _plain(
            f"parity.keys.{name}",
            lambda arrays, rate, key, fn=fn: fn(key),
            numbers(3),
            "key",
            *(["split"] if name == "haiku" else []),
        )
        for name, fn in (
            ("linen", lambda key: jax.random.key_data(keys.linen(key, ("Dropout_0",)))),
            ("nnx", lambda key: jax.random.key_data(keys.nnx(key))),
            ("haiku", lambda key: jax.random.key_data(keys.haiku(key))),
        )
    ],
]
