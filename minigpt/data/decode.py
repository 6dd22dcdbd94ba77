"""Decode everything that enters the program as text: one rule, and an error that names the rest.

The rule: UTF-8; a byte order mark at the start is dropped; CRLF and CR become newlines. What is not
UTF-8 is refused by the name of its format, with what to do (see formats.py).
"""

from __future__ import annotations

import codecs
import io
import itertools
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from minigpt.data.formats import SAMPLE_BYTES, name_encoding, recognize_format

BLOCK_BYTES = 1 << 20  # bytes per read
BYTE_ORDER_MARK = "\ufeff"


def normalize_text(text: str, argument: str) -> str:
    r"""Apply the rule to a string from the command line; `argument` is its name in errors.

    >>> normalize_text("To be,\r\nor", "prompt")
    'To be,\nor'

    Raises:
      ValueError: the string has lone surrogates: Python's form of an argument that is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{argument}={text!r} is not allowed: it must be UTF-8 text. Set the terminal to UTF-8."
        ) from None
    return text.removeprefix(BYTE_ORDER_MARK).replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: Path, argument: str) -> str:
    """Read and decode a whole file; `argument` is its name in errors, such as data or prompt_file.

    Raises:
      ValueError: the file cannot be read, or is not UTF-8 text.
    """
    return "".join(decode_utf8(read_blocks(path, argument), path, argument))


def read_blocks(path: Path, argument: str = "data") -> Iterator[bytes]:
    """Yield a file's bytes block by block; a file that cannot be read is a ValueError.

    The path - is the standard input.
    """
    try:
        with Path("/dev/stdin" if str(path) == "-" else path).open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{argument}={str(path)!r} cannot be read: {reason}.") from None


def decode_utf8(
    blocks: Iterable[bytes], path: Path, argument: str = "data", *, recognize: bool = True
) -> Iterator[str]:
    """Decode the bytes of a file by the rule; `path` and `argument` are its names in errors.

    A block may end inside a character, or between a carriage return and its newline. `recognize`
    refuses bytes that look like another format; it is false for texts that were taken out of one.
    """
    blocks = iter(blocks)
    sample = _read_sample(blocks)
    if recognize and (other := recognize_format(sample, path.suffix)):
        raise ValueError(_refusal(path, argument, f"it is {other.name}", other.remedy))
    utf8 = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(utf8, translate=True)
    bytes_read, is_start = 0, True
    for block in itertools.chain([sample], blocks, [b""]):
        incomplete = utf8.getstate()[0]  # the bytes of an incomplete character
        try:
            text = newlines.decode(block, final=not block)
        except UnicodeDecodeError as error:
            position = bytes_read - len(incomplete) + error.start
            end = incomplete if bytes_read > len(sample) else b""
            context = sample + (b"" if block is sample else block or end)
            encoding = name_encoding(context, error.reason)
            problem = f"byte {position} is not; {encoding.name}"
            raise ValueError(_refusal(path, argument, problem, encoding.remedy)) from None
        bytes_read += len(block)
        if is_start and text:
            text, is_start = text.removeprefix(BYTE_ORDER_MARK), False
        yield text


def _read_sample(blocks: Iterator[bytes]) -> bytes:
    """The first blocks: at least SAMPLE_BYTES, unless there are fewer."""
    sample = b""
    while len(sample) < SAMPLE_BYTES and (block := next(blocks, b"")):
        sample += block
    return sample


def _refusal(path: Path, argument: str, problem: str, remedy: str) -> str:
    remedy = remedy.format(file=shlex.quote(str(path)))
    remedy = remedy.encode(errors="backslashreplace").decode()
    return (
        f"{argument}={str(path)!r} is not allowed: it must be UTF-8 text, and {problem}. {remedy}"
    )
