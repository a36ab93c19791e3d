import base64
import zlib

import numpy as np

from reprbasis.kits.png import data_uri, png


def test_a_png_holds_its_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    file = png(pixels)
    assert file[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(file[16:20], "big"), int.from_bytes(file[20:24], "big")) == (7, 5)
    at = file.index(b"IDAT")
    size = int.from_bytes(file[at - 4:at], "big")
    rows = np.frombuffer(zlib.decompress(file[at + 4:at + 4 + size]), np.uint8).reshape(5, 22)
    assert not rows[:, 0].any()
    assert np.array_equal(rows[:, 1:].reshape(5, 7, 3), pixels)
    assert base64.b64decode(data_uri(pixels).partition(",")[2]) == file
