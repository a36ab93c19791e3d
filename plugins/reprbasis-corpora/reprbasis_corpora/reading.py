"""Reading files and choosing examples, for both corpora."""

from __future__ import annotations

import random
from pathlib import Path

from reprbasis.errors import DataError
from reprbasis.interfaces.tokens import Example


def read_text(path: Path) -> str:
    """The text of a UTF-8 file (a byte-order mark is dropped).

    Raises:
        DataError: the file is missing, cannot be read, or is not UTF-8 (with the line).
    """
    try:
        data = path.expanduser().read_bytes()
    except FileNotFoundError:
        raise DataError("there is no such file", where=str(path),
                        do="check the path; it is relative to the current folder") from None
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(path),
                        do="check the path and permissions") from None
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"the file is not UTF-8 (byte {error.start})", where=f"{path}:{line}",
                        do="convert it to UTF-8") from None


def pick(examples: list[Example], *, limit: int | None, skip: int, shuffle: bool, seed: int) -> list[Example]:
    """The examples in their order or in the order given by `seed`, without the first `skip`, at most `limit` of them.

    Raises:
        DataError: nothing is left.
    """
    if shuffle:
        examples = random.Random(seed).sample(examples, len(examples))
    if examples and skip >= len(examples):
        raise DataError(f"skip: {skip} leaves none of the {len(examples)} examples", do="skip fewer")
    return examples[skip:][:limit]
