"""A trained classifier of texts: what it is used with, its predictions, its file."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from minigpt.checkpoint import CheckpointWriter, host_arrays, list_steps, read, restore
from minigpt.config import ClassifyConfig, DropoutConfig, ModelConfig, OptimConfig
from minigpt.data import Tokenizer
from minigpt.model import set_rates
from minigpt.tasks.classification.data import PaddedRows, pad_texts
from minigpt.tasks.classification.model import Classifier


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
    evaluations: list[dict[str, float]]
    """what was measured at every evaluation on the validation part"""

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
        return predict_logits(self.program(), self.params, rows, self.settings.batch_size)

    def visible(self, texts: list[str]) -> list[str]:
        """What the model sees of each text: the beginning, as far as it fits."""
        rows = self.rows(texts)
        pairs = zip(rows.tokens, rows.lengths, strict=True)
        return [self.tokenizer.decode(tokens[:length]) for tokens, length in pairs]

    def predict(self, texts: list[str]) -> list[str]:
        """The likeliest label of each text."""
        return [self.labels[i] for i in self.logits(self.rows(texts)).argmax(-1)]

    def program(self) -> Program:
        """Its structure and compiled functions, which classifiers of all rates share."""
        without = dataclasses.replace(self.config, dropout=DropoutConfig())
        return build_program(without, self.vocab_size, len(self.labels), self.settings.pool)

    def save(self, folder: Path) -> None:
        """Write it as a checkpoint that says all of itself; `load` reads it."""
        about = {
            "model": dataclasses.asdict(self.config),
            "vocab_size": self.vocab_size,
            "alphabet": self.tokenizer.alphabet,
            "labels": self.labels,
            "settings": dataclasses.asdict(self.settings),
            "looks": self.evaluations,
        }
        loss = next(each["val_loss"] for each in self.evaluations if each["step"] == self.step)
        with CheckpointWriter(folder) as writer:
            meta = {"val_loss": loss, "classifier": about}
            writer.save(self.step, host_arrays(self.params), meta)


def load(folder: Path) -> TextClassifier:
    """A classifier that `TextClassifier.save` or `minigpt classify` wrote, verified."""
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
        vocab_size, evaluations = about["vocab_size"], about["looks"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(folder)!r} holds no classifier of this version of minigpt ({error!r}). A run "
            "becomes one by minigpt classify."
        ) from None
    classifier = TextClassifier(
        config, vocab_size, tokenizer, labels, settings, None, saved[-1], evaluations
    )
    params, _ = restore(folder, classifier.program().shapes, saved[-1])
    return classifier._replace(params=jax.tree.map(jnp.asarray, params))


class Program(NamedTuple):
    """A classifier's structure, and what needs no rate."""

    graph: Any
    shapes: Any
    create: Callable
    """a key to initial parameters"""
    logits: Callable
    """(params, rows) to logits, dropout off"""


@functools.lru_cache(maxsize=16)
def build_program(config: ModelConfig, vocab_size: int, classes: int, pool: str) -> Program:
    """The structure of a classifier and its functions, compiled once for all rates."""

    def create(key):
        return nnx.state(Classifier(config, vocab_size, classes, pool, key=key))

    def structure():
        return Classifier(config, vocab_size, classes, pool, key=jax.random.key(0))

    graph, shapes = nnx.split(nnx.eval_shape(structure))

    def logits(params, rows: PaddedRows):
        return nnx.merge(graph, params)(rows.tokens, rows.lengths, key=None)

    return Program(graph, shapes, jax.jit(create), jax.jit(logits))


def predict_logits(program: Program, params: Any, rows: PaddedRows, batch_size: int) -> np.ndarray:
    """Logits of all rows, dropout off, in batches of one shape."""
    logits = [
        np.asarray(program.logits(params, part))[:count]
        for part, count in _batches(rows, batch_size)
    ]
    return np.concatenate(logits)


def _batches(rows: PaddedRows, batch_size: int) -> Iterator[tuple[PaddedRows, int]]:
    """Batches, the last filled up with its first row again; and how many rows of each count."""
    for begin in range(0, len(rows.lengths), batch_size):
        at = np.arange(begin, min(begin + batch_size, len(rows.lengths)))
        yield PaddedRows(*(each[np.resize(at, batch_size)] for each in rows)), len(at)
