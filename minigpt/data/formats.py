"""Recognize by its first bytes what is not UTF-8 text, and say what to do with it."""

from __future__ import annotations

import re
from typing import NamedTuple

SAMPLE_BYTES = 1 << 13


class Format(NamedTuple):
    """What a file is, and what to do: {file} in the remedy stands for its name."""

    name: str
    remedy: str
    is_text: bool = False
    """whether it is text in another encoding"""


def _encoding(name: str, iconv: str) -> Format:
    remedy = f"Convert it: iconv -f {iconv} -t utf-8 {{file}} > utf8.txt."
    return Format(f"{name} text", remedy, is_text=True)


_UNPACK = "Unpack it, and name the text files in it."
_EXTRACT = "Save its text as a UTF-8 file, and use that."
_TOKEN_IDS = Format(
    "token ids of 16 bits, as in nanoGPT's train.bin",
    "Use the text that they were made of, such as nanoGPT's input.txt, with --data.",
)
_BINARY = Format("binary data: it has NUL bytes", "Use a text file.")
_NULS = Format("text with NUL bytes", "Remove them: tr -d '\\000' < {file} > text.txt.")
_PICKLE = Format(
    "a Python pickle, which could run any program and is never opened",
    "Save its text as a UTF-8 file from the program that wrote it.",
)
_ARRAYS = "Save the text, not the array, as a UTF-8 file."
_TABLE = "Give it a name that ends in {}, and use it with --data and --text-field."
_PARQUET = Format("Parquet", _TABLE.format(".parquet"))
_ARROW = Format("Arrow", _TABLE.format(".arrow"))
# The longest first bytes first.
_MAGIC: tuple[tuple[bytes, Format], ...] = (
    (b"\xff\xfe\0\0", _encoding("UTF-32", "utf-32")),
    (b"\0\0\xfe\xff", _encoding("UTF-32", "utf-32")),
    (b"\xff\xfe", _encoding("UTF-16", "utf-16")),
    (b"\xfe\xff", _encoding("UTF-16", "utf-16")),
    (
        b"\x1f\x8b",
        Format(
            "gzip",
            "Decompress it: gunzip -c {file} > text.txt. (A file of --data may stay compressed if "
            "its name ends in .gz.)",
        ),
    ),
    (b"BZh", Format("bzip2", "Decompress it: bunzip2 -c {file} > text.txt.")),
    (b"\xfd7zXZ\0", Format("xz", "Decompress it: xz -dc {file} > text.txt.")),
    (b"\x28\xb5\x2f\xfd", Format("Zstandard", "Decompress it: zstd -dc {file} > text.txt.")),
    (b"\x04\x22\x4d\x18", Format("LZ4", "Decompress it: lz4 -dc {file} > text.txt.")),
    (b"7z\xbc\xaf\x27\x1c", Format("a 7-Zip archive", _UNPACK)),
    (b"Rar!\x1a\x07", Format("a RAR archive", _UNPACK)),
    (
        b"PK\x03\x04",
        Format(
            "a zip archive, or a file of that form: NumPy's .npz, PyTorch's .pt, .docx, .xlsx",
            "Unpack it with unzip, or save its text as a UTF-8 file.",
        ),
    ),
    (b"PK\x05\x06", Format("an empty zip archive", "Name a file with text.")),
    (b"\x93NUMPY", Format("a NumPy array (.npy)", _ARRAYS)),
    (b"PAR1", _PARQUET),
    (b"ARROW1", _ARROW),
    (b"\xff\xff\xff\xff", _ARROW),
    (b"%PDF-", Format("PDF", "Extract its text: pdftotext {file} text.txt.")),
    (b"\x89HDF\r\n\x1a\n", Format("HDF5", _EXTRACT)),
    (b"SQLite format 3\0", Format("an SQLite database", _EXTRACT)),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Format("an old Word or Excel document", _EXTRACT)),
    (b"\x89PNG\r\n\x1a\n", Format("a PNG image", "Use a text file.")),
    (b"\xff\xd8\xff", Format("a JPEG image", "Use a text file.")),
    (b"GIF8", Format("a GIF image", "Use a text file.")),
    (b"\x7fELF", Format("a program (ELF)", "Use a text file.")),
)
_TAR = Format("a tar archive", _UNPACK)
# Control characters that occur in text: tab, newline, vertical tab, form feed, return, escape.
_TEXT_CONTROLS = frozenset(b"\t\n\v\f\r\x1b")


def recognize_format(sample: bytes, suffix: str = "") -> Format | None:
    """Recognize the format of a file by its first bytes; None for what may be UTF-8 text.

    `suffix` is that of the file's name: it tells token ids, which have no mark of their own.
    """
    for magic, known in _MAGIC:
        if sample.startswith(magic) and _is_certain(magic, sample):
            return known
    if sample[257:262] == b"ustar":
        return _TAR
    if re.match(rb"\x80[\x02-\x05]", sample):
        return _PICKLE
    if b"\0" not in sample:
        return _TOKEN_IDS if suffix == ".bin" and not _is_utf8(sample) else None
    return _recognize_wide(sample, suffix)


def _is_certain(magic: bytes, sample: bytes) -> bool:
    """Whether the bytes are a mark: one of letters only may also begin a text."""
    if magic in (b"BZh", b"PAR1", b"GIF8", b"ARROW1"):
        return not _is_utf8(sample) or b"\0" in sample
    return True


def _is_utf8(sample: bytes) -> bool:
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(sample) - 3 and error.reason == "unexpected end of data"
    return True


def _recognize_wide(sample: bytes, suffix: str) -> Format:
    """Recognize text of 16 or 32 bits a character without a byte order mark, by its NUL bytes."""
    if 4 * sample.count(0) < len(sample) and _is_utf8(sample.replace(b"\0", b"")):
        return _NULS
    # In the wrong byte order no character is ASCII.
    names = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
    name = max(names, key=lambda name: _count_ascii(sample, name))
    if _count_ascii(sample, name):
        bits = name[4:6]
        return _encoding(f"UTF-{bits}", f"utf-{bits}{name[-2:]}")
    if suffix == ".bin" or _looks_like_token_ids(sample):
        return _TOKEN_IDS
    return _BINARY


def _count_ascii(sample: bytes, encoding: str) -> int:
    """The number of ASCII characters in a text of this encoding; 0 if it is not such a text."""
    size = int(encoding[4:6]) // 8
    sample = sample[: len(sample) // size * size]
    try:
        text = sample.decode(encoding)
    except UnicodeDecodeError as error:
        if error.start != len(sample) - 2:  # the first half of a surrogate pair
            return 0
        text = sample[: error.start].decode(encoding)
    # Vertical tabs: token 11 of GPT-2 is the comma.
    controls = sum(ord(c) < 32 and c not in "\t\n\f\r" for c in text)
    words = sum(c.isalnum() or c.isspace() for c in text)
    return 0 if controls or 2 * words < len(text) else sum(c.isascii() for c in text)


def _looks_like_token_ids(sample: bytes) -> bool:
    """Whether these are small 16-bit numbers: most high bytes of few kinds, low ones of many."""
    low, high = sample[::2], sample[1::2]
    return len(low) >= 16 and max(high) < 197 and high.count(0) > 0.1 * len(high) > low.count(0)


def name_encoding(sample: bytes, reason: str) -> Format:
    """What bytes may be that are not UTF-8 and have no NUL: Latin-1, damaged UTF-8, or unknown.

    `reason` is the decoder's: "unexpected end of data" where the last character is incomplete.
    """
    characters = len(re.findall(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}", sample))
    if reason == "unexpected end of data" and characters:
        return Format(
            "the file ends inside a character",
            "Copy it again, or drop the incomplete character: iconv -c -f utf-8 -t utf-8 {file} > "
            "utf8.txt.",
        )
    if sum(byte < 32 and byte not in _TEXT_CONTROLS for byte in sample) > len(sample) / 1000:
        return Format("it is binary data", "Use a text file.")
    high = sum(byte >= 128 for byte in sample)
    if characters > high / 4:
        return Format(
            "most of the text is UTF-8, so the file is damaged or of mixed encodings",
            "Drop what is not UTF-8: iconv -c -f utf-8 -t utf-8 {file} > utf8.txt.",
            is_text=True,
        )
    letters = sum(byte >= 0xC0 for byte in sample)
    punctuation = sum(0x80 <= byte < 0xA0 for byte in sample)
    if high <= 0.3 * len(sample) and letters + punctuation >= high / 2:
        encoding = "cp1252" if punctuation else "latin1"
        return _encoding(encoding, encoding)._replace(name=f"it looks like {encoding}")
    return Format(
        "its encoding is unknown",
        "Find it with file -i {file}, then convert: iconv -f ENCODING -t utf-8 {file} > utf8.txt.",
        is_text=True,
    )
