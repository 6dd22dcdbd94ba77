"""Overfitting is named while it happens, once; noise and a run that learns are not."""

import dataclasses
import io
import math
import os
import random
import signal

import numpy as np
import pytest
from rich.console import Console
from tiny import CONFIG

from minigpt.config import Config, DropoutConfig, ModelConfig, OptimConfig
from minigpt.run import metrics
from minigpt.training import trainer
from minigpt.training.overfitting import REMEDIES, diagnose, is_past_its_best, noise

DEFAULT = Config()  # of 15,360 tokens a validation: noise is 0.034 of the loss
DROPPING = dataclasses.replace(DEFAULT, model=ModelConfig(dropout=DropoutConfig.uniform(0.1)))
# (training text, validation text) of the default preset on the plays, every 50 steps up to 500.
PLAYS = [
    *((2.9417, 2.9626), (2.6452, 2.6756), (2.5529, 2.5763), (2.5095, 2.528), (2.4508, 2.4748)),
    *((2.4364, 2.4648), (2.3945, 2.4178), (2.3705, 2.3971), (2.3435, 2.3602), (2.3136, 2.3378)),
]


def messages_after(losses, config=DEFAULT, every=50):
    """The message after each validation of a run; there are other records between them."""
    records, messages = [], []
    for at, (train, validation) in enumerate(losses, 1):
        records.append({"step": at * every - 1, "train_loss": train})
        records.append({"step": at * every, "train_eval_loss": train, "val_loss": validation})
        messages.append(diagnose(records, config))
    return messages


def reported_at(messages):
    """The validations, from 1, that have a message."""
    return [at for at, text in enumerate(messages, 1) if text]


def test_noise_is_three_standard_errors_of_a_difference():
    """By the README: 0.015 of a loss of 1.899, from 20 random batches."""
    assert noise(1.899, DEFAULT) == pytest.approx(3 * math.sqrt(2) * 0.015, rel=0.03)


def test_turning_is_named_at_the_third_validation_above_the_best():
    losses = [(2.0, 2.1), (1.8, 2.0), (1.6, 2.2), (1.5, 2.2), (1.4, 2.2), (1.3, 2.2), (1.2, 2.2)]
    messages = messages_after(losses)
    assert reported_at(messages) == [5]
    text = messages[4]
    for part in (
        "overfitting",
        "at least 0.200 above its minimum (2.0000 at step 100)",
        "by 0.400",
    ):
        assert part in text
    assert "Remedies, the most effective first: more text" in text
    positions = [text.index(remedy) for remedy in REMEDIES]
    assert positions == sorted(positions)


def test_it_is_named_again_when_it_is_twice_as_bad():
    rises = [0, 0.1, 0.1, 0.1, 0.15, 0.19, 0.21, 0.21, 0.21, 0.3, 0.43, 0.43, 0.43, 0.44]
    losses = [(2.0 - at / 10, 2.0 + rise) for at, rise in enumerate(rises)]
    messages = messages_after(losses)
    assert reported_at(messages) == [4, 9, 13]
    assert [text.startswith("overfitting more: ") for text in messages if text] == [
        False,
        True,
        True,
    ]
    assert [REMEDIES[0] in text for text in messages if text] == [True, False, False]


def test_a_new_best_begins_anew():
    rises = [0, 0.1, 0.1, 0.1, -0.1, 0.0, 0.0, 0.0, 0.3, 0.3, 0.3]
    losses = [(2.0 - at / 10, 2.0 + rise) for at, rise in enumerate(rises)]
    messages = messages_after(losses)
    assert reported_at(messages) == [4, 11]  # at 8 it is no worse than it was
    assert "(1.9000 at step 250)" in messages[10]


@pytest.mark.parametrize(
    "losses",
    [
        [(2.0 - at / 10, 2.0 + 0.06 * (at > 0)) for at in range(9)],  # the rise is within noise
        [(2.0 - at / 10, 2.0 + (at % 3)) for at in range(9)],  # never three in a row
        [(2.0 + at / 10, 2.0 + at / 10) for at in range(9)],  # it diverges: both texts' rise
        [(2.0, 2.0 + at / 10) for at in range(9)],  # nothing is learnt by heart
        [(2.0, 2.0), (1.0, 3.0), (1.0, 3.0)],  # only two above the best
        PLAYS,
    ],
)
def test_what_is_not_overfitting(losses):
    assert reported_at(messages_after(losses)) == []


def test_noise_alone_is_not_named():
    """As if every validation were of new windows, at four levels and lengths: 400 curves."""
    chance = random.Random(3)
    for level in (0.5, 1.5, 2.5, 4.0):
        deviation = level / math.sqrt(15_360)
        for _ in range(100):
            count = chance.randint(4, 80)
            draws = [[level + chance.gauss(0, deviation) for _ in "ab"] for _ in range(count)]
            assert reported_at(messages_after(draws, every=20)) == []


def test_jitter_on_the_real_curve_is_not_named():
    chance = random.Random(4)
    for _ in range(100):
        jittered = [[loss + chance.gauss(0, 0.015) for loss in pair] for pair in PLAYS]
        assert reported_at(messages_after(jittered)) == []


def test_a_coarser_estimate_needs_a_larger_rise():
    losses = [(2.0 - at / 10, 2.0 + 0.2 * (at > 0)) for at in range(9)]
    assert reported_at(messages_after(losses)) == [4]
    assert reported_at(messages_after(losses, dataclasses.replace(DEFAULT, eval_batches=1))) == []


# No gap.


def ending(train, validation, config=DROPPING):
    config = dataclasses.replace(config, steps=100)  # two validations
    return messages_after([(2.5, 2.5), (train, validation)], config)


def test_no_gap_at_the_end_is_named_if_dropout_is_on():
    messages = ending(1.95, 2.0)
    assert reported_at(messages) == [2]
    for part in ("no gap", "+0.0500", "--dropout 0"):
        assert part in messages[1]
    assert reported_at(ending(2.0, 1.95)) == [2]
    assert reported_at(ending(1.9, 2.0)) == []  # a gap: three standard errors are 0.068
    assert reported_at(ending(1.95, 2.0, DEFAULT)) == []  # no dropout
    drop_path = ModelConfig(dropout=DropoutConfig(drop_path=0.1))
    assert reported_at(ending(1.95, 2.0, dataclasses.replace(DEFAULT, model=drop_path))) == [2]


def test_a_validation_text_that_is_easier_is_not_called_noise():
    """Three standard errors are 0.068."""
    for validation, words in ((1.95, "-0.0500"), (1.95, "within the noise"), (1.5, "-0.5000")):
        assert words in ending(2.0, validation)[1]
    assert "within the noise" not in ending(2.0, 1.5)[1]


def test_a_coarse_estimate_shows_no_gap_and_no_absence_of_one():
    assert reported_at(ending(1.95, 2.0, dataclasses.replace(DROPPING, eval_batches=9))) == []
    assert reported_at(ending(1.95, 2.0, dataclasses.replace(DROPPING, eval_batches=10))) == [2]


def test_the_end_may_be_by_patience():
    losses = [(2.0, 2.0), (2.0, 2.01), (2.0, 2.01)]
    patient = dataclasses.replace(DROPPING, patience=2)
    assert reported_at(messages_after(losses, patient)) == [3]
    assert reported_at(messages_after(losses, DROPPING)) == []


@pytest.mark.parametrize(("patience", "is_past"), [(None, False), (2, True), (3, False)])
def test_a_run_that_stopped_early_is_past_its_best(patience, is_past):
    """Two validations in a row above the best one, too little for a message on overfitting."""
    losses = [(2.0, 2.2), (1.9, 2.1), (1.8, 2.12), (1.7, 2.13)]
    records = [
        {"step": at, "train_eval_loss": train, "val_loss": validation}
        for at, (train, validation) in enumerate(losses, 1)
    ]
    assert is_past_its_best(records, dataclasses.replace(DEFAULT, patience=patience)) == is_past


# A real run.

LETTERS = ModelConfig(n_layer=1, n_head=2, n_embd=64, block_size=8)
REAL = dataclasses.replace(
    CONFIG,
    steps=300,
    batch_size=16,
    eval_every=20,
    log_every=20,
    eval_batches=8,
    sample_tokens=0,
    model=LETTERS,
    optim=OptimConfig(learning_rate=5e-3, warmup_steps=5),
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Letters at random: there is nothing to learn but the text by heart."""
    path = tmp_path_factory.mktemp("text") / "letters.txt"
    path.write_text("".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=400)))
    return path


def printed_messages(config, run_dir, text):
    console = Console(record=True, width=400, file=io.StringIO())
    trainer.train(dataclasses.replace(config, data=text), run_dir, console)
    lines = console.export_text().splitlines()
    messages = [line for line in lines if line.startswith(("step ", "overfitting", "no gap"))]
    return [line for line in messages if not line.endswith("tokens/s")]  # of validations only


@pytest.mark.slow
def test_a_gpt_that_overfits_is_told_so_and_again_only_if_it_is_worse(text, tmp_path, monkeypatch):
    whole = printed_messages(REAL, tmp_path / "whole", text)
    messages = [at for at, line in enumerate(whole) if line.startswith("overfitting")]
    losses = [each for each in metrics.read_metrics(tmp_path / "whole") if "val_loss" in each]
    best = np.argmin([each["val_loss"] for each in losses])
    assert f"at step {losses[best]['step']})" in whole[messages[0]]
    assert whole[messages[0] - 1].startswith("step")  # beside the validation that it is about
    assert 1 <= len(messages) <= 6 < len(losses) - best

    parts, add = [], metrics.MetricsLog.add
    for stop in range(100, 301, 100):  # the same run, stopped twice on its way

        def added(self, record, stop=stop):
            add(self, record)
            if record["step"] == stop and stop < REAL.steps:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(metrics.MetricsLog, "add", added)
        parts += printed_messages(REAL, tmp_path / "parts", text)
    assert parts == whole
    monkeypatch.setattr(metrics.MetricsLog, "add", add)
    assert printed_messages(REAL, tmp_path / "parts", text) == []  # nothing more of a finished run
