"""The exported folder: transformers computes the same from it, and the round trip is exact."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
import torch
import transformers
from gpt2_folders import make_model, save_model
from rich.console import Console
from run_helpers import assert_one_line_error, read_files
from tiny import CONFIG, TEXT

import minigpt
from minigpt.cli.main import main
from minigpt.interop import export_huggingface, import_huggingface, plain_parameters
from minigpt.training import trainer

BYTES_TEXT = "To be — or not: 😀 ça été\n" * 60


def train(folder, text, **settings):
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text(text)
    model = dataclasses.replace(CONFIG.model, **settings.pop("model", {}))
    config = dataclasses.replace(
        CONFIG, data=folder / "text.txt", mesh="data=1", model=model, **settings
    )
    trainer.train(config, folder / "run", Console(file=io.StringIO()))
    return folder / "run"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    dropout = CONFIG.model.dropout.uniform(0.1)
    with jax.numpy_dtype_promotion("standard"):
        return {
            "char": train(folder / "char", TEXT, model={"dropout": dropout}),
            "byte": train(
                folder / "byte",
                BYTES_TEXT,
                tokenizer="byte",
                model={"bias": True, "activation": "gelu", "scan_layers": True, "vocab_size": 300},
            ),
        }


def export(capsys, *words):
    code = 0
    try:
        main(["export", *map(str, words), "--format", "huggingface"])
    except SystemExit as ended:
        code = ended.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize(("kind", "text"), [("char", TEXT), ("byte", BYTES_TEXT)])
def test_transformers_loads_model_and_tokenizer(kind, text, runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(capsys, runs[kind], "--out", out) == (
        *(0, f"wrote the parameters of step 4 to {out}\n", ""),
    )
    ours = minigpt.load(runs[kind])
    model, loading = transformers.GPT2LMHeadModel.from_pretrained(out, output_loading_info=True)
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


def test_what_gpt2_lacks(runs, tmp_path, capsys):
    post = train(tmp_path / "post", TEXT, model={"norm": "post"})
    before = read_files(tmp_path)
    ended = export(capsys, post, "--out", tmp_path / "out")
    assert_one_line_error(ended, "model.norm='post'", "'pre'", "--format safetensors")
    assert read_files(tmp_path) == before
    rates = dataclasses.replace(CONFIG.model.dropout, attn_out=0.1, drop_path=0.2)
    run = train(tmp_path / "rates", TEXT, model={"dropout": rates})
    out = export(capsys, run, "--out", tmp_path / "out")[1]
    assert "dropout.drop_path=0.2 has no key" in out
    assert "dropout.mlp_out=0.0" in out


def test_no_folder_is_overwritten(runs, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    assert_one_line_error(export(capsys, runs["char"], "--out", out), "out=", "--out")
    missing = export(capsys, runs["char"], "--out", tmp_path / "no" / "out")
    assert_one_line_error(missing, "folder must exist")
    assert read_files(tmp_path) == {out / "mine": b"mine"}
