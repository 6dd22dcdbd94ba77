"""PNG files of masks, without an image library."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEPT = (0x3B, 0x7D, 0xC4)  # blue, on white and on black; what is dropped is transparent


def mask_png(mask: np.ndarray) -> bytes:
    """Return the PNG of a mask (rows, columns): a blue pixel is True, a transparent one False.

    Source: https://www.w3.org/TR/png-3/, with a palette of two colors and one bit a pixel.
    """
    height, width = mask.shape
    header = struct.pack(">IIBBBBB", width, height, 1, 3, 0, 0, 0)
    rows = np.packbits(mask, axis=1)
    no_filter = np.zeros((height, 1), np.uint8)
    pixels = zlib.compress(np.concatenate([no_filter, rows], axis=1).tobytes(), 9)
    chunks = (
        (b"IHDR", header),
        (b"PLTE", bytes((0, 0, 0, *KEPT))),
        (b"tRNS", bytes((0, 255))),
        (b"IDAT", pixels),
        (b"IEND", b""),
    )
    return SIGNATURE + b"".join(_chunk(name, data) for name, data in chunks)


def png_uri(mask: np.ndarray) -> str:
    """Return the PNG of a mask as a data: address."""
    return "data:image/png;base64," + base64.b64encode(mask_png(mask)).decode()


def _chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
