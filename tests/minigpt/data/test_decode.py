"""What enters the program as text: one rule, and the real name of what is not UTF-8."""

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import TEXT

from minigpt.data import decode
from minigpt.data.decode import decode_utf8, normalize_text, read_text
from minigpt.data.formats import recognize_format

CHINESE = "一个人的命运啊,当然要靠自我奋斗\n但是也要考虑到历史的行程。\n" * 9
ACCENTS = "Où est le café ? « Là-bas », répond-elle, déçue.\n" * 9


def decoded_by_python(raw):
    """The text, or None and a pattern of the error."""
    try:
        return io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8-sig").read(), ""
    except UnicodeDecodeError as error:
        return None, f"byte {error.start} is not"


@given(
    st.text(st.sampled_from("ab\r\n\u00e9\u20ac\U0001f600\ufeff")).map(str.encode) | st.binary(),
    st.integers(1, 4),
)
@example(b"ab\xe2\x82", 2)  # cut off in a character
@example(b"\xe2\x82\xac\xe2\x82b", 1)
@example(b"\xed\xa0\x80", 1)  # a surrogate
@example(b"a\r\nb\rc\r", 2)
@example(b"\xef\xbb\xbf\xef\xbb\xbfa", 1)
def test_pieces_are_decoded_as_the_whole(raw, size):
    """Also past the first bytes, by which a format is recognized."""
    pieces = [raw[i : i + size] for i in range(0, len(raw), size)]
    for recognize in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decode, "SAMPLE_BYTES", 3)
            if recognize and recognize_format(raw[: -(-3 // size) * size]):
                expected, message = None, "it must be UTF-8 text, and it is"
            else:
                expected, message = decoded_by_python(raw)
            if expected is None:
                with pytest.raises(ValueError, match=message):
                    list(decode_utf8(pieces, Path("text"), recognize=recognize))
            else:
                decoded = "".join(decode_utf8(pieces, Path("text"), recognize=recognize))
                assert decoded == expected


@pytest.mark.parametrize("text", [TEXT, CHINESE, ACCENTS], ids=["ascii", "chinese", "accents"])
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("order", ["", "le", "be"])
def test_wide_encodings_are_named_with_a_command_that_converts_them(tmp_path, text, bits, order):
    path = tmp_path / "text.txt"
    path.write_text(text, encoding=f"utf-{bits}{order}")
    with pytest.raises(ValueError, match=f"it is UTF-{bits} text") as error:
        read_text(path, "data")
    assert f"iconv -f utf-{bits}{order} -t utf-8 {path} > utf8.txt" in str(error.value)
    assert "latin1" not in str(error.value)


def npy():
    file = io.BytesIO()
    np.save(file, np.arange(9))
    return file.getvalue()


def npz():
    file = io.BytesIO()
    np.savez(file, a=np.arange(9))
    return file.getvalue()


def zip_of_text():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("text.txt", TEXT)
    return file.getvalue()


def tar_of_text():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("text.txt"))
    return file.getvalue()


GPT2_IDS = np.random.default_rng(0).zipf(1.3, 3000) % 50257
CHARACTER_IDS = np.random.default_rng(0).integers(0, 65, 3000)


@pytest.mark.parametrize(
    ("name", "raw", "part"),
    [
        ("a.txt", gzip.compress(TEXT.encode()), "it is gzip. Decompress it: gunzip -c"),
        ("a.txt", bz2.compress(TEXT.encode()), "bunzip2 -c"),
        ("a.txt", lzma.compress(TEXT.encode()), "xz -dc"),
        ("a.txt", zip_of_text(), "a zip archive"),
        ("a.txt", npz(), ".npz"),
        ("a.txt", npy(), "a NumPy array"),
        ("a.txt", tar_of_text(), "a tar archive"),
        ("a.txt", b"PAR1\x15\0\x15", "Parquet. Give it a name that ends in .parquet"),
        ("a.txt", b"ARROW1\0\0", "Arrow"),
        ("a.txt", b"\xff\xff\xff\xff\x10\0", "Arrow"),
        ("a.txt", b"%PDF-1.7\n%\xe2\xe3", "pdftotext"),
        ("meta.pkl", pickle.dumps({"a": 1}), "a Python pickle"),
        ("train.bin", GPT2_IDS.astype("<u2").tobytes(), "nanoGPT's train.bin"),
        ("train.bin", CHARACTER_IDS.astype("<u2").tobytes(), "nanoGPT's train.bin"),
        ("ids", GPT2_IDS.astype("<u2").tobytes(), "nanoGPT's train.bin"),
        ("ids", CHARACTER_IDS.astype("<u2").tobytes(), "nanoGPT's train.bin"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\0\0", "PNG"),
        ("a.txt", bytes(range(256)) * 9, "binary data"),
        ("a.txt", bytes(range(1, 256)) * 9, "binary data"),
        ("a.txt", b"a letter\0" * 9, "tr -d '\\000' <"),
        ("a.txt", ACCENTS.encode("latin1"), "it looks like latin1. Convert it: iconv -f latin1"),
        ("a.txt", "“Ça va?” “Oui, et toi? Au caf\u00e9!”".encode("cp1252"), "iconv -f cp1252"),
        ("a.txt", "привет, мир\n".encode("koi8-r"), "its encoding is unknown"),
        ("a.txt", CHINESE.encode("gbk"), "its encoding is unknown"),
        ("a.txt", ACCENTS.encode()[:-2] + b"\xc3", "ends inside a character"),
        ("a.txt", ACCENTS.encode() + b"\xff" + ACCENTS.encode(), "iconv -c -f utf-8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_formats_are_named_with_what_to_do(tmp_path, name, raw, part):
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=f"config='.*{name}' is not allowed: it must") as error:
        read_text(path, "config")
    assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert "latin1" in part or "latin1" not in str(error.value)


@pytest.mark.parametrize("text", ["BZh is a word", "PAR1 is, too", "GIF8", "", "a\x1b[0m"])
def test_text_that_begins_like_another_format_is_text(tmp_path, text):
    (tmp_path / "train.bin").write_text(text)
    assert read_text(tmp_path / "train.bin", "data") == text


def test_a_byte_order_mark_is_dropped_and_line_ends_are_newlines(tmp_path):
    (tmp_path / "text.txt").write_bytes("\ufeffa\r\nb\rc\ufeff".encode())
    assert read_text(tmp_path / "text.txt", "data") == "a\nb\nc\ufeff"
    assert normalize_text("\ufeffa\r\nb\rc\ufeff", "prompt") == "a\nb\nc\ufeff"


def test_an_argument_that_is_not_utf8_is_one_plain_message():
    with pytest.raises(ValueError, match=r"prompt='caf\\udce9' is not allowed: it must be UTF-8"):
        normalize_text("caf\udce9", "prompt")
