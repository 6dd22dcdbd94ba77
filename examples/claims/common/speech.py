"""The genre task of the claims: a GPT pretrained without the test plays, and a seed's speeches."""

import dataclasses

import numpy as np

from common.claim import interval
from common.data import Text
from common.gpt import compile_steps, make_config, train
from minigpt.config import ClassifyConfig, ModelConfig, OptimConfig
from minigpt.data import build_tokenizer, load_plays
from minigpt.tasks.classification import (
    LabelledSplit,
    LabelledTexts,
    PretrainedModel,
    classification_scores,
)

TEST = ("twelfth-night", "as-you-like-it", "henry-v", "richard-iii", "macbeth", "king-lear")
LENGTH = 64
MODEL = ModelConfig(n_layer=2, n_head=4, n_embd=48, block_size=LENGTH)


def pretrain(steps: int) -> PretrainedModel:
    """Pretrain a GPT on every play except those of the test."""
    plays = load_plays()
    tokenizer = build_tokenizer("char", "".join(plays.values()))
    read = tokenizer.encode("".join(text for name, text in plays.items() if name not in TEST))
    config = make_config(steps, MODEL)
    text = Text(read, read[: 40 * LENGTH], tokenizer)
    params = train(compile_steps(config, text), config, text, seed=0, evals=1).params
    return PretrainedModel(MODEL, tokenizer.vocab_size, tokenizer, params)


def sample(data: LabelledSplit, seed: int, sizes: tuple[int, int, int]) -> LabelledSplit:
    """The seed's training speeches, and the same other parts for all seeds; cut to LENGTH."""
    parts = []
    for part, size, each in zip(data, sizes, (seed, 0, 0), strict=True):
        indices = np.random.default_rng(each).permutation(len(part.texts))[:size]
        texts, labels = ([column[i] for i in indices] for column in part)
        parts.append(LabelledTexts([text[:LENGTH] for text in texts], labels))
    return LabelledSplit(*parts)


def fine_tune_config(
    seed: int, steps: int, head: float = 0.0, body: float = 0.0, learning_rate: float = 5e-3
) -> ClassifyConfig:
    """Settings of fine-tuning with a rate in the head and one in the body, up to the last step."""
    optim = OptimConfig(learning_rate, learning_rate / 10, warmup_steps=steps // 10)
    whole = ClassifyConfig(seed=seed, steps=steps, eval_every=steps, batch_size=32, optim=optim)
    rates = {"head_dropout": head, "dropout": body}
    return dataclasses.replace(whole, class_weights="balanced", pool="mean", **rates)


def score_labels(data: LabelledSplit, labels: list[str]) -> dict[str, float]:
    """Macro-F1 and accuracy of predicted test labels."""
    scores = classification_scores(data.test.labels, labels, data.classes())
    return {"macro-F1": scores.macro_f1, "accuracy": scores.accuracy}


def table_rows(scores: dict[str, dict[str, np.ndarray]]) -> list[dict[str, str]]:
    """A table of the classifiers' scores, by name and measure, as intervals over seeds."""
    return [
        {"classifier": name} | {what: f"{interval(values):.3f}" for what, values in each.items()}
        for name, each in scores.items()
    ]
