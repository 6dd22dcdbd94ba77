"""The exported folder: transformers computes the same from it, and the round trip is exact."""

import dataclasses
import json
import shutil
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from gpt2_folders import make_model, save_model
from run_helpers import assert_one_line_error, read_files, run_command
from tiny import CONFIG, TEXT

import minigpt
from minigpt import checkpoint
from minigpt.data import SubwordTokenizer, build_tokenizer
from minigpt.interop import export_huggingface, import_huggingface, plain_parameters
from minigpt.run import RunSpec
from minigpt.training import build_train_functions

BYTES_TEXT = "To be — or not: 😀 ça été\n" * 60


def make_run(run_dir, text, **settings):
    """A run of a step 4 that was not trained, with random numbers in every array."""
    model = dataclasses.replace(CONFIG.model, **settings.pop("model", {}))
    config = dataclasses.replace(CONFIG, mesh="data=1", model=model, **settings)
    run = RunSpec(config, build_tokenizer(config.tokenizer, text), "")
    state = build_train_functions(config, run.vocab_size).state
    random = np.random.default_rng(0)
    arrays = {
        name: random.normal(0, 0.2, array.shape).astype(array.dtype)
        for name, array in checkpoint.host_arrays(state).items()
    }
    run_dir.mkdir()
    run.save(run_dir)
    with checkpoint.CheckpointWriter(run_dir) as writer:
        writer.save(4, arrays | {"step": np.array(4, np.int32)}, {})
    return run_dir


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    dropout = CONFIG.model.dropout.uniform(0.1)
    with jax.numpy_dtype_promotion("standard"):
        return {
            "char": make_run(folder / "char", TEXT, model={"dropout": dropout}),
            "byte": make_run(
                folder / "byte",
                BYTES_TEXT,
                tokenizer="byte",
                model={"bias": True, "activation": "gelu", "scan_layers": True, "vocab_size": 300},
            ),
        }


def export(capsys, *words):
    return run_command(capsys, "export", *words, "--format", "huggingface")


@pytest.mark.parametrize(("kind", "text"), [("char", TEXT), ("byte", BYTES_TEXT)])
def test_transformers_loads_model_and_tokenizer(kind, text, runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(capsys, runs[kind], "--out", out) == (
        *(0, f"wrote the parameters of step 4 to {out}\n", ""),
    )
    ours = minigpt.load(runs[kind])
    load: Any = transformers.GPT2LMHeadModel.from_pretrained
    model, loading = load(out, output_loading_info=True)
    assert not any(loading.values()), loading
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    ids = tokenizer(text)["input_ids"]
    assert ids == ours.encode(text).tolist()
    assert tokenizer.decode(ids) == text
    if kind == "byte":  # half a character, too
        for cut in (ids[7:9], ids[4:10], [0xFF, 0x41, 0xE2, 0x82]):
            assert tokenizer.decode(cut) == ours.decode(cut)
    else:
        with pytest.raises(Exception, match="UNK"):
            tokenizer("é")
    with torch.no_grad():
        logits = model.eval()(torch.tensor(ids[:32])[None]).logits.numpy()
    size = ours.tokenizer.vocab_size
    np.testing.assert_allclose(logits[..., :size], ours.logits([ids[:32]]), 0, 2e-6)
    rate = ours.config.model.dropout.attn_weights
    assert (model.config.attn_pdrop, model.config.resid_pdrop, model.config.embd_pdrop) == (
        *(rate, rate, rate),
    )


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_export_and_import(kind, runs, tmp_path):
    export_huggingface(runs[kind], tmp_path / "out")
    import_huggingface(tmp_path / "out", tmp_path / "back")
    run, back = minigpt.load(runs[kind]), minigpt.load(tmp_path / "back")
    assert back.tokenizer == run.tokenizer
    expected = dataclasses.replace(
        run.config.model, bias=True, scan_layers=False, vocab_size=run.run.vocab_size
    )
    assert back.config.model == expected
    arrays = plain_parameters(run.params)
    for name, array in plain_parameters(back.params).items():
        zero = np.zeros_like(array)  # of a model without biases
        assert array.tobytes() == arrays.get(name, zero).tobytes(), name


def test_import_export_import_is_exact(tmp_path):
    model = make_model(activation_function="relu", attn_pdrop=0.0, resid_pdrop=0.25)
    save_model(tmp_path / "theirs", model)
    import_huggingface(tmp_path / "theirs", tmp_path / "one")
    export_huggingface(tmp_path / "one", tmp_path / "ours")
    import_huggingface(tmp_path / "ours", tmp_path / "two")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("theirs", "ours")]
    assert weights[0] == weights[1]
    theirs, ours = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "ours")
    )
    assert {name: theirs[name] for name in ours} == ours
    one, two = minigpt.load(tmp_path / "one"), minigpt.load(tmp_path / "two")
    names = {"run_dir": None, "imported_from": None}
    assert dataclasses.replace(one.config, **names) == dataclasses.replace(two.config, **names)
    for name, array in plain_parameters(one.params).items():
        assert array.tobytes() == plain_parameters(two.params)[name].tobytes(), name
    export_huggingface(tmp_path / "two", tmp_path / "again")
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("ours", "again")
    ]
    assert files[0] == files[1]


@pytest.fixture(scope="module")
def subwords(tmp_path_factory):
    """A GPT-2 with the files of a tokenizer of subwords, learned from a text."""
    folder = save_model(tmp_path_factory.mktemp("models") / "subwords", make_model(vocab_size=300))
    learned = build_tokenizer("bpe", BYTES_TEXT, 300)
    assert isinstance(learned, SubwordTokenizer)
    (folder / "tokenizer.json").write_text(learned.tokenizer_json)
    return folder


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json and merges.txt"])
def test_subwords(files, subwords, tmp_path):
    theirs = shutil.copytree(subwords, tmp_path / "theirs")
    expected = transformers.AutoTokenizer.from_pretrained(theirs)
    if files != "tokenizer.json":
        content = json.loads((theirs / "tokenizer.json").read_text())["model"]
        (theirs / "tokenizer.json").unlink()
        (theirs / "vocab.json").write_text(json.dumps(content["vocab"]))
        merges = [" ".join(merge) for merge in content["merges"]]
        (theirs / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    import_huggingface(theirs, tmp_path / "one")
    one = minigpt.load(tmp_path / "one")
    assert isinstance(one.tokenizer, SubwordTokenizer)
    text = BYTES_TEXT[:500] + "xyz ü\n\n  \t"
    ids = one.encode(text).tolist()
    assert len(ids) < len(text)
    assert ids == expected(text)["input_ids"]
    assert len(one.generate("To be", tokens=5)) > 0
    export_huggingface(tmp_path / "one", tmp_path / "ours")
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert exported(text)["input_ids"] == ids
    assert exported.decode(ids) == text
    import_huggingface(tmp_path / "ours", tmp_path / "two")
    assert minigpt.load(tmp_path / "two").tokenizer == one.tokenizer


@pytest.mark.slow
def test_the_tokenizer_of_gpt2(tmp_path):
    """Its token <|endoftext|> is named in the export, so that generation stops there."""
    folder = save_model(tmp_path / "theirs", make_model(vocab_size=50257, n_embd=2, n_layer=1))
    (folder / "tokenizer.json").write_text(SubwordTokenizer.from_file("gpt2").tokenizer_json)
    import_huggingface(folder, tmp_path / "run")
    export_huggingface(tmp_path / "run", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (50256, 50256)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|endoftext|>", 50256)
    text = "Shall I compare thee to a summer's day?  It's 2026.\n"
    assert tokenizer(text)["input_ids"] == minigpt.load(tmp_path / "run").encode(text).tolist()


def test_what_gpt2_lacks(runs, tmp_path, capsys):
    def change(name, old, new):
        run_dir = shutil.copytree(runs["char"], tmp_path / name)
        text = (run_dir / "config.toml").read_text()
        assert old in text
        (run_dir / "config.toml").write_text(text.replace(old, new))
        return run_dir

    post = change("post", 'norm = "pre"', 'norm = "post"')
    before = read_files(tmp_path)
    ended = export(capsys, post, "--out", tmp_path / "out")
    assert_one_line_error(ended, "model.norm='post'", "'pre'", "--format safetensors")
    assert read_files(tmp_path) == before
    rates = change("rates", "attn_out = 0.1", "attn_out = 0.2\ndrop_path = 0.3")
    text = (rates / "config.toml").read_text().replace("drop_path = 0.0\n", "")
    (rates / "config.toml").write_text(text)
    out = export(capsys, rates, "--out", tmp_path / "out")[1]
    assert "dropout.drop_path=0.3 has no key" in out
    assert "dropout.mlp_out=0.1" in out


def test_no_folder_is_overwritten(runs, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    assert_one_line_error(export(capsys, runs["char"], "--out", out), "out=", "--out")
    missing = export(capsys, runs["char"], "--out", tmp_path / "no" / "out")
    assert_one_line_error(missing, "folder must exist")
    assert read_files(tmp_path) == {out / "mine": b"mine"}
