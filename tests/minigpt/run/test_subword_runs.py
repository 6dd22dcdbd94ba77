"""Runs with subword tokenizers: kept whole in the run, and used by every command."""

import json
import math
import shutil

import numpy as np
import pytest
from run_helpers import run_command
from tiny import TEXT

from minigpt import load
from minigpt.data.subword import SubwordTokenizer
from minigpt.run import RunSpec
from minigpt.tasks.classification.data import count_cut, pad_texts
from minigpt.tasks.uncertainty.estimate import Uncertainty, by_character

TINY = (
    *("--model.n-layer", "1", "--model.n-head", "1", "--model.n-embd", "8"),
    *("--model.block-size", "16", "--batch-size", "2", "--sample-tokens", "3"),
    *("--eval-batches", "1", "--data", "text.txt", "--run-dir", "run"),
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def train(capsys, *words):
    code, out, err = run_command(capsys, "train", *TINY, *words)
    assert code == 0, err
    return out


@pytest.mark.slow
def test_a_run_keeps_its_tokenizer(folder, capsys):
    """It resumes and is used when the file that the tokenizer came from is gone."""
    train(capsys, "--tokenizer", "bpe", "--vocab-size", 270, "--steps", 1)
    spec = RunSpec.load("run")
    assert (spec.config.tokenizer, spec.config.vocab_size, spec.vocab_size) == ("bpe", 270, 270)
    words = (*TINY, "--tokenizer", "bpe", "--vocab-size", 280, "--steps", 1)
    code, _, err = run_command(capsys, "train", *words)
    assert code == 2
    assert "vocab_size=280 is not allowed: the run in 'run' was started with 270" in err
    (folder / "own").mkdir()
    shutil.move("run/tokenizer.json", "own/tokenizer.json")
    shutil.rmtree("run")
    options = ("--tokenizer", "own/tokenizer.json", "--eval-every", 1)
    train(capsys, *options, "--steps", 1)
    assert RunSpec.load("run").tokenizer == spec.tokenizer
    shutil.rmtree("own")
    assert "step      2" in train(capsys, *options, "--steps", 2, "--extend")
    code, out, err = run_command(capsys, "eval", "run", "--json")
    assert code == 0, err
    evaluation, validation = json.loads(out), TEXT[int(0.9 * len(TEXT)) :]
    ids = spec.tokenizer.encode(validation)
    characters = len(validation) - len(spec.tokenizer.decode(ids[:1]))
    bits = evaluation["loss"] * (len(ids) - 1) / math.log(2) / characters
    assert evaluation["bits_per_character"] == pytest.approx(bits)
    for line in (folder / "run" / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        bits = record["val_loss"] / math.log(2) * len(ids) / len(validation)
        assert record["val_bits_per_character"] == pytest.approx(bits)
    code, out, err = run_command(
        capsys, "train", *TINY, "--tokenizer", "own/tokenizer.json", "--steps", 9
    )
    assert code == 2
    assert "steps=9 is not allowed" in err


@pytest.mark.slow
def test_every_command_takes_subwords(folder, capsys):
    train(capsys, "--tokenizer", "gpt2", "--steps", 1, "--dropout", 0.1)
    model, gpt2 = load("run"), SubwordTokenizer.from_file("gpt2")
    assert (model.tokenizer, model.run.vocab_size) == (gpt2, 50257)
    text = "Whether caf\xe9 \U0001f600 or not"
    assert model.generate(text, tokens=3, seed=1) == "".join(
        piece.text for piece in model.stream([text], tokens=3, seed=1)
    )
    assert model.loss(text).tokens == len(gpt2.encode(text)) - 1
    (folder / "t.txt").write_text(text)
    for words in (
        ("sample", "run", "--tokens", 3),
        ("uncertainty", "run", "--text", text, "--passes", 2),
        ("export", "run", "--out", "run.safetensors"),
        ("finetune", "run", "--data", "text.txt", "--run-dir", "tuned", "--steps", 1),
    ):
        code, _, err = run_command(capsys, *words)
        assert code == 0, (words, err)
    assert RunSpec.load("tuned").tokenizer == gpt2


def test_numbers_of_tokens_are_shared_by_their_characters():
    gpt2, text = SubwordTokenizer.from_file("gpt2"), "To be caf\xe9 \U0001f600!"
    values = np.random.default_rng(0).random(len(gpt2.encode(text)))
    values[0] = np.nan  # "To": nothing is before it
    result = by_character(text, gpt2, Uncertainty(values, values, values)).surprise
    assert len(result) == len(text)
    assert np.isnan(result[:2]).all()
    assert result[2:].sum() == pytest.approx(values[1:].sum())
    np.testing.assert_allclose(result[2:5], values[1] / 3)  # " be"
    np.testing.assert_allclose(result[-1], values[-1])


@pytest.mark.parametrize("name", ["word", "text.txt", "missing/tokenizer.json"])
def test_an_unknown_tokenizer_is_a_line(folder, capsys, name):
    code, _, err = run_command(capsys, "train", *TINY, "--tokenizer", name)
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"tokenizer='{name}' is not allowed" in err
    assert "gpt2, bpe" in err
    assert not (folder / "run").exists() or not any((folder / "run").iterdir())


@pytest.mark.slow
def test_texts_of_a_classifier_are_cut_after_their_tokens():
    gpt2, text = SubwordTokenizer.from_file("gpt2"), "To be, or not to be, that is"
    ids = gpt2.encode(text)
    rows = pad_texts(gpt2, [text, "To"], len(ids) - 1)
    assert rows.lengths.tolist() == [len(ids) - 1, 1]
    np.testing.assert_array_equal(rows.tokens[0], ids[:-1])
    assert count_cut(gpt2, [text], len(ids)) == 0
    assert count_cut(gpt2, [text], len(ids) - 1) == 1
