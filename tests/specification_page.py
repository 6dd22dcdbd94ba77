"""Write the known answers of docs/specification.md: python tests/specification_page.py FILE."""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from dropout_jax import reference

BEGIN = "<!-- python tests/specification_page.py docs/specification.md writes what follows -->"
END = "<!-- up to here -->"
SHOWN_WORDS = 4


class Case(NamedTuple):
    """A mask: the two words of a key that is not folded yet, and the arguments of keep_mask."""

    key: tuple[int, int]
    rate: float
    shape: tuple[int, ...]
    broadcast_dims: tuple[int, ...] = ()
    axis: int | None = None
    """the packed axis; None: the array is flat"""


CASES = [
    Case((0, 0), 0.5, ()),
    Case((0, 0), 0.5, (1,)),
    Case((0, 0), 0.1, (31,)),
    Case((0, 0), 0.1, (32,), axis=0),
    Case((0, 0), 0.1, (33,), axis=0),
    Case((1, 2), 0.3, (5, 7)),
    Case((1, 2), 0.3, (40, 7)),
    Case((1, 2), 0.3, (7, 40), axis=1),
    Case((1, 2), 0.3, (2, 32, 2), axis=1),
    Case((1, 2), 0.3, (2, 31, 40), axis=2),
    Case((1, 2), 0.3, (2, 31, 31)),
    Case((1, 2), 0.3, (2, 3, 64, 64), axis=2),
    Case((1, 2), 0.3, (4, 64, 48), (0,), axis=1),
    Case((1, 2), 0.3, (4, 64, 48), (1,), axis=2),
    Case((1, 2), 0.3, (4, 64, 8), (1,)),
    Case((0xFFFFFFFF, 0xFFFFFFFF), 0.25, (3, 65), axis=1),
    Case((0x13198A2E, 0x03707344), 0.001, (16, 128), axis=1),
    Case((0x13198A2E, 0x03707344), 0.9, (16, 128), axis=1),
    Case((0, 0), 0.0, (64,), axis=0),
    Case((0, 0), 2**-25, (64,), axis=0),
    Case((0, 0), 2**-24, (64,), axis=0),
    Case((0, 0), 1 - 2**-24, (4096,), axis=0),
    Case((0, 0), 1.0, (64,), axis=0),
    # One element's own bits tie with those of T, and its borrowed bits decide: bits 7, 15 and 9.
    Case((0, 3), 0.3, (32,), axis=0),
    Case((0, 0x1C57), 0.3, (32,), axis=0),
    Case((0, 0x17EA), 0.1, (32,), axis=0),
]
HEADERS = ["key", "rate", "T", "shape", "broadcast", "packed", "words", "first words", "kept"]


def pack(mask: np.ndarray, axis: int | None) -> np.ndarray:
    """The array of words of a mask, by step 4; unused bits are 0."""
    flat, axis = (mask.reshape(-1), 0) if axis is None else (mask, axis)
    last = np.moveaxis(flat, axis, -1)
    padding = [(0, 0)] * (last.ndim - 1) + [(0, -last.shape[-1] % 32)]
    bits = np.pad(last, padding).reshape(*last.shape[:-1], -1, 32).astype(np.uint64)
    words = (bits << np.arange(32, dtype=np.uint64)).sum(-1, dtype=np.uint64)
    return np.moveaxis(words, -1, axis)


def render_table() -> str:
    """A row for each case, computed by the NumPy oracle."""
    return tabulate(
        [_row(case) for case in CASES], HEADERS, tablefmt="github", disable_numparse=True
    )


def _row(case: Case) -> list[str]:
    mask = reference.keep_mask(
        np.array(case.key, np.uint32), case.rate, case.shape, broadcast_dims=case.broadcast_dims
    )
    words = pack(mask, case.axis)
    first = " ".join(f"{int(word):08x}" for word in words.ravel()[:SHOWN_WORDS])
    exponents = {2**-25: "2^-25", 2**-24: "2^-24", 1 - 2**-24: "1 - 2^-24"}
    return [
        " ".join(f"`{word:08x}`" for word in case.key),
        exponents.get(case.rate, str(case.rate)),
        f"`{reference.threshold(case.rate):x}`",
        str(case.shape),
        str(case.broadcast_dims) if case.broadcast_dims else "",
        "flat" if case.axis is None else str(case.axis),
        str(words.shape),
        f"`{first}`",
        f"{int(mask.sum()):,} of {mask.size:,}",
    ]


def replace_table(page: str) -> str:
    """The page with the lines between the comments replaced."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{render_table()}\n\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(replace_table(path.read_text()))
