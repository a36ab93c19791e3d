"""Small pictures for reports: PNG files from arrays, with the standard library alone.

Shapes: H, W pixels.
"""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of [H, W, 3] RGB pixels. The same bytes for the same pixels."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)  # each row: no filter, RGB
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in parts)


def data_uri(pixels: Any) -> str:
    """`data:image/png;base64,...` of [H, W, 3] uint8 pixels, an array or tensor; browsers and vision adapters read it."""
    return "data:image/png;base64," + base64.b64encode(png(np.ascontiguousarray(pixels, dtype=np.uint8))).decode("ascii")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
