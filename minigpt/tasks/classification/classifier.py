"""A trained text classifier: its predictions, and saving and loading it."""

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
from minigpt.data import AnyTokenizer, tokenizer_content, tokenizer_from_content
from minigpt.model import set_rates
from minigpt.tasks.classification.data import PaddedRows, count_cut, pad_texts
from minigpt.tasks.classification.model import Classifier


class TextClassifier(NamedTuple):
    """A classifier with its tokenizer, labels, settings and parameters."""

    config: ModelConfig
    vocab_size: int
    tokenizer: AnyTokenizer
    labels: tuple[str, ...]
    """the label of each class index"""
    settings: ClassifyConfig
    params: Any
    """parameters with the best macro-F1 on the validation part"""
    step: int
    """training step of these parameters"""
    evaluations: list[dict[str, float]]
    """metrics of every evaluation on the validation part"""

    @property
    def model(self) -> Classifier:
        """The module with its dropout rates: `model(rows.tokens, rows.lengths, key=key)`."""
        model = nnx.merge(self.program().graph, self.params)
        model.rate = self.settings.head_dropout
        set_rates(model.body, self.config.dropout)
        return model

    def rows(self, texts: list[str]) -> PaddedRows:
        """Tokenize and pad texts for the model."""
        drop_unknown = self.settings.unknown == "drop"
        block_size = self.config.block_size
        return pad_texts(self.tokenizer, texts, block_size, drop_unknown=drop_unknown)

    def count_cut(self, texts: list[str]) -> int:
        """The number of texts that are longer than the model's context and lose their end."""
        drop_unknown = self.settings.unknown == "drop"
        return count_cut(self.tokenizer, texts, self.config.block_size, drop_unknown=drop_unknown)

    def logits(self, rows: PaddedRows) -> np.ndarray:
        """Logits of every row with dropout off: (rows, classes)."""
        return predict_logits(self.program(), self.params, rows, self.settings.batch_size)

    def visible(self, texts: list[str]) -> list[str]:
        """The beginning of each text, as far as it fits into the model's context."""
        rows = self.rows(texts)
        pairs = zip(rows.tokens, rows.lengths, strict=True)
        return [self.tokenizer.decode(tokens[:length]) for tokens, length in pairs]

    def predict(self, texts: list[str]) -> list[str]:
        """The most likely label of each text."""
        return [self.labels[i] for i in self.logits(self.rows(texts)).argmax(-1)]

    def program(self) -> Program:
        """The structure and compiled functions; classifiers that differ in rates share them."""
        config = dataclasses.replace(self.config, dropout=DropoutConfig())
        return build_program(config, self.vocab_size, len(self.labels), self.settings.pool)

    def save(self, folder: Path) -> None:
        """Write a checkpoint that contains everything that `load` needs."""
        description = {
            "model": dataclasses.asdict(self.config),
            "vocab_size": self.vocab_size,
            **tokenizer_content(self.tokenizer),
            "labels": self.labels,
            "settings": dataclasses.asdict(self.settings),
            "looks": self.evaluations,
        }
        loss = next(e["val_loss"] for e in self.evaluations if e["step"] == self.step)
        with CheckpointWriter(folder) as writer:
            meta = {"val_loss": loss, "classifier": description}
            writer.save(self.step, host_arrays(self.params), meta)


def load(folder: Path) -> TextClassifier:
    """Load and verify a classifier that `TextClassifier.save` or `minigpt classify` wrote."""
    steps = list_steps(folder)
    if not steps:
        raise ValueError(
            f"{str(folder)!r} has no classifier. Train one: minigpt classify RUN_DIR --out FOLDER."
        )
    _, meta = read(folder, steps[-1])
    try:
        classifier = _parse_description(meta["classifier"], steps[-1])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(folder)!r} has no classifier of this version of minigpt ({error!r}). Train one: "
            "minigpt classify RUN_DIR --out FOLDER."
        ) from None
    params, _ = restore(folder, classifier.program().shapes, steps[-1])
    return classifier._replace(params=jax.tree.map(jnp.asarray, params))


def _parse_description(description: dict[str, Any], step: int) -> TextClassifier:
    """A classifier without parameters, from the description that `save` writes."""
    model, settings = description["model"], description["settings"]
    return TextClassifier(
        config=ModelConfig.from_table(model),
        vocab_size=description["vocab_size"],
        tokenizer=tokenizer_from_content(description),
        labels=tuple(description["labels"]),
        settings=ClassifyConfig(**(settings | {"optim": OptimConfig(**settings["optim"])})),
        params=None,
        step=step,
        evaluations=description["looks"],
    )


class Program(NamedTuple):
    """The structure of a classifier, and its functions that do not depend on dropout rates."""

    graph: nnx.GraphDef[Classifier]
    shapes: Any
    """the parameters as jax.ShapeDtypeStruct"""
    create: Callable[[jax.Array], Any]
    """a key to initial parameters"""
    logits: Callable[[Any, PaddedRows], jax.Array]
    """(params, rows) to logits, dropout off"""


@functools.lru_cache(maxsize=16)
def build_program(config: ModelConfig, vocab_size: int, classes: int, pool: str) -> Program:
    """Build the structure and the functions of a classifier; the result is cached."""

    def create(key: jax.Array) -> Any:
        return nnx.state(Classifier(config, vocab_size, classes, pool, key=key))

    def build() -> Classifier:
        return Classifier(config, vocab_size, classes, pool, key=jax.random.key(0))

    graph, shapes = nnx.split(nnx.eval_shape(build))

    def logits(params: Any, rows: PaddedRows) -> jax.Array:
        return nnx.merge(graph, params)(rows.tokens, rows.lengths, key=None)

    return Program(graph, shapes, jax.jit(create), jax.jit(logits))


def predict_logits(program: Program, params: Any, rows: PaddedRows, batch_size: int) -> np.ndarray:
    """Logits of all rows with dropout off, computed in batches of equal shape."""
    logits = [
        np.asarray(program.logits(params, part))[:count]
        for part, count in _batches(rows, batch_size)
    ]
    return np.concatenate(logits)


def _batches(rows: PaddedRows, batch_size: int) -> Iterator[tuple[PaddedRows, int]]:
    """Yield batches and their number of rows; the last batch is padded with copies of its rows."""
    for first in range(0, len(rows.lengths), batch_size):
        indices = np.arange(first, min(first + batch_size, len(rows.lengths)))
        padded = np.resize(indices, batch_size)
        yield PaddedRows(*(array[padded] for array in rows)), len(indices)
