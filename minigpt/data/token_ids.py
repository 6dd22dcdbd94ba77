"""Data that are token ids already: nanoGPT's folder with train.bin and val.bin."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minigpt.data.decode import BLOCK_BYTES
from minigpt.data.tokenizer import AnyTokenizer, build_tokenizer

FILES = ("train.bin", "val.bin")


class TokenIds(NamedTuple):
    """The fields of a Dataset."""

    train: np.ndarray
    validation: np.ndarray
    tokenizer: AnyTokenizer
    sha256: str
    validation_characters: int


def is_token_folder(path: Path) -> bool:
    """Whether a folder has nanoGPT's train.bin."""
    return (path / FILES[0]).is_file()


def token_id_tokenizer(kind: str, folders: tuple[Path, ...]) -> AnyTokenizer:
    """The tokenizer that ids were made with, by its name; char, byte and bpe name none of ids.

    nanoGPT's meta.pkl names the characters, but it is a pickle, which could run any program.
    """
    if kind not in ("char", "byte", "bpe"):
        return build_tokenizer(kind, "")
    text = next((path / "input.txt" for path in folders if (path / "input.txt").is_file()), None)
    remedy = (
        "Name the tokenizer that the ids were made with (nanoGPT's prepare.py of a large text: "
        "--tokenizer gpt2), or use the text"
    )
    if text:
        remedy = (
            f"Use the text: --data {text}; the ids that --tokenizer char makes of its characters "
            "are those of nanoGPT's prepare.py"
        )
    raise ValueError(
        f"data={str(folders[0])!r} is not allowed with tokenizer={kind!r}: its {FILES[0]} has "
        "token ids, and not the text that this tokenizer needs; a meta.pkl could run any program, "
        f"so it is not opened. {remedy}."
    )


def load_token_ids(paths: tuple[Path, ...], val_data: Any, tokenizer: AnyTokenizer) -> TokenIds:
    """Memory-map the ids of a folder; each must be below the tokenizer's vocabulary size.

    The SHA-256 is that of both files, one after the other.
    """
    if len(paths) != 1 or val_data is not None:
        raise ValueError(
            f"data={[str(path) for path in paths]} is not allowed: a folder with {FILES[0]} must "
            f"be alone, since it has its own {FILES[1]}. Leave out the others and --val-data."
        )
    folder = paths[0]
    train, validation = (_map_ids(folder / name) for name in FILES)
    digest, characters, decode = hashlib.sha256(), 0, tokenizer.make_decoder()
    for name, ids in zip(FILES, (train, validation), strict=True):
        for start in range(0, len(ids), BLOCK_BYTES):
            block = np.array(ids[start : start + BLOCK_BYTES])
            _require_known(block, start, folder / name, tokenizer)
            digest.update(block.tobytes())
            if name == FILES[1]:
                is_last = start + len(block) == len(ids)
                characters += len(decode(block.tolist(), is_last))
    return TokenIds(train, validation, tokenizer, digest.hexdigest(), characters)


def _map_ids(path: Path) -> np.ndarray:
    try:
        size = path.stat().st_size
        if size % 2:
            raise ValueError(f"data={str(path)!r} is damaged: half of its last id is missing.")
        return np.memmap(path, "<u2", mode="r") if size else np.zeros(0, "<u2")
    except OSError as error:
        raise ValueError(f"data={str(path)!r} cannot be read: {error.strerror}.") from None


def _require_known(ids: np.ndarray, start: int, path: Path, tokenizer: AnyTokenizer) -> None:
    unknown = np.flatnonzero(ids >= tokenizer.vocab_size)
    if len(unknown):
        raise ValueError(
            f"data={str(path)!r} is not allowed: the id {ids[unknown[0]]} at position "
            f"{start + unknown[0]} must be below {tokenizer.vocab_size}, the size of the "
            "tokenizer's vocabulary. Name the tokenizer that the ids were made with."
        )
