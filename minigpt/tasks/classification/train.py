"""Train a text classifier from a pretrained GPT.

The result is a pure function of settings, texts and pretrained parameters: every key is derived
from the seed and the step.
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
from minigpt.data import AnyTokenizer, example_indices
from minigpt.model import merge_lora, set_rates
from minigpt.tasks.classification.classifier import TextClassifier, predict_logits
from minigpt.tasks.classification.data import LabelledSplit, PaddedRows
from minigpt.tasks.classification.metrics import macro_f1
from minigpt.tasks.classification.model import Classifier
from minigpt.training import build_optimizer


class PretrainedModel(NamedTuple):
    """The settings, tokenizer and parameters of a pretrained GPT."""

    config: ModelConfig
    vocab_size: int
    tokenizer: AnyTokenizer
    params: Any
    """None: the classifier is trained from scratch"""

    def without_lora(self) -> PretrainedModel:
        """The same model with its LoRA layers merged into the dense layers."""
        params = None if self.params is None else merge_lora(self.config, self.params)
        return self._replace(config=self.config.without_lora(), params=params)

    def load_into(self, classifier: Any) -> Any:
        """Replace the body's parameters in the state of a classifier by the pretrained ones."""
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
    """The class index of every text, and the loss weight of each class."""

    train: np.ndarray
    validation: np.ndarray
    weights: np.ndarray


class _StepInputs(NamedTuple):
    """The inputs of a training step besides the parameters and the optimizer's state."""

    frozen: Any
    """the parameters that are not trained"""
    rows: PaddedRows
    labels: np.ndarray
    class_weights: np.ndarray
    head_rate: Any
    body_rate: Any
    root_key: jax.Array
    step: Any
    """index of the step, from 0"""


def fit(
    body: PretrainedModel,
    data: LabelledSplit,
    settings: ClassifyConfig,
    on_evaluation: Callable[[dict[str, float]], object] = lambda evaluation: None,
) -> TextClassifier:
    """Train a classifier; keep the parameters with the best macro-F1 on the validation part.

    The lowest loss is no good criterion: if the validation texts have other sources than the
    training texts, it occurs early, when most predictions are still the most frequent class.

    `on_evaluation` is called with each evaluation on the validation part. Trainings that differ
    only in seed, texts or rates share the compiled step.
    """
    body = body.without_lora()
    names, freeze = data.classes(), settings.freeze or 0
    if freeze > body.config.n_layer:
        raise ValueError(
            f"freeze={freeze} is not allowed: the model has {body.config.n_layer} blocks. Freeze "
            "at most all of them."
        )
    rates = DropoutConfig.uniform(settings.dropout)
    untrained = TextClassifier(
        config=dataclasses.replace(body.config, dropout=rates, scan_layers=False),
        vocab_size=body.vocab_size,
        tokenizer=body.tokenizer,
        labels=tuple(names),
        settings=settings,
        params=None,
        step=0,
        evaluations=[],
    )
    params = untrained.program().create(jax.random.key(settings.seed))
    untrained = untrained._replace(params=body.load_into(params))
    rows = _pad_parts(untrained, data)
    labels = _encode_labels(data, names, settings)
    return _train(untrained, rows["train"], rows["validation"], labels, on_evaluation)


def audit_arguments(classifier: TextClassifier) -> dict[str, Any]:
    """The arguments of `dropout_jax.audit.check` for a classifier's steps, with texts of chance."""
    settings, program, random = classifier.settings, classifier.program(), np.random.default_rng(0)
    rows, size = settings.batch_size, classifier.config.block_size
    tokens = random.integers(0, classifier.tokenizer.vocab_size, (rows, size), dtype=np.int32)
    lengths = random.integers(1, size + 1, rows, dtype=np.int32)
    padded = PaddedRows(np.where(np.arange(size) < lengths[:, None], tokens, 0), lengths)
    init, train_step = _compile_step(program.graph, settings.optim, settings.steps)
    is_frozen = functools.partial(_is_frozen, settings.freeze)
    frozen, params = nnx.split_state(classifier.params, is_frozen, ...)
    opt_state = init(params)

    def args_at(step: int) -> tuple[Any, Any, _StepInputs]:
        return (
            params,
            opt_state,
            _StepInputs(
                frozen=frozen,
                rows=padded,
                labels=random.integers(0, len(classifier.labels), rows, dtype=np.int32),
                class_weights=np.ones(len(classifier.labels), np.float32),
                head_rate=jnp.float32(settings.head_dropout),
                body_rate=jnp.float32(settings.dropout),
                root_key=jax.random.key(settings.seed),
                step=jnp.uint32(step),
            ),
        )

    return {
        "train_step": train_step,
        "eval_step": program.logits,
        "args_at": args_at,
        "eval_args": (classifier.params, padded),
    }


def _pad_parts(classifier: TextClassifier, data: LabelledSplit) -> dict[str, PaddedRows]:
    """Pad the rows of every part; of the test part too, so that a bad text is an early error."""
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
    on_evaluation: Callable[[dict[str, float]], object],
) -> TextClassifier:
    """Train, and evaluate on the validation part; keep the best parameters."""
    settings, best, root = untrained.settings, untrained, jax.random.key(untrained.settings.seed)
    init, train_step = _compile_step(untrained.program().graph, settings.optim, settings.steps)
    is_frozen = functools.partial(_is_frozen, settings.freeze)
    frozen, params = nnx.split_state(untrained.params, is_frozen, ...)
    opt_state, evaluations, losses = init(params), [], []
    for step in range(1, settings.steps + 1):
        indices = example_indices(settings.seed, step - 1, len(labels.train), settings.batch_size)
        inputs = _StepInputs(
            frozen=frozen,
            rows=PaddedRows(*(array[indices] for array in train)),
            labels=labels.train[indices],
            class_weights=labels.weights,
            head_rate=jnp.float32(settings.head_dropout),
            body_rate=jnp.float32(settings.dropout),
            root_key=root,
            step=jnp.uint32(step - 1),
        )
        params, opt_state, loss = train_step(params, opt_state, inputs)
        losses.append(loss)
        if step % settings.eval_every and step < settings.steps:
            continue
        all_params = nnx.merge_state(frozen, params)
        logits = predict_logits(untrained.program(), all_params, validation, settings.batch_size)
        evaluation = {"step": step, "train_loss": float(np.mean(losses))}
        evaluation |= _validation_metrics(logits, labels.validation, labels.weights)
        losses = []
        _require_finite(evaluation)
        if evaluation["val_macro_f1"] > max((e["val_macro_f1"] for e in evaluations), default=-1):
            best = untrained._replace(params=all_params, step=step)
        evaluations.append(evaluation)
        on_evaluation(evaluation)
        if settings.patience and step - best.step >= settings.patience * settings.eval_every:
            break
    return best._replace(evaluations=evaluations)


def _encode_labels(data: LabelledSplit, names: list[str], settings: ClassifyConfig) -> Labels:
    index = {name: i for i, name in enumerate(names)}
    train, validation = (
        np.array([index[label] for label in part.labels], np.int32)
        for part in (data.train, data.validation)
    )
    weights = np.ones(len(names), np.float32)
    if settings.class_weights == "balanced":  # their mean over the training part is 1
        weights = (len(train) / (len(names) * np.bincount(train))).astype(np.float32)
    return Labels(train, validation, weights)


def _validation_metrics(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> dict[str, float]:
    predicted = logits.argmax(-1)
    return {
        "val_loss": float(_weighted_losses(logits, labels, weights).mean()),
        "val_accuracy": float((predicted == labels).mean()),
        "val_macro_f1": macro_f1(labels, predicted),
    }


def _require_finite(evaluation: dict[str, float]) -> None:
    for name in ("train_loss", "val_loss"):
        if not math.isfinite(evaluation[name]):
            raise ValueError(
                f"{name} is {evaluation[name]} at step {evaluation['step']:.0f}; training has "
                "stopped. Use a lower --optim.learning-rate."
            )


def _weighted_losses(
    logits: jax.typing.ArrayLike, labels: jax.typing.ArrayLike, weights: jax.typing.ArrayLike
) -> jax.Array:
    """The cross-entropy of each text in nats, times the weight of its class."""
    losses = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), labels)
    return losses * jnp.asarray(weights)[labels]


@functools.lru_cache(maxsize=16)
def _compile_step(
    graph: nnx.GraphDef[Classifier], optim: OptimConfig, steps: int
) -> tuple[Callable[[Any], Any], Callable[[Any, Any, _StepInputs], tuple[Any, Any, jax.Array]]]:
    """The functions for the optimizer's initial state and for one step; rates are traced."""
    tx = build_optimizer(optim, steps)

    def step(params: Any, opt_state: Any, inputs: _StepInputs) -> tuple[Any, Any, jax.Array]:
        rows = inputs.rows

        def mean_loss(params: Any) -> jax.Array:
            model = nnx.merge(graph, nnx.merge_state(inputs.frozen, params))
            set_rates(model.body, DropoutConfig.uniform(inputs.body_rate))
            key = fold(inputs.root_key, "dropout", inputs.step)
            logits = model(rows.tokens, rows.lengths, key=key, rate=inputs.head_rate)
            return _weighted_losses(logits, inputs.labels, inputs.class_weights).mean()

        loss, gradient = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return jax.jit(tx.init), jax.jit(step)


def _is_frozen(freeze: int | None, path: tuple[Any, ...], value: Any) -> bool:
    """Whether a parameter is not trained, by its path in the classifier."""
    if freeze is None or path[0] != "body":
        return False
    return path[1] in ("tokens", "positions") or (path[1] == "blocks" and path[2] < freeze)
