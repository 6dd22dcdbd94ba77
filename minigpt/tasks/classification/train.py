"""Train a classifier of texts from a pretrained GPT.

A run is a pure function of its settings, texts and pretrained parameters: keys are by (seed, step).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dropout_jax import fold
from minigpt.config import ClassifyConfig, DropoutConfig, ModelConfig, OptimConfig
from minigpt.data import Tokenizer
from minigpt.model import set_rates
from minigpt.tasks.classification.classifier import TextClassifier, predict_logits
from minigpt.tasks.classification.data import LabelledSplit, PaddedRows
from minigpt.tasks.classification.metrics import macro_f1
from minigpt.training import build_optimizer


class PretrainedModel(NamedTuple):
    """A pretrained GPT: a run's settings, tokenizer and parameters; params=None is from scratch."""

    config: ModelConfig
    vocab_size: int
    tokenizer: Tokenizer
    params: Any

    def load_into(self, classifier: Any) -> Any:
        """Replace the body's parameters in those of a whole classifier by these."""
        if self.params is None:
            return classifier
        body = nnx.to_pure_dict(self.params)
        if self.config.scan_layers:
            stacked, layers = body["blocks"], range(self.config.n_layer)
            body["blocks"] = {i: jax.tree.map(operator.itemgetter(i), stacked) for i in layers}
        values = nnx.to_pure_dict(classifier) | {"body": jax.tree.map(jnp.asarray, body)}
        nnx.replace_by_pure_dict(classifier, values)
        return classifier


class Labels(NamedTuple):
    """Classes by number, and the weight of each class's losses."""

    train: np.ndarray
    validation: np.ndarray
    weights: np.ndarray


def fit(
    body: PretrainedModel,
    data: LabelledSplit,
    settings: ClassifyConfig,
    on_evaluation: Callable[[dict[str, float]], Any] = lambda evaluation: None,
) -> TextClassifier:
    """Train a classifier; keep the parameters with the best macro-F1 on the validation part.

    The lowest loss would not do: on texts of other sources than those of the training it comes
    early, when most predictions are still the commonest class.

    `on_evaluation` is called with each evaluation on the validation part. Runs that differ only in
    seed, texts or rates share their compiled step.
    """
    names, freeze = data.classes(), settings.freeze or 0
    if freeze > body.config.n_layer:
        raise ValueError(
            f"freeze={freeze} is not allowed: the model has {body.config.n_layer} blocks."
        )
    rates = DropoutConfig.uniform(settings.dropout)
    config = dataclasses.replace(body.config, dropout=rates, scan_layers=False)
    untrained = TextClassifier(
        config, body.vocab_size, body.tokenizer, tuple(names), settings, None, 0, []
    )
    params = untrained.program().create(jax.random.key(settings.seed))
    untrained = untrained._replace(params=body.load_into(params))
    rows = _pad_parts(untrained, data)
    labels = _encode_labels(data, names, settings)
    return _train(untrained, rows["train"], rows["validation"], labels, on_evaluation)


def _pad_parts(classifier: TextClassifier, data: LabelledSplit) -> dict[str, PaddedRows]:
    """The rows of every part; the test's too, so that an unreadable text is an error up front."""
    rows = {}
    for name, part in data._asdict().items():
        try:
            rows[name] = classifier.rows(part.texts)
        except ValueError as error:
            raise ValueError(f"the {name} part's {error}") from None
    return rows


def _train(
    untrained: TextClassifier,
    train: PaddedRows,
    validation: PaddedRows,
    labels: Labels,
    on_evaluation: Callable[[dict[str, float]], Any],
) -> TextClassifier:
    """Make steps and evaluate on the validation part; keep the best parameters."""
    settings, best, root = untrained.settings, untrained, jax.random.key(untrained.settings.seed)
    init, train_step = _compile_step(untrained.program().graph, settings.optim, settings.steps)
    is_frozen = functools.partial(_is_frozen, settings.freeze)
    frozen, params = nnx.split_state(untrained.params, is_frozen, ...)
    opt_state, evaluations, losses = init(params), [], []
    rates = jnp.float32(settings.head_dropout), jnp.float32(settings.dropout)
    for step in range(1, settings.steps + 1):
        rows = example_indices(settings.seed, step - 1, len(labels.train), settings.batch_size)
        batch = PaddedRows(*(each[rows] for each in train)), labels.train[rows]
        params, opt_state, loss = train_step(
            *(params, opt_state, frozen, batch, labels.weights),
            *(rates, root, jnp.uint32(step - 1)),
        )
        losses.append(loss)
        if step % settings.eval_every and step < settings.steps:
            continue
        whole = nnx.merge_state(frozen, params)
        logits = predict_logits(untrained.program(), whole, validation, settings.batch_size)
        evaluation = {"step": step, "train_loss": float(np.mean(losses))}
        evaluation |= _validation_metrics(logits, labels.validation, labels.weights)
        losses = []
        _require_finite(evaluation)
        if evaluation["val_macro_f1"] > max((e["val_macro_f1"] for e in evaluations), default=-1):
            best = untrained._replace(params=whole, step=step)
        evaluations.append(evaluation)
        on_evaluation(evaluation)
        if settings.patience and step - best.step >= settings.patience * settings.eval_every:
            break
    return best._replace(evaluations=evaluations)


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


def _require_finite(evaluation: dict[str, float]) -> None:
    for name in ("train_loss", "val_loss"):
        if not math.isfinite(evaluation[name]):
            raise ValueError(
                f"{name} is {evaluation[name]} at step {evaluation['step']:.0f}, so training has "
                "stopped. Take a lower --optim.learning-rate."
            )


def _losses(logits, labels, weights):
    """Cross-entropy in nats, each times its class's weight."""
    losses = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), labels)
    return losses * jnp.asarray(weights)[labels]


@functools.lru_cache(maxsize=16)
def _compile_step(graph: Any, optim: OptimConfig, steps: int) -> tuple[Callable, Callable]:
    """The optimizer's state at the start, and one step; (head's, body's) rates are traced."""
    tx = build_optimizer(optim, steps)

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
