"""The exported file: the parameters alone, under plain names, whatever way the run computed."""

import dataclasses
import io
import json

import numpy as np
import pytest
import safetensors
from rich.console import Console
from run_helpers import assert_one_line_error, read_files, run_command
from safetensors.numpy import load_file
from tiny import CONFIG, TEXT

from minigpt.checkpoint import manager as checkpoint
from minigpt.training import trainer


def train(folder, **model):
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text(TEXT)
    config = dataclasses.replace(
        CONFIG,
        data=folder / "text.txt",
        mesh="data=1",
        model=dataclasses.replace(CONFIG.model, **model),
    )
    trainer.train(config, folder / "run", Console(file=io.StringIO()))
    return folder / "run"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    import jax

    with jax.numpy_dtype_promotion("standard"):
        return train(tmp_path_factory.mktemp("plain"), bias=True)


def export(capsys, *words):
    return run_command(capsys, "export", *words)


BLOCK = {
    "attn_norm.bias": (8,),
    "attn_norm.scale": (8,),
    "attn.qkv.bias": (24,),
    "attn.qkv.kernel": (8, 24),
    "attn.out.bias": (8,),
    "attn.out.kernel": (8, 8),
    "mlp_norm.bias": (8,),
    "mlp_norm.scale": (8,),
    "mlp.wide.bias": (32,),
    "mlp.wide.kernel": (8, 32),
    "mlp.out.bias": (8,),
    "mlp.out.kernel": (32, 8),
}


@pytest.mark.slow
def test_names_shapes_values_and_metadata(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = export(capsys, trained, "--format", "safetensors")
    assert (code, out) == (0, "wrote the parameters of step 4 to run.safetensors\n")
    arrays = load_file("run.safetensors")
    expected = {"tokens.embedding": (22, 8), "positions.embedding": (32, 8)}
    expected |= {"norm.scale": (8,), "norm.bias": (8,)}
    for i in (0, 1):
        expected |= {f"blocks.{i}.{name}": shape for name, shape in BLOCK.items()}
    assert {name: array.shape for name, array in arrays.items()} == expected
    assert {array.dtype for array in arrays.values()} == {np.dtype("float32")}
    saved, _ = checkpoint.read(trained, 4)
    for name, array in arrays.items():
        stored = saved[f"params/{name.replace('.', '/')}/value"]
        np.testing.assert_array_equal(array, stored)
    with safetensors.safe_open("run.safetensors", "np") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["step"]) == ("minigpt", "4")
    config = json.loads(metadata["config"])
    assert config["model"]["n_layer"] == 2
    assert not {"data", "run_dir", "parent"} & set(config)
    assert "".join(sorted(set(TEXT))) == json.loads(metadata["tokenizer"])["alphabet"]


@pytest.mark.slow
def test_scanned_layers_have_the_same_names(trained, tmp_path, capsys):
    scanned = train(tmp_path / "scanned", bias=True, scan_layers=True)
    plain, unstacked = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert export(capsys, trained, "--out", plain)[0] == 0
    assert export(capsys, scanned, "--out", unstacked)[0] == 0
    one, other = load_file(plain), load_file(unstacked)
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_allclose(other[name], array, atol=1e-5, err_msg=name)


def test_the_best_checkpoint(trained, tmp_path, capsys):
    best = checkpoint.best_step(trained)
    out = tmp_path / "best.safetensors"
    printed = export(capsys, trained, "--out", out, "--checkpoint", "best")[1]
    assert printed == f"wrote the parameters of step {best} to {out}\n"


def test_no_file_is_overwritten_and_nothing_is_left(trained, tmp_path, capsys):
    out = tmp_path / "model.safetensors"
    out.write_bytes(b"mine")
    before = read_files(tmp_path)
    assert_one_line_error(export(capsys, trained, "--out", out), "must be a new file", "--out")
    missing = tmp_path / "no" / "model.safetensors"
    assert_one_line_error(export(capsys, trained, "--out", missing), "folder must exist")
    new = tmp_path / "new.safetensors"
    assert_one_line_error(export(capsys, tmp_path, "--out", new), "is not a run directory")
    assert read_files(tmp_path) == before
