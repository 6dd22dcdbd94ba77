"""Fine-tuning on conversations: the loss is on the answers only, and a run resumes exactly."""

import dataclasses
import json
import math
import shutil
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from chat_models import CHATML, TOKENS, save_chat_model, write_examples
from marks import slow
from run_helpers import assert_one_line_error, run_command, stop_after_step
from tiny import TEXT, outcome

import minigpt
from minigpt.data import Batch, ChatTemplate, load_run_dataset
from minigpt.interop import import_huggingface
from minigpt.run import RunSpec, read_metrics
from minigpt.run import metrics as run_metrics
from minigpt.training import (
    build_train_functions,
    estimate_loss,
    evaluate_answers,
    initial_state,
    make_train_batch,
)

COMMAND = [
    *("finetune", "parent", "--data", "x.jsonl", "--run-dir", "out", "--steps", "8"),
    *("--batch-size", "4", "--eval-every", "4", "--log-every", "2", "--sample-tokens", "2"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of Hugging Face, and the run that is its import."""
    folder = tmp_path_factory.mktemp("models")
    with jax.numpy_dtype_promotion("standard"):
        save_chat_model(folder / "hf", block_size=192)
        save_chat_model(folder / "plain", None, block_size=64)
        for name in ("hf", "plain"):
            import_huggingface(folder / name, folder / f"{name}-run")
    return folder


@pytest.fixture
def folder(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models / "plain-run", tmp_path / "parent")
    write_examples(tmp_path / "x.jsonl")
    return tmp_path


def labelled(batch):
    """A batch as transformers takes it: ids, and labels of -100 for what is no answer."""
    ids, targets, weights = map(np.asarray, batch)
    # The label of each token; transformers compares it with the prediction one place before.
    labels = np.full(ids.shape, -100)
    labels[:, 1:] = np.where(weights > 0, targets, -100)[:, :-1]
    assert not weights[:, -1].any()
    return torch.tensor(ids), torch.tensor(labels)


@pytest.mark.parametrize("accumulate", [1, slow(2)])
def test_loss_and_gradient_are_those_of_labels_of_minus_100(models, tmp_path, accumulate):
    parent = minigpt.load(models / "hf-run")
    model = dataclasses.replace(parent.config.model, dropout=parent.config.model.dropout.uniform(0))
    config = dataclasses.replace(
        parent.config,
        data=write_examples(tmp_path / "x.jsonl"),
        **{"model": model, "batch_size": 6, "accumulate": accumulate, "mesh": "data=1"},
    )
    dataset = load_run_dataset(config, parent.tokenizer, parent.run.chat_template)
    steps = build_train_functions(config, parent.run.vocab_size)
    batch = make_train_batch(steps.mesh, dataset.train, config, 0)
    state = initial_state(steps, config, None, steps.state._replace(params=parent.params))
    _, metrics = steps.train_step(state, batch, jax.random.key(0))
    theirs = transformers.GPT2LMHeadModel.from_pretrained(models / "hf").eval()
    ids, labels = labelled(batch)
    loss = theirs(ids, labels=labels).loss
    loss.backward()
    np.testing.assert_allclose(metrics["train_loss"], loss.item(), 1e-6)
    norms = [p.grad.norm() ** 2 for p in theirs.parameters() if p.grad is not None]
    np.testing.assert_allclose(metrics["grad_norm"], math.sqrt(sum(norms)), 1e-5)
    # Evaluation, with a last batch of one row and padding.
    answers: Any = dataset.train
    eval_step = parent.compiled.eval_step
    sizes = {"batch_size": 5, "block_size": model.block_size}
    result = evaluate_answers(eval_step, parent.params, answers, **sizes)
    with torch.no_grad():
        ids, labels = labelled(answers.take(range(len(answers)), model.block_size))
        loss = theirs(ids, labels=labels).loss.item()
    np.testing.assert_allclose(result.loss, loss, 1e-6)
    assert result.tokens == (labels >= 0).sum() == answers.answer_tokens
    bits = result.loss * result.tokens / math.log(2) / answers.characters
    assert result.bits_per_character == pytest.approx(bits)
    estimate = estimate_loss(eval_step, parent.params, answers, batches=20, **sizes)
    assert estimate == pytest.approx(result.loss, 1e-9)


def test_padding_and_other_tokens_have_no_effect(models, tmp_path):
    """The loss is the same, bit for bit, with other ids after a conversation."""
    parent = minigpt.load(models / "plain-run")
    config = dataclasses.replace(parent.config, data=write_examples(tmp_path / "x.jsonl"))
    answers: Any = load_run_dataset(config, parent.tokenizer).train
    batch = answers.take([0, 1], 64)
    size = int(np.flatnonzero(batch.weights.any(0)).max()) + 1
    other = batch._replace(inputs=batch.inputs.copy(), targets=batch.targets.copy())
    other.inputs[:, size:] = 7
    other.targets[batch.weights == 0] = 9
    one, two = (
        np.asarray(parent.compiled.eval_step(parent.params, Batch(rows.inputs, rows.targets)))
        for rows in (batch, other)
    )
    is_answer = batch.weights > 0
    np.testing.assert_array_equal(one[is_answer], two[is_answer])
    assert (one != two).any()


@pytest.mark.parametrize("at", [4, slow(6)])
@pytest.mark.slow
def test_a_stopped_run_ends_like_an_undisturbed_one(folder, monkeypatch, capsys, at):
    assert run_command(capsys, *COMMAND)[0] == 0
    (folder / "out").rename(folder / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(
            run_metrics.MetricsLog, "add", stop_after_step(at, run_metrics.MetricsLog.add)
        )
        assert "stopped at step" in run_command(capsys, *COMMAND)[1]
    # The run has copies of all that it needs of its parent.
    shutil.rmtree(folder / "parent")
    code, printed, _ = run_command(capsys, *COMMAND)
    assert code == 0
    assert "chat template: plain" in printed
    arrays, records, steps, names = outcome(folder)
    (folder / "out").rename(folder / "stopped")
    (folder / "whole").rename(folder / "out")
    assert (arrays, records, [4, 8], names) == outcome(folder)
    assert steps == sorted({4, at, 8})
    records = read_metrics(folder / "out")
    # " 37,", " 38, 38,", " 39, 39, 39," and " 40,", each with the token that ends it.
    assert [record["val_tokens"] for record in records if "val_loss" in record] == [32, 32]
    (folder / "x.jsonl").write_text((folder / "x.jsonl").read_text() + "\n")
    assert_one_line_error(run_command(capsys, *COMMAND), "must be the text that the run was")


@pytest.mark.slow
def test_replay_eval_and_sample(folder, capsys):
    code, printed, _ = run_command(capsys, *COMMAND)
    assert code == 0, printed
    assert "36 training conversations with" in printed
    assert "the validation part has 4 conversations, so its loss is a rough estimate" in printed
    assert "User: 36 + 1?\nAssistant:" in printed  # the sample
    records = read_metrics(folder / "out")
    replayed = json.loads(run_command(capsys, "replay", "out", "--step", 6, "--json")[1])
    assert replayed["measured"]["train_loss"] == records[2]["train_loss"] == replayed["recorded"]
    assert replayed["window_offsets"] == []
    assert len(replayed["conversations"]) == 4
    output = run_command(capsys, "replay", "out", "--step", 6)[1]
    rows = replayed["conversations"]
    assert f"conversations of the batch's rows, from 0 in the training part: {rows}" in output
    evaluated = json.loads(run_command(capsys, "eval", "out", "--json")[1])
    assert evaluated["tokens"] == 32
    np.testing.assert_allclose(evaluated["loss"], records[-1]["val_loss"], 1e-6)
    bits = records[-1]["val_bits_per_character"]
    np.testing.assert_allclose(evaluated["bits_per_character"], bits, 1e-6)
    lines = (folder / "x.jsonl").read_text().splitlines(keepends=True)
    (folder / "last.jsonl").write_text("".join(lines[-4:]))
    other = json.loads(run_command(capsys, "eval", "out", "--data", "last.jsonl", "--json")[1])
    assert other["loss"] == evaluated["loss"]
    (folder / "text.txt").write_text(TEXT)
    assert run_command(capsys, "eval", "out", "--data", "text.txt")[0] == 0


def test_an_import_keeps_the_template(models):
    assert RunSpec.load(models / "hf-run").chat_template == ChatTemplate(CHATML, TOKENS)
    assert RunSpec.load(models / "plain-run").chat_template is None


@pytest.mark.slow
def test_the_template_goes_from_folder_to_run_to_folder(models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT * 4)
    template = ChatTemplate(CHATML, TOKENS)
    words = ["--run-dir", "out", "--steps", 1, "--batch-size", 1, "--sample-tokens", 0]
    more = ["--eval-batches", 1]
    tuned = run_command(capsys, "finetune", models / "hf-run", "--data", "text.txt", *words, *more)
    assert tuned[0] == 0, tuned
    assert RunSpec.load("out").chat_template == template  # also of a run on text
    assert run_command(capsys, "export", "out", "--format", "huggingface", "--out", "hf")[0] == 0
    theirs = transformers.AutoTokenizer.from_pretrained("hf")
    assert theirs.chat_template == CHATML
    assert theirs.special_tokens_map == TOKENS
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["eos_token_id"] == theirs.eos_token_id == 261
    import_huggingface("hf", tmp_path / "back")
    assert RunSpec.load("back").chat_template == template


def test_mistakes_are_one_line_and_leave_nothing(folder, capsys):
    (folder / "bad.jsonl").write_text((folder / "x.jsonl").read_text() + '{"messages": []}\n')
    ended = run_command(capsys, *COMMAND, "--data", "bad.jsonl")
    assert_one_line_error(ended, "bad.jsonl', line 41: messages=[] is not allowed")
    words = ("train", "--data", "x.jsonl", "--run-dir", "out")
    assert_one_line_error(run_command(capsys, *words), "tokenizer='char' is not allowed with conv")
    assert not (folder / "out").exists()


@pytest.mark.slow
def test_training_from_scratch(folder, capsys):
    words = ("train", "--data", "x.jsonl", "--run-dir", "out", "--tokenizer", "byte")
    sizes = ("--model.n-layer", 1, "--model.n-embd", 8, "--steps", 2, "--sample-tokens", 0)
    code, printed, _ = run_command(capsys, *words, *sizes)
    assert code == 0
    assert "36 training conversations" in printed
    assert RunSpec.load("out").chat_template is not None
    assert run_command(capsys, "eval", "out")[0] == 0
