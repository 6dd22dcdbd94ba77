"""Uncertainty of a text's class by softmax, temperature, MC dropout and an ensemble."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from common import measures
from common.texts import control_texts
from dropout_jax import fold, mc_dropout
from dropout_jax.calibration import fit_temperature
from minigpt.data import tokenizer_content
from minigpt.tasks.classification import LabelledSplit, PaddedRows, TextClassifier


def evaluate_classifiers(
    members: list[TextClassifier], data: LabelledSplit, rows: int, seed: int, passes: int
) -> dict:
    """measures.summarize for the test and `rows` control texts of each kind."""
    first, speeches = members[0], data.test.texts
    validation_labels, test_labels = (
        jnp.array(list(map(first.labels.index, part.labels))) for part in data[1:]
    )
    temperature = fit_temperature(
        first.logits(first.rows(data.validation.texts)), validation_labels
    )
    alphabet = tokenizer_content(first.tokenizer)["alphabet"]
    sets = {"speeches": speeches} | control_texts(speeches[:rows], alphabet)
    stacks = {}
    for name, texts in sets.items():
        inputs, key = first.rows(texts), fold(jax.random.key(seed), name)
        logits = jnp.stack([member.logits(inputs) for member in members])
        stacks[name] = {
            "softmax": jax.nn.softmax(logits[:1]),
            "temperature": jax.nn.softmax(logits[:1] / temperature),
            "MC dropout": sample_mc_dropout(*nnx.split(first.model), inputs, key, passes),
            "ensemble": jax.nn.softmax(logits),
        }
    return measures.summarize(stacks, test_labels)


@functools.partial(jax.jit, static_argnames=("graph", "passes"))
def sample_mc_dropout(graph, params, rows: PaddedRows, key, passes: int):
    """Probabilities of MC dropout, (passes, rows, classes)."""
    model = nnx.merge(graph, params)

    def predict(key):
        return jax.nn.softmax(model(rows.tokens, rows.lengths, key=key))

    return mc_dropout(predict, key, passes, batch_size=1)
