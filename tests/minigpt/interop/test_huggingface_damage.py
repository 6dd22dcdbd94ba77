"""Damaged, mislabelled and hostile folders: the error names the file, and nothing is written."""

import json
import os
import shutil
import struct

import filelock
import jax
import numpy as np
import pytest
import safetensors.numpy
from gpt2_folders import edit_config, save_model
from run_helpers import assert_one_line_error, limit_file_size, read_files

from minigpt.cli.main import main

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
C_ATTN = "transformer.h.0.attn.c_attn.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "whole")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "shards", max_shard_size="2KB")


def with_arrays(change):
    def damage(folder):
        arrays = safetensors.numpy.load_file(folder / WEIGHTS)
        change(arrays)
        safetensors.numpy.save_file(arrays, folder / WEIGHTS)

    return damage


def with_array(name, new):
    """Replace an array by a function of it; None removes it."""

    def change(arrays):
        array = new(arrays.pop(name, None))
        if array is not None:
            arrays[name] = np.ascontiguousarray(array)

    return with_arrays(change)


def with_bytes(change, name=WEIGHTS):
    def damage(folder):
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return damage


def with_header(change):
    def changed(content):
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return with_bytes(changed)


def overlap(header):
    names = [name for name in header if name != "__metadata__"]
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]


def replace_by(make):
    def damage(folder):
        (folder / WEIGHTS).unlink()
        make(folder / WEIGHTS)

    return damage


def config(**values):
    return lambda folder: edit_config(folder, **values)


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


HUGE = struct.pack("<Q", 10 << 30)
# (what is done to the folder, what the message says)
DAMAGES = {
    "header of 10 GB": (write(WEIGHTS, HUGE + b"{}"), [WEIGHTS, "safetensors"]),
    "header of 10 GB in a sparse file": (
        replace_by(lambda path: (path.write_bytes(HUGE), os.truncate(path, 11 << 30))),
        [WEIGHTS],
    ),
    "header that is no JSON": (with_bytes(lambda b: b[:8] + b"!" * (len(b) - 8)), [WEIGHTS]),
    "header that is a list": (write(WEIGHTS, struct.pack("<Q", 2) + b"[]"), [WEIGHTS]),
    "empty file": (write(WEIGHTS, b""), [WEIGHTS]),
    "cut off": (with_bytes(lambda b: b[:-100]), [WEIGHTS]),
    "too long": (with_bytes(lambda b: b + b"more"), [WEIGHTS]),
    "overlapping offsets": (with_header(overlap), [WEIGHTS]),
    "negative offset": (
        with_header(lambda header: header[C_ATTN].update(data_offsets=[-8, 0])),
        [WEIGHTS],
    ),
    "unknown dtype": (with_header(lambda header: header[C_ATTN].update(dtype="Q8")), [WEIGHTS]),
    "missing array": (with_array(C_ATTN, lambda a: None), [C_ATTN, "missing"]),
    "missing last norm": (
        with_array("transformer.ln_f.bias", lambda a: None),
        ["transformer.ln_f.bias", "missing"],
    ),
    "extra array": (
        with_array("score.weight", lambda a: np.ones((2, 8), "f4")),
        [WEIGHTS, "score.weight"],
    ),
    "array of another block": (
        with_array("transformer.h.7.ln_1.bias", lambda a: np.ones(8, "f4")),
        ["n_layer=2", "3 blocks"],
    ),
    "array twice": (
        with_array("wte.weight", lambda a: np.ones((50, 8), "f4")),
        [WEIGHTS, "'wte.weight'", "transformer.wte.weight"],
    ),
    "other causal mask": (
        with_array("h.0.attn.bias", lambda a: np.ones((1, 1, 8, 8), "f4")),
        [WEIGHTS, "h.0.attn.bias"],
    ),
    "transposed": (with_array(C_ATTN, np.transpose), ["c_attn.weight", "(24, 8)", "(8, 24)"]),
    "integers": (with_array(C_ATTN, lambda a: a.astype(np.int32)), ["c_attn.weight", "I32"]),
    "float64": (with_array(C_ATTN, lambda a: a.astype(np.float64)), ["c_attn.weight", "F64"]),
    "NaN": (with_array(C_ATTN, lambda a: a * np.nan), ["c_attn.weight", "NaN"]),
    "untied head": (
        with_array("lm_head.weight", lambda a: np.ones((50, 8), "f4")),
        [WEIGHTS, "lm_head.weight", "tie_word_embeddings"],
    ),
    "more tokens than rows": (config(vocab_size=51), ["wte.weight", "(50, 8)", "(51, 8)"]),
    "tokenizer of another model": (
        lambda folder: save_model(folder, alphabet="".join(map(chr, range(32, 90)))),
        ["config.json", "vocab_size=50", "58"],
    ),
    "a billion layers": (config(n_layer=10**9), ["config.json", "n_layer=1000000000", "2 blocks"]),
    "other width": (config(n_embd=16), ["shape"]),
    "other context": (config(n_positions=32), ["wpe.weight"]),
    "other architecture": (config(model_type="llama"), ["config.json", "model_type='llama'"]),
    "config that is no JSON": (write("config.json", b"{'a': 1}"), ["config.json", "JSON"]),
    "config that is a list": (write("config.json", b"[]"), ["config.json", "object"]),
    "config that is not UTF-8": (write("config.json", b"\xff\xfe"), ["config.json", "UTF-8"]),
    "config of deep lists": (write("config.json", b"[" * 100_000), ["config.json"]),
    "config of 2 MB": (write("config.json", b" " * (2 << 20)), ["config.json", "bytes"]),
    "no config": (lambda folder: (folder / "config.json").unlink(), ["config.json", "missing"]),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), [WEIGHTS, "missing"]),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), ["tokenizer.json"]),
    "tokenizer that is no JSON": (write("tokenizer.json", b"{"), ["tokenizer.json", "JSON"]),
    "tokenizer without a model": (write("tokenizer.json", b"{}"), ["tokenizer.json"]),
    "weights that are a folder": (replace_by(lambda path: path.mkdir()), [WEIGHTS]),
    "weights that are a pipe": (replace_by(os.mkfifo), [WEIGHTS]),
}


def assert_refused(folder, tmp_path, capsys, parts):
    before = set(tmp_path.iterdir())
    with pytest.raises(SystemExit) as ended:
        main(["import", str(folder), "--run-dir", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert_one_line_error((ended.value.code, printed.out, printed.err), *parts)
    assert printed.out == ""
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder(name, folder, tmp_path, capsys):
    damage, parts = DAMAGES[name]
    copy = shutil.copytree(folder, tmp_path / "model")
    damage(copy)
    capsys.readouterr()
    assert_refused(copy, tmp_path, capsys, parts)


def index(change):
    def damage(folder):
        content = json.loads((folder / INDEX).read_text())
        content = change(content) or content
        (folder / INDEX).write_text(json.dumps(content))

    return damage


def place(file):
    return index(lambda content: content["weight_map"].update({C_ATTN: file}))


INDEX_DAMAGES = {
    "path upward": (place("../../etc/passwd"), [INDEX, "'../../etc/passwd'", "same folder"]),
    "path upward with the right ending": (
        place("../secret.safetensors"),
        [INDEX, "../secret", "same folder"],
    ),
    "absolute path": (place("/etc/passwd"), [INDEX, "'/etc/passwd'", "same folder"]),
    "Windows path": (place("..\\secret.safetensors"), [INDEX, "secret", "same folder"]),
    "folder": (place("a/b.safetensors"), [INDEX, "a/b.safetensors", "same folder"]),
    "pickle": (place("pytorch_model.bin"), [INDEX, "pytorch_model.bin", "same folder"]),
    "number": (place(3), [INDEX, "3", "same folder"]),
    "missing file": (place("none.safetensors"), [INDEX, "none.safetensors", "missing"]),
    "wrong shard": (place("model-00001-of-00006.safetensors"), ["model-00001", "c_attn"]),
    "array that is in no shard": (
        index(
            lambda content: content["weight_map"].update(
                {"x": next(iter(content["weight_map"].values()))}
            )
        ),
        ["'x'"],
    ),
    "no map": (index(lambda content: {"metadata": {}}), [INDEX, "weight_map"]),
    "map that is a list": (index(lambda content: {"weight_map": ["a"]}), [INDEX, "weight_map"]),
    "no JSON": (write(INDEX, b"weights"), [INDEX, "JSON"]),
    "damaged shard": (write("model-00002-of-00006.safetensors", HUGE), ["model-00002"]),
}


@pytest.mark.parametrize("name", INDEX_DAMAGES)
def test_a_damaged_index(name, shards, tmp_path, capsys):
    damage, parts = INDEX_DAMAGES[name]
    copy = shutil.copytree(shards, tmp_path / "model")
    damage(copy)
    assert_refused(copy, tmp_path, capsys, parts)


def test_nothing_is_overwritten(folder, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    assert_refused(folder, tmp_path, capsys, ["run_dir=", "new folder", "--run-dir"])
    assert read_files(out) == {out / "mine": b"mine"}
    shutil.rmtree(out)
    out.write_text("mine")
    assert_refused(folder, tmp_path, capsys, ["run_dir=", "--run-dir"])
    assert out.read_text() == "mine"


def test_a_full_disk_leaves_nothing(folder, tmp_path, capsys):
    with jax.numpy_dtype_promotion("standard"), limit_file_size(5000):
        assert_refused(folder, tmp_path, capsys, [])


def test_what_a_killed_import_has_left_is_removed(folder, tmp_path, capsys):
    dead = tmp_path / ".out.0123abcd.partial"
    alive = tmp_path / ".out.4567abcd.partial"
    for path in (dead, alive):
        path.mkdir()
        (path / "config.toml").write_text("")
    with filelock.FileLock(alive / ".lock"):
        main(["import", str(folder), "--run-dir", str(tmp_path / "out")])
    assert {path.name for path in tmp_path.iterdir()} == {"out", alive.name}
