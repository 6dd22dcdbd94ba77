"""A pretrained GPT becomes a classifier of texts: what training begins with, and what it ends with.

A run is a pure function of its settings, texts and pretrained parameters: keys are by (seed, step).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dropout_jax import fold
from minigpt.checkpoint import CheckpointWriter, host_arrays, list_steps, read, restore
from minigpt.config import ClassifyConfig, DropoutConfig, ModelConfig, OptimConfig
from minigpt.data import Tokenizer
from minigpt.model import set_rates
from minigpt.tasks.classification.data import LabelledSplit, PaddedRows, pad_texts
from minigpt.tasks.classification.metrics import macro_f1
from minigpt.tasks.classification.model import Classifier
from minigpt.training.optimizer import optimizer

if TYPE_CHECKING:
    pass

# What training begins with, and what it ends with.


class PretrainedModel(NamedTuple):
    """A pretrained GPT: a run's settings, tokenizer and parameters; params=None is from scratch."""

    config: ModelConfig
    vocab_size: int
    tokenizer: Tokenizer
    params: Any

    def within(self, classifier: Any) -> Any:
        """The parameters of a whole classifier, with these in the place of its body's."""
        if self.params is None:
            return classifier
        body = nnx.to_pure_dict(self.params)
        if self.config.scan_layers:
            stacked, layers = body["blocks"], range(self.config.n_layer)
            body["blocks"] = {i: jax.tree.map(operator.itemgetter(i), stacked) for i in layers}
        values = nnx.to_pure_dict(classifier) | {"body": jax.tree.map(jnp.asarray, body)}
        nnx.replace_by_pure_dict(classifier, values)
        return classifier


class TextClassifier(NamedTuple):
    """A classifier, and what it is used with."""

    config: ModelConfig
    vocab_size: int
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    """by class"""
    settings: ClassifyConfig
    params: Any
    """those of the best macro-F1 of the validation part"""
    step: int
    """at which they were"""
    looks: list[dict[str, float]]
    """what was measured on the way, at every look at the validation part"""

    @property
    def model(self) -> Classifier:
        """The module with its rates: `model(rows.tokens, rows.lengths, key=key)`."""
        model = nnx.merge(self.program().graph, self.params)
        model.rate = self.settings.head_dropout
        set_rates(model.body, self.config.dropout)
        return model

    def rows(self, texts: list[str]) -> PaddedRows:
        """Texts as the model takes them."""
        drop = self.settings.unknown == "drop"
        return pad_texts(self.tokenizer, texts, self.config.block_size, drop_unknown=drop)

    def logits(self, rows: PaddedRows) -> np.ndarray:
        """Logits of every row, dropout off."""
        return _logits(self.program(), self.params, rows, self.settings.batch_size)

    def visible(self, texts: list[str]) -> list[str]:
        """What the model sees of each text: the beginning, as far as it fits."""
        rows = self.rows(texts)
        pairs = zip(rows.tokens, rows.lengths, strict=True)
        return [self.tokenizer.decode(tokens[:length]) for tokens, length in pairs]

    def predict(self, texts: list[str]) -> list[str]:
        """The likeliest label of each text."""
        return [self.labels[i] for i in self.logits(self.rows(texts)).argmax(-1)]

    def program(self) -> _Program:
        """Its structure without rates, which all rates share, and what that compiles to."""
        without = dataclasses.replace(self.config, dropout=DropoutConfig())
        return _program(without, self.vocab_size, len(self.labels), self.settings.pool)

    def save(self, folder: Path) -> None:
        """Write it as a checkpoint that says all of itself; `load` reads it."""
        about = {
            "model": dataclasses.asdict(self.config),
            "vocab_size": self.vocab_size,
            "alphabet": self.tokenizer.alphabet,
            "labels": self.labels,
            "settings": dataclasses.asdict(self.settings),
            "looks": self.looks,
        }
        loss = next(look["val_loss"] for look in self.looks if look["step"] == self.step)
        with CheckpointWriter(folder) as writer:
            meta = {"val_loss": loss, "classifier": about}
            writer.save(self.step, host_arrays(self.params), meta)


def load(folder: Path) -> TextClassifier:
    """A classifier that `Trained.save` or `minigpt classify` wrote, verified."""
    saved = list_steps(folder)
    if not saved:
        raise ValueError(f"{str(folder)!r} holds no classifier: minigpt classify writes one.")
    _, meta = read(folder, saved[-1])
    try:
        about = meta["classifier"]
        model, settings = about["model"], about["settings"]
        config = ModelConfig(**(model | {"dropout": DropoutConfig(**model["dropout"])}))
        settings = ClassifyConfig(**(settings | {"optim": OptimConfig(**settings["optim"])}))
        labels, tokenizer = tuple(about["labels"]), Tokenizer(about["alphabet"])
        vocab_size, looks = about["vocab_size"], about["looks"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(folder)!r} holds no classifier of this version of minigpt ({error!r}). A run "
            "becomes one by minigpt classify."
        ) from None
    found = TextClassifier(config, vocab_size, tokenizer, labels, settings, None, saved[-1], looks)
    params, _ = restore(folder, found.program().shapes, saved[-1])
    return found._replace(params=jax.tree.map(jnp.asarray, params))


# Training.


class Labels(NamedTuple):
    """Classes by number, and the weight of each class's losses."""

    train: np.ndarray
    validation: np.ndarray
    weights: np.ndarray


def fit(
    body: PretrainedModel,
    data: LabelledSplit,
    settings: ClassifyConfig,
    seen: Callable[[dict[str, float]], Any] = lambda look: None,
) -> TextClassifier:
    """Train a classifier and keep the parameters of the best macro-F1 of the validation part.

    Not of the lowest loss: with texts of other sources than training's that turns early, when most
    answers are still the commonest class.

    `seen` is given every look at the validation part. Runs that differ in seed, texts or rates only
    share their compiled step.
    """
    names, freeze = data.classes(), settings.freeze or 0
    if freeze > body.config.n_layer:
        raise ValueError(
            f"freeze={freeze} is not allowed: the model has {body.config.n_layer} blocks."
        )
    rates = DropoutConfig.uniform(settings.dropout)
    config = dataclasses.replace(body.config, dropout=rates, scan_layers=False)
    begun = TextClassifier(
        config, body.vocab_size, body.tokenizer, tuple(names), settings, None, 0, []
    )
    params = begun.program().create(jax.random.key(settings.seed))
    begun = begun._replace(params=body.within(params))
    rows = _rows(begun, data)
    return _train(
        begun, rows["train"], rows["validation"], _encode_labels(data, names, settings), seen
    )


def _rows(begun: TextClassifier, data: LabelledSplit) -> dict[str, PaddedRows]:
    """Every part's, the test's too: a text that cannot be read is told before the training."""
    rows = {}
    for name, part in data._asdict().items():
        try:
            rows[name] = begun.rows(part.texts)
        except ValueError as error:
            raise ValueError(f"the {name} part's {error}") from None
    return rows


def _train(
    begun: TextClassifier, train: PaddedRows, validation: PaddedRows, labels: Labels, seen: Callable
) -> TextClassifier:
    """Steps, and looks at the validation part; the best parameters are kept."""
    settings, best, root = begun.settings, begun, jax.random.key(begun.settings.seed)
    init, train_step = _step(begun.program().graph, settings.optim, settings.steps)
    is_frozen = functools.partial(_is_frozen, settings.freeze)
    frozen, params = nnx.split_state(begun.params, is_frozen, ...)
    opt_state, looks, losses = init(params), [], []
    rates = jnp.float32(settings.head_dropout), jnp.float32(settings.dropout)
    for step in range(1, settings.steps + 1):
        at = example_indices(settings.seed, step - 1, len(labels.train), settings.batch_size)
        batch = PaddedRows(*(each[at] for each in train)), labels.train[at]
        params, opt_state, loss = train_step(
            *(params, opt_state, frozen, batch, labels.weights),
            *(rates, root, jnp.uint32(step - 1)),
        )
        losses.append(loss)
        if step % settings.eval_every and step < settings.steps:
            continue
        whole = nnx.merge_state(frozen, params)
        logits = _logits(begun.program(), whole, validation, settings.batch_size)
        look = {"step": step, "train_loss": float(np.mean(losses))}
        look |= _validation_metrics(logits, labels.validation, labels.weights)
        losses = []
        _require_finite(look)
        looks.append(look)
        seen(look)
        if look["val_macro_f1"] > max(
            (before["val_macro_f1"] for before in looks[:-1]), default=-1
        ):
            best = begun._replace(params=whole, step=step)
        elif settings.patience and step - best.step >= settings.patience * settings.eval_every:
            break
    return best._replace(looks=looks)


def example_indices(seed: int, step: int, examples: int, batch_size: int) -> np.ndarray:
    """Which examples a step sees, by (seed, step) alone: each once an epoch, in the epoch's order.

    Orders are of raw words of Philox, whose stream NumPy promises never to change.
    """
    wanted = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, within = np.divmod(wanted, examples)
    orders = {epoch: _order(seed, int(epoch), examples) for epoch in np.unique(epochs)}
    return np.array([orders[e][i] for e, i in zip(epochs, within, strict=True)])


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, examples: int) -> np.ndarray:
    words = np.random.Philox(key=seed, counter=[0, epoch, 1, 0]).random_raw(examples)
    return np.argsort(words, kind="stable")


def _encode_labels(data: LabelledSplit, names: list[str], settings: ClassifyConfig) -> Labels:
    number = {name: i for i, name in enumerate(names)}
    train, validation = (
        np.array([number[label] for label in part.labels], np.int32)
        for part in (data.train, data.validation)
    )
    weights = np.ones(len(names), np.float32)
    if settings.class_weights == "balanced":  # of mean 1 over the training part
        weights = (len(train) / (len(names) * np.bincount(train))).astype(np.float32)
    return Labels(train, validation, weights)


def _validation_metrics(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> dict[str, float]:
    predicted = logits.argmax(-1)
    return {
        "val_loss": float(_losses(logits, labels, weights).mean()),
        "val_accuracy": float((predicted == labels).mean()),
        "val_macro_f1": macro_f1(labels, predicted),
    }


def _require_finite(look: dict[str, float]) -> None:
    for name in ("train_loss", "val_loss"):
        if not math.isfinite(look[name]):
            raise ValueError(
                f"{name} is {look[name]} at step {look['step']:.0f}, so training has stopped. Take "
                "a lower --optim.learning-rate."
            )


def _losses(logits, labels, weights):
    """Cross-entropy in nats, each times its class's weight."""
    losses = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), labels)
    return losses * jnp.asarray(weights)[labels]


# Compiled programs, kept by what they depend on, as jax.jit keeps what it compiled.


class _Program(NamedTuple):
    """A classifier's structure, and what needs no rate."""

    graph: Any
    shapes: Any
    create: Callable
    """a key to initial parameters"""
    logits: Callable
    """(params, rows) to logits, dropout off"""


@functools.lru_cache(maxsize=16)
def _program(config: ModelConfig, vocab_size: int, classes: int, pool: str) -> _Program:
    def create(key):
        return nnx.state(Classifier(config, vocab_size, classes, pool, key=key))

    def structure():
        return Classifier(config, vocab_size, classes, pool, key=jax.random.key(0))

    graph, shapes = nnx.split(nnx.eval_shape(structure))

    def logits(params, rows: PaddedRows):
        return nnx.merge(graph, params)(rows.tokens, rows.lengths, key=None)

    return _Program(graph, shapes, jax.jit(create), jax.jit(logits))


@functools.lru_cache(maxsize=16)
def _step(graph: Any, optim: OptimConfig, steps: int) -> tuple[Callable, Callable]:
    """The optimizer's state at the start, and one step; (head's, body's) rates are traced."""
    tx = optimizer(optim, steps)

    def step(params, opt_state, frozen, batch, weights, rates, root, step):
        rows, labels = batch

        def mean_loss(params):
            model = nnx.merge(graph, nnx.merge_state(frozen, params))
            set_rates(model.body, DropoutConfig.uniform(rates[1]))
            key = fold(root, "dropout", step)
            logits = model(rows.tokens, rows.lengths, key=key, rate=rates[0])
            return _losses(logits, labels, weights).mean()

        loss, gradient = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return jax.jit(tx.init), jax.jit(step)


def _is_frozen(freeze: int | None, path: tuple, value: Any) -> bool:
    """Whether training leaves a parameter as it was, by its path in the classifier."""
    if freeze is None or path[0] != "body":
        return False
    return path[1] in ("tokens", "positions") or (path[1] == "blocks" and path[2] < freeze)


def _logits(program: _Program, params: Any, rows: PaddedRows, batch_size: int) -> np.ndarray:
    """Logits of all rows, dropout off, in batches of one shape."""
    found = [
        np.asarray(program.logits(params, part))[:count]
        for part, count in _batches(rows, batch_size)
    ]
    return np.concatenate(found)


def _batches(rows: PaddedRows, batch_size: int) -> Iterator[tuple[PaddedRows, int]]:
    """Batches, the last filled up with its first row again; and how many rows of each count."""
    for begin in range(0, len(rows.lengths), batch_size):
        at = np.arange(begin, min(begin + batch_size, len(rows.lengths)))
        yield PaddedRows(*(each[np.resize(at, batch_size)] for each in rows)), len(at)
