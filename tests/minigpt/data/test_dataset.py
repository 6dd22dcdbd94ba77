"""Ids of large texts: the same as of small ones, made once, and never half-made or damaged."""

import hashlib
import io
import itertools
import json
import multiprocessing
import os
import re
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.console import Console
from tiny import TEXT

from minigpt.data import cache as cached
from minigpt.data import dataset as tokens
from minigpt.data import decode
from minigpt.data import text as corpus
from minigpt.data.batches import take_windows
from minigpt.data.dataset import load_dataset
from minigpt.data.tokenizer import Tokenizer

STREAMED = "To be, or not to be\r\nthat \u20ac is \U0001f600 the \u00e9 question\n" * 5


@pytest.fixture(autouse=True)
def everything_is_large(request, monkeypatch, tmp_path):
    monkeypatch.setattr(tokens, "MAX_IN_MEMORY_BYTES", -1)
    monkeypatch.setattr(decode, "BLOCK_BYTES", 5)
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(STREAMED.encode())
    return path


# Without NUL, which a text does not have, and the byte order mark, which is dropped.
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff")


def by_definition(path, kind):
    """The ids as they were made before there was a cache: the whole text at once."""
    text = path.read_text(encoding="utf-8")
    split = int(len(text) * 0.9)
    alphabet = sorted(set(text))
    positions = {character: position for position, character in enumerate(alphabet)}

    def ids(part):
        return list(part.encode()) if kind == "byte" else [positions[c] for c in part]

    alphabet = None if kind == "byte" else "".join(alphabet)
    return ids(text[:split]), ids(text[split:]), alphabet, len(text) - split


def assert_right(dataset, path, kind):
    train, validation, alphabet, characters = by_definition(path, kind)
    np.testing.assert_array_equal(dataset.train, np.array(train, np.uint16))
    np.testing.assert_array_equal(dataset.validation, np.array(validation, np.uint16))
    assert dataset.train.dtype == dataset.validation.dtype == np.uint16
    assert dataset.tokenizer.alphabet == alphabet
    assert dataset.validation_characters == characters
    assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@given(st.text(LETTERS, min_size=1), st.sampled_from(["char", "byte"]), st.integers(1, 9))
@example("\r", "char", 1)
@example("\r\n" * 10, "byte", 3)
@example("\U0001f600" * 11, "byte", 2)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_streamed_ids_are_those_of_the_whole_text(tmp_path, monkeypatch, text, kind, block):
    monkeypatch.setattr(decode, "BLOCK_BYTES", block)
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    for in_memory in (-1, -1, 1 << 20):  # built, read from the cache, and never cached
        monkeypatch.setattr(tokens, "MAX_IN_MEMORY_BYTES", in_memory)
        dataset = load_dataset(path, kind)
        assert isinstance(dataset.validation, np.memmap) == (in_memory < 0)
        assert_right(dataset, path, kind)


@pytest.mark.parametrize("in_memory", [-1, 1 << 20])
def test_the_tokenizer_argument_is_used(data, monkeypatch, in_memory):
    """Beside the text's own: the two are two entries of the cache."""
    monkeypatch.setattr(tokens, "MAX_IN_MEMORY_BYTES", in_memory)
    tokenizer = Tokenizer("".join(sorted({*data.read_text(), *"xyzXYZ"})))
    for _ in range(2):
        dataset = load_dataset(data, "char", tokenizer)
        assert dataset.tokenizer == tokenizer
        whole = np.concatenate(cast("Any", [dataset.train, dataset.validation]))
        assert tokenizer.decode(whole) == data.read_text()
        assert_right(load_dataset(data, "char"), data, "char")
    assert load_dataset(data, "byte", Tokenizer(None)).tokenizer == Tokenizer(None)


@pytest.mark.parametrize("in_memory", [-1, 1 << 20])
@pytest.mark.parametrize("position", [0, 7, 210])
def test_what_a_given_tokenizer_lacks_is_positiond_in_the_whole_text(
    tmp_path, monkeypatch, in_memory, position
):
    monkeypatch.setattr(tokens, "MAX_IN_MEMORY_BYTES", in_memory)
    path = tmp_path / "other.txt"
    path.write_text("a" * position + "b" + "a" * (220 - position))
    with pytest.raises(ValueError, match=f"text has 'b' at position {position}, a character that"):
        load_dataset(path, "char", Tokenizer("a"))


def test_the_plays_are_tokenized_in_memory():
    dataset, text = load_dataset(None, "char"), corpus.load_text()
    np.testing.assert_array_equal(dataset.train, dataset.tokenizer.encode(text.train))
    np.testing.assert_array_equal(dataset.validation, dataset.tokenizer.encode(text.validation))
    assert dataset.tokenizer == Tokenizer("".join(sorted(set(text.train + text.validation))))
    assert dataset.validation_characters == len(text.validation)
    both = (text.train + text.validation).encode()
    assert dataset.sha256 == text.sha256 == hashlib.sha256(both).hexdigest()


def cache(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def forbid(monkeypatch):
    def tokenize(*_):
        raise AssertionError("tokenized again")

    monkeypatch.setattr(tokens, "_tokenize", tokenize)


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_a_text_is_tokenized_once(data, monkeypatch, tmp_path, kind):
    load_dataset(data, kind)
    forbid(monkeypatch)
    assert_right(load_dataset(data, kind), data, kind)
    copy = tmp_path / "copy.txt"
    copy.write_bytes(data.read_bytes())
    assert_right(load_dataset(copy, kind), copy, kind)
    data.write_text("another text")
    with pytest.raises(AssertionError, match="tokenized again"):
        load_dataset(data, kind)


def test_texts_and_tokenizers_have_entries_of_their_own(data, tmp_path):
    for text in (STREAMED, STREAMED[:-1] + "?"):
        for kind in ("char", "byte"):
            data.write_bytes(text.encode())
            assert_right(load_dataset(data, kind), data, kind)
    assert len(cache(tmp_path)) == 8
    assert not list((tmp_path / "cache").glob("*.partial"))


def flip(path, position):
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)


def change_sizes(path):
    entry = json.loads(path.read_bytes())
    path.write_text(json.dumps(entry | {"train": entry["train"] - 1}))


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        ("ids", lambda path: flip(path, 100)),
        ("ids", lambda path: path.write_bytes(path.read_bytes()[:-2])),
        ("ids", lambda path: path.write_bytes(path.read_bytes() + b"\0\0")),
        ("ids", lambda path: path.write_bytes(b"")),
        ("ids", lambda path: path.unlink()),
        ("json", lambda path: path.unlink()),
        ("json", lambda path: path.write_bytes(b"")),
        ("json", lambda path: path.write_bytes(b"\xff")),
        ("json", lambda path: path.write_text("[]")),
        ("json", lambda path: path.write_text('{"train": 3}')),
        ("json", change_sizes),
    ],
)
def test_a_damaged_entry_is_made_again(data, tmp_path, monkeypatch, suffix, damage):
    load_dataset(data, "char")
    before = {path: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    damage(next((tmp_path / "cache").glob(f"*.{suffix}")))
    assert_right(load_dataset(data, "char"), data, "char")
    assert {path: path.read_bytes() for path in (tmp_path / "cache").iterdir()} == before
    forbid(monkeypatch)
    load_dataset(data, "char")


def test_a_stopped_run_leaves_nothing_and_a_killed_ones_remains_are_swept(
    data, tmp_path, monkeypatch, capsys
):
    def stop(crc, entry):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tokens, "entry_crc32", stop)
        with pytest.raises(KeyboardInterrupt):
            load_dataset(data, "char")
    assert cache(tmp_path) == []
    old, new = tmp_path / "cache" / "old.partial", tmp_path / "cache" / "new.partial"
    old.touch()
    new.touch()
    (tmp_path / "cache" / "gone.partial").symlink_to("by now it has its name")
    stale = time.time() - 2 * cached.STALE_SECONDS
    os.utime(old, (stale, stale))
    assert_right(load_dataset(data, "char"), data, "char")
    assert capsys.readouterr().err == ""
    assert new.exists()
    assert not old.exists()


def _load(path, ready, results):
    ready.wait()
    results.put(np.asarray(cast("Any", load_dataset(path, "char").train)).tobytes())


@pytest.mark.slow
def test_two_processes_at_once(data, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    data.write_bytes(
        STREAMED.encode() * 40_000
    )  # above MAX_IN_MEMORY_BYTES, which is not patched there
    ready, results = spawn.Barrier(2), spawn.Queue()
    processes = [spawn.Process(target=_load, args=(data, ready, results)) for _ in range(2)]
    for process in processes:
        process.start()
    one, other = results.get(timeout=100), results.get(timeout=100)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert one == other
    assert [name.rpartition(".")[2] for name in cache(tmp_path)] == ["ids", "json"]


def unwritable(tmp_path, monkeypatch):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "a file" / "cache"))


def test_a_cache_that_cannot_be_written_costs_a_line(data, tmp_path, monkeypatch, capsys):
    unwritable(tmp_path, monkeypatch)
    assert_right(load_dataset(data, "char"), data, "char")
    warning = capsys.readouterr().err
    assert len(warning.splitlines()) == 1
    assert "Not a directory" in warning
    assert "MINIGPT_CACHE" in warning


def test_ids_that_can_be_written_nowhere_are_an_error(data, tmp_path, monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    unwritable(tmp_path, monkeypatch)
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(ValueError, match=r"No space left .* MINIGPT_CACHE to a folder"):
        load_dataset(data, "char")


def test_unreadable_files_are_one_line_errors(data, tmp_path):
    data.write_bytes(b"twenty-four characters: \xe9t\xe9" * 2)
    with pytest.raises(ValueError, match=r"text\.txt' is not allowed.* byte 24 is not"):
        load_dataset(data, "char")
    assert cache(tmp_path) == []
    with pytest.raises(ValueError, match=r"missing' cannot be read: No such file"):
        load_dataset(tmp_path / "missing", "char")


def test_a_text_that_changes_while_it_is_read_is_refused(data, tmp_path, monkeypatch):
    def before_the_change(*_):
        return "0" * 64

    monkeypatch.setattr(corpus.TextSources, "sha256", before_the_change)
    with pytest.raises(ValueError, match="changed while it was read"):
        load_dataset(data, "char")
    assert cache(tmp_path) == []


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("seconds_a_block", [0.0, 1.0])
def test_who_waits_at_a_terminal_sees_a_bar(data, monkeypatch, terminal, seconds_a_block):
    output, clock = io.StringIO(), itertools.count(0.0, seconds_a_block)
    console = Console(file=output, force_terminal=terminal, force_interactive=terminal)
    monkeypatch.setattr(tokens, "Console", lambda stderr: console)
    monkeypatch.setattr(tokens, "time", SimpleNamespace(monotonic=clock.__next__, time=time.time))
    assert_right(load_dataset(data, "char"), data, "char")
    assert ("tokenizing" in output.getvalue()) == (terminal and seconds_a_block > 0)
    assert terminal or output.getvalue() == ""


def test_a_pipe_is_read_once(tmp_path):
    read, write = os.pipe()
    os.write(write, TEXT.encode())
    os.close(write)
    assert len(load_dataset(Path(f"/dev/fd/{read}"), "char").train) == int(0.9 * len(TEXT))
    os.close(read)


def mapped_memory():
    """Bytes of files in this process's memory."""
    match = re.search(r"RssFile:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) * 1024


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
def test_windows_that_were_read_are_let_go(tmp_path):
    size = 50 << 20
    (tmp_path / "ids").write_bytes(bytes(size))
    ids = np.memmap(tmp_path / "ids", "<u2", mode="r")[7:]
    before = mapped_memory()
    for _ in range(3):
        starts = np.random.default_rng(0).integers(0, len(ids) - 65, 20_000)
        take_windows(ids, starts, 64)
    assert mapped_memory() - before < size // 10
