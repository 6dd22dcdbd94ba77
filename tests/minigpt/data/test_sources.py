"""Texts of several files, folders and formats: what is read, in which order, and its SHA-256."""

import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import TEXT

from minigpt.data import cache as cached
from minigpt.data import dataset as tokens
from minigpt.data import decode, sources
from minigpt.data.dataset import load_dataset
from minigpt.data.sources import is_stream
from minigpt.data.text import load_text
from minigpt.data.token_ids import load_token_ids
from minigpt.data.tokenizer import Tokenizer

DOCUMENTS = ["To be,\r\nor not", "", "to be: caf\u00e9 \U0001f600", "that\u2028is"]
JOINED = "\n\n".join(DOCUMENTS).replace("\r\n", "\n")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def whole(*data, **more):
    corpus = load_text(data, **more)
    return corpus.train + corpus.validation


def sha256(text):
    return hashlib.sha256(text if isinstance(text, bytes) else text.encode()).hexdigest()


def write(name, text):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)


def write_tables():
    import pyarrow as pa
    import pyarrow.ipc
    import pyarrow.parquet as parquet

    table = pa.table({"id": range(len(DOCUMENTS)), "text": DOCUMENTS})
    parquet.write_table(table, "table.parquet", row_group_size=2)
    with pa.ipc.new_file("file.arrow", table.schema) as writer:
        writer.write_table(table)
    Path("saved").mkdir()
    parts = {"data-0.arrow": table[:3], "data-1.arrow": table[3:], "cache-0.arrow": table[:1]}
    for name, part in parts.items():
        with pa.ipc.new_stream(f"saved/{name}", table.schema) as writer:
            writer.write_table(part)
    write("saved/dataset_info.json", "{}")
    files = [{"filename": "data-0.arrow"}, {"filename": "data-1.arrow"}]
    write("saved/state.json", json.dumps({"_data_files": files}))


JSON_LINES = "\ufeff" + "\n".join(f'{{"id": 1, "text": {json.dumps(text)}}}' for text in DOCUMENTS)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "table.parquet", "file.arrow", "saved"])
def test_records_are_joined_with_blank_lines(name):
    if name.startswith("a."):
        write(name, JSON_LINES.replace("\n", "\r\n\n"))
    else:
        write_tables()
    assert whole(name) == JOINED


def test_files_are_joined_in_the_order_of_the_command():
    write("b.txt", "\ufeffb\r")
    write("a.txt.gz", "a\n")
    write("c.jsonl", JSON_LINES)
    assert whole("b.txt", "a.txt.gz", "c.jsonl") == "b\n\n\na\n\n\n" + JOINED
    assert whole("play:hamlet", "b.txt").endswith("\n\n\n\nb\n")
    assert whole("b.txt", "b.txt") == "b\n\n\nb\n"


def test_a_folder_is_its_text_files_sorted_by_path(capsys):
    for name in ("z.txt", "a/b.md", "a.txt", "a/c/d.jsonl", "a/A.txt.gz", "B"):
        write(f"folder/{name}", '{"text": "a/c/d.jsonl"}' if "jsonl" in name else name)
    for name in (".hidden", ".git/config", "run/config.toml", "run/tokenizer.json", "out/a.txt"):
        write(f"folder/{name}", "not this")
    write("folder/out/.lock", "")
    write("folder/image.png", b"\x89PNG\r\n\x1a\n\0\0")
    os.mkfifo("folder/fifo")
    order = ["B", "a.txt", "a/A.txt.gz", "a/b.md", "a/c/d.jsonl", "z.txt"]
    assert whole("folder") == "\n\n".join(order)
    assert capsys.readouterr().err.count("image.png") == 1
    write("folder/latin", b"caf\xe9")
    with pytest.raises(ValueError, match="latin1"):  # a text is never left out
        whole("folder")


def test_folders_without_text_are_refused():
    Path("empty/.git").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"data='empty' is not allowed: .* none of 0 files"):
        whole("empty")


def test_the_sha256_is_that_of_the_file_or_of_the_joined_text():
    write("a.txt", "\ufeffa\r\n" * 30)
    write("a.txt.gz", Path("a.txt").read_bytes())
    raw = Path("a.txt").read_bytes()
    assert load_text("a.txt").sha256 == load_text("a.txt.gz").sha256 == sha256(raw)
    joined = "a\n" + "\ufeffa\n" * 29
    both = sha256(joined + "\n\n" + joined)
    assert load_text(["a.txt", "a.txt"]).sha256 == both
    own = load_text("a.txt", val_data="a.txt.gz").sha256
    assert own == sha256(f"{sha256(raw)}\n{sha256(raw)}")


@pytest.mark.parametrize("kind", ["char", "byte"])
@pytest.mark.parametrize(
    ("data", "val_data"),
    [
        (["a.txt", "b.txt.gz"], None),
        (["a.txt"], ["b.txt.gz"]),
        (["c.jsonl", "a.txt"], ["table.parquet", "a.txt"]),
        (["folder", "c.jsonl.gz"], None),
        ([], ["a.txt"]),
        pytest.param(None, ["a.txt"], marks=pytest.mark.slow),
        pytest.param(["play:hamlet"], None, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_large_texts_have_the_ids_of_small_ones(monkeypatch, data, val_data, kind):
    """Read in blocks of a few bytes, built, from the cache and in memory."""
    write("a.txt", "\ufeff\u20acuro, \r\nto be\r" * 4)
    write("b.txt.gz", "\ufeffor not \U0001f600\n" * 3)
    write("c.jsonl", JSON_LINES)
    write("c.jsonl.gz", JSON_LINES)
    write("folder/x/y", TEXT)
    write_tables()
    text = load_text(data, val_data=val_data)
    monkeypatch.setattr(decode, "BLOCK_BYTES", 7 if data and "play:hamlet" not in data else 1 << 20)
    for in_memory in (1 << 30, -1, -1):
        monkeypatch.setattr(tokens, "MAX_IN_MEMORY_BYTES", in_memory)
        dataset: Any = load_dataset(data, kind, val_data=val_data)
        assert isinstance(dataset.validation, np.memmap) == (in_memory < 0)
        assert dataset.tokenizer.decode(dataset.train) == text.train
        assert dataset.tokenizer.decode(dataset.validation) == text.validation
        assert dataset.validation_characters == len(text.validation)
        assert dataset.sha256 == text.sha256
    if val_data and data:
        assert text.train == whole(*data)
        assert text.validation == whole(*val_data)
    assert len(list(cached.cache_dir().glob("*.ids"))) == 1


@pytest.mark.parametrize("in_memory", [1 << 30, -1])
def test_an_unknown_character_is_placed_in_its_own_text(monkeypatch, in_memory):
    monkeypatch.setattr(tokens, "MAX_IN_MEMORY_BYTES", in_memory)
    write("a.txt", "a" * 99)
    write("b.txt", "aab")
    with pytest.raises(ValueError, match="text has 'b' at position 2,"):
        load_dataset("a.txt", "char", Tokenizer("a"), val_data="b.txt")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"body": "b", "id": 1}', r"line 2: .*\['body', 'id'\]"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": 3}', r"line 3: .*here it is 3. Set --text-field"),
        ("a.jsonl", '{"text": null}', "line 1: .*here it is None"),
        ("a.jsonl", "[1]", "line 1: .*it is no object"),
        ("a.jsonl", '{"text": "a"', "line 1: this is not valid JSON"),
        ("a.jsonl", "[" * 100_000, "line 1: this is not valid JSON"),
        ("a.jsonl", '{"text": "\\ud800"}', r"line 1: '\\ud800' is not allowed"),
        ("a.jsonl", b"\xff\xfe{\0", "it is UTF-16"),
        ("a.txt.gz", b"\xff\xfea\0", "it is UTF-16"),
        ("a.parquet", "no table", r"a.parquet' cannot be read"),
        ("a.arrow", "no table", r"a.arrow' cannot be read"),
        ("a.arrow", "ARROW1 no table", r"a.arrow' cannot be read"),
    ],
)
def test_damaged_records_are_named(name, text, message):
    write(name, text)
    with pytest.raises(ValueError, match=message) as error:
        whole(name)
    assert f"data='{name}'" in str(error.value)


@pytest.mark.parametrize("keep", [0, 5, 30, -4])
def test_a_damaged_gzip_file_is_one_plain_message(keep):
    write("a.txt.gz", TEXT)
    raw = Path("a.txt.gz").read_bytes()
    Path("a.txt.gz").write_bytes(raw[:keep] if keep else b"plain text")
    with pytest.raises(ValueError, match=r"a.txt.gz' cannot be read: it is not a whole gzip file"):
        whole("a.txt.gz")
    with pytest.raises(ValueError, match=r"b.txt.gz' cannot be read: No such file"):
        whole("b.txt.gz")


def test_columns_and_fields_have_names():
    write_tables()
    for name in ("table.parquet", "file.arrow"):
        with pytest.raises(ValueError, match=r"text_field='body' is not allowed.*'id', 'text'"):
            whole(name, text_field="body")
        with pytest.raises(ValueError, match=r"row 1: text_field='id' is .* here it is 0"):
            whole(name, text_field="id")
    write("b.jsonl", '{"body": "b"}')
    assert whole("b.jsonl", text_field="body") == "b"


def test_a_dataset_with_splits_says_how_to_name_one():
    write_tables()
    for split in ("train", "validation"):
        write(f"dict/{split}/dataset_info.json", "{}")
    write("dict/dataset_dict.json", "{}")
    with pytest.raises(ValueError, match=r"train, validation.*--data dict/train.*--val-data"):
        whole("dict")
    write("saved/state.json", "{}")
    with pytest.raises(ValueError, match=r"data='saved' is damaged: its state.json"):
        whole("saved")


def test_without_pyarrow_the_line_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    write("a.parquet", "")
    with pytest.raises(ValueError, match=r"pip install 'dropout-jax\[parquet\]'"):
        whole("a.parquet")


def test_nanogpts_ids_need_a_named_tokenizer_and_its_pickle_is_never_opened():
    write("ids/meta.pkl", b"cos\nsystem\n(S'touch opened'\ntR.")
    np.arange(60, dtype="<u2").tofile("ids/train.bin")
    np.arange(3, dtype="<u2").tofile("ids/val.bin")
    for data in ("ids", "play:hamlet"):
        with pytest.raises(ValueError, match="data='ids' is not allowed with tokenizer='byte'"):
            load_dataset(data, "byte", val_data="ids")
    write("ids/input.txt", "text")
    with pytest.raises(ValueError, match=r"--data ids/input.txt"):
        load_dataset("ids", "char")
    assert not Path("opened").exists()
    assert load_dataset("ids/input.txt", "char").tokenizer == Tokenizer("etx")


def test_token_ids_are_mapped_and_checked():
    folder, tokenizer = Path("ids"), Tokenizer("abcd")
    folder.mkdir()
    for name, ids in (("train.bin", [0, 1, 2, 3, 0]), ("val.bin", [3, 3])):
        np.array(ids, "<u2").tofile(folder / name)
    dataset = load_token_ids((folder,), None, tokenizer)
    assert (dataset.train.tolist(), dataset.validation.tolist()) == ([0, 1, 2, 3, 0], [3, 3])
    assert isinstance(dataset.train, np.memmap)
    assert dataset.validation_characters == 2
    raw = (folder / "train.bin").read_bytes() + (folder / "val.bin").read_bytes()
    assert dataset.sha256 == sha256(raw)
    for name, raw, message in (
        ("val.bin", b"\x03\0\x04\0", r"val.bin.* the id 4 at position 1 must be below 4"),
        ("val.bin", b"\x03\0\x03", "val.bin.*half of its last id"),
    ):
        (folder / name).write_bytes(raw)
        with pytest.raises(ValueError, match=message):
            load_token_ids((folder,), None, tokenizer)
    (folder / "val.bin").unlink()
    with pytest.raises(ValueError, match=r"val.bin' cannot be read: No such file"):
        load_token_ids((folder,), None, tokenizer)
    with pytest.raises(ValueError, match="must be alone"):
        load_token_ids((folder, folder), None, tokenizer)


def test_what_can_be_read_once_is_a_stream():
    os.mkfifo("fifo")
    write("file", "a")
    streams = ("-", "/dev/stdin", "/dev/fd/63", "/proc/self/fd/63", "fifo", "/dev/null")
    assert all(is_stream(Path(name)) for name in streams)
    assert not any(is_stream(Path(name)) for name in ("file", ".", "missing", "play:hamlet"))
