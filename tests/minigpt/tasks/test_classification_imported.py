"""minigpt classify on a GPT-2 of Hugging Face, with tokenizers of subwords."""

import json
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from chat_models import byte_level_tokenizer
from gpt2_folders import make_model, save_model
from run_helpers import assert_one_line_error, run_command

from minigpt.config import ClassifyConfig
from minigpt.data import SubwordTokenizer, build_tokenizer
from minigpt.interop import read_huggingface
from minigpt.tasks.classification import PretrainedModel, fit, load
from minigpt.tasks.classification.data import LabelledSplit, LabelledTexts

TEXTS = ["a good film, good 😀", "a bad film — bad", "good again and again", "bad, and bad again"]
LABELS = ["good", "bad", "good", "bad"]
OPTIONS = ("--steps", 2, "--eval-every", 1, "--batch-size", 4, "--freeze", 2)


def make_tokenizer(kind) -> SubwordTokenizer:
    if kind == "file":
        return byte_level_tokenizer()
    tokenizer = build_tokenizer(kind, " ".join(TEXTS) * 5, 300 if kind == "bpe" else None)
    assert isinstance(tokenizer, SubwordTokenizer)
    return tokenizer


@pytest.mark.slow
def test_the_body_is_the_imported_model(tmp_path):
    tokenizer = make_tokenizer("file")
    save_model(tmp_path, make_model(vocab_size=tokenizer.vocab_size, n_positions=32))
    (tmp_path / "tokenizer.json").write_text(tokenizer.tokenizer_json)
    run, params = read_huggingface(tmp_path)
    body = PretrainedModel(run.config.model, run.vocab_size, run.tokenizer, params)
    part = LabelledTexts(TEXTS, LABELS)
    settings = ClassifyConfig(freeze=2, steps=1, batch_size=4)
    classifier = fit(body, LabelledSplit(part, part, part), settings)
    require_same_features(classifier, tmp_path)


def require_same_features(classifier, folder):
    """Of a body that was frozen but for its last norm, and of the model of transformers."""
    theirs: Any = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    ids = classifier.tokenizer.encode(TEXTS[0])[None].astype(np.int32)
    body: Any = classifier.model.body
    body.norm.scale[...] = theirs.transformer.ln_f.weight.detach().numpy()
    body.norm.bias[...] = theirs.transformer.ln_f.bias.detach().numpy()
    with torch.no_grad():
        features = theirs.transformer(torch.tensor(ids)).last_hidden_state
    np.testing.assert_allclose(body.features(ids, key=None), features, 0, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "bpe", "gpt2"])
def test_train_and_predict(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tokenizer = make_tokenizer(kind)
    save_model(tmp_path / "model", make_model(vocab_size=tokenizer.vocab_size, n_positions=32))
    (tmp_path / "model" / "tokenizer.json").write_text(tokenizer.tokenizer_json)
    rows = [f'"{text}",{label}' for text, label in zip(TEXTS, LABELS, strict=True)] * 5
    (tmp_path / "data.csv").write_text("text,label\n" + "\n".join(rows))
    code, printed, error = run_command(capsys, "classify", "model", "--data", "data.csv", *OPTIONS)
    assert code == 0, error
    assert "imported model to runs/model-imported" in printed
    classifier = load(tmp_path / "runs" / "model-imported" / "classify")
    assert [classifier.tokenizer.encode(text).tolist() for text in TEXTS] == [
        tokenizer.encode(text).tolist() for text in TEXTS
    ]
    require_same_features(classifier, "model")
    (tmp_path / "new.txt").write_text("\n".join(TEXTS))
    words = ("classify", "model", "--predict", "new.txt", "--json")
    code, printed, _ = run_command(capsys, *words)
    assert code == 0
    predictions = [json.loads(line) for line in printed.splitlines()]
    assert [one["text"] for one in predictions] == TEXTS
    assert [one["label"] for one in predictions] == classifier.predict(TEXTS)


def test_a_folder_without_a_classifier(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model")
    capsys.readouterr()
    (tmp_path / "new.txt").write_text("GOOD")
    ended = run_command(capsys, "classify", "model", "--predict", "new.txt")
    assert_one_line_error(ended, "has no classifier yet")
