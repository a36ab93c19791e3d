"""Greedy de-duplication of texts by exact n-grams (Li et al. 2025, arXiv 2506.07691, which uses n = 20).

A dialogue is dropped when any n-gram of any of its turns was seen in a dialogue that was kept; a dropped dialogue registers
nothing, so the outcome depends on the order, and on nothing else: hashing (`grams`) is a pure function that may run anywhere,
deciding (`Deduplicator.admit`) happens in order.

N-grams are 64-bit hashes. Among G of them two different ones collide with a probability below G^2 / 2^65 (0.1 for G = 2e9).

Shapes: G n-grams.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Unit = Literal["word", "char", "token"]
Hashes = np.ndarray[Any, np.dtype[np.uint64]]

PROBES = 16
"""Bits that each n-gram sets in a Bloom filter."""


def grams(texts: Iterable[str], *, n: int = 20, unit: Unit = "word", whole: bool = False,
          tokenize: Callable[[str], Sequence[int]] | None = None) -> Hashes:
    """[G] sorted hashes of the distinct n-grams of each text; no n-gram reaches from one text into the next.

    Args:
        texts: the turns of a dialogue.
        n: units of an n-gram.
        unit: `word` (split at white space), `char` (code points), or `token` (needs `tokenize`).
        whole: if no text has n units, hash them all together as one n-gram (otherwise there is none).
        tokenize: text -> token ids.
    """
    parts = []
    codes = [_codes(text, unit, tokenize) for text in texts]
    for code in codes:
        if len(code) >= n:
            powers = _powers(n)
            parts.append(_mix((sliding_window_view(code, n) * powers).sum(axis=1, dtype=np.uint64)))
    if not parts and whole:
        ends = [np.concatenate([code, np.zeros(1, np.uint64)]) for code in codes]  # turn boundaries count
        joined = np.concatenate(ends) if ends else np.zeros(1, np.uint64)
        parts.append(_mix((joined * _powers(len(joined))).sum(dtype=np.uint64, keepdims=True) + np.uint64(n)))
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.uint64)


def _codes(text: str, unit: Unit, tokenize: Callable[[str], Sequence[int]] | None) -> Hashes:
    if unit == "word":
        return np.fromiter(map(_word, text.split()), np.uint64)
    if unit == "char":
        return _mix(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64))
    if tokenize is None:
        raise ValueError("unit 'token' needs tokenize")
    return _mix(np.asarray(tokenize(text), dtype=np.uint64))


@lru_cache(maxsize=2**17)
def _word(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _powers(n: int) -> Hashes:
    """Powers of an odd number modulo 2^64, so that order matters."""
    return np.power(np.uint64(0x9E3779B97F4A7C15), np.arange(n, dtype=np.uint64))


def _mix(x: Hashes) -> Hashes:
    """A bijection that spreads every bit over the word (splitmix64, Steele et al. 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Store(Protocol):
    """A set of hashes."""

    def any(self, hashes: Hashes) -> bool:
        """Whether one of them is in the set."""

    def add(self, hashes: Hashes) -> None:
        """Put them all in."""

    @property
    def nbytes(self) -> int:
        """Memory it takes."""

    def error(self, count: int) -> float:
        """Probability that `any` is True for `count` hashes of which none was added."""


class ExactStore:
    """Sorted runs of geometrically growing size: 8 bytes a hash, twice that while two runs are merged."""

    def __init__(self) -> None:
        self._fresh: set[int] = set()
        self._runs: list[Hashes] = []

    def any(self, hashes: Hashes) -> bool:
        """Exact but for collisions of 64-bit hashes; log2(G) binary searches."""
        for run in self._runs:
            at = np.searchsorted(run, hashes)
            if bool((run[np.minimum(at, len(run) - 1)] == hashes).any()):
                return True
        return not self._fresh.isdisjoint(hashes.tolist())

    def add(self, hashes: Hashes) -> None:
        """Amortised log2(G) moves a hash."""
        self._fresh.update(hashes.tolist())
        if len(self._fresh) >= 2**16:
            self._runs.append(np.sort(np.fromiter(self._fresh, np.uint64)))
            self._fresh = set()
            while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
                self._runs[-2:] = [np.sort(np.concatenate(self._runs[-2:]), kind="stable")]

    @property
    def nbytes(self) -> int:
        """Of the runs; what is fresh takes about 60 bytes a hash more."""
        return sum(run.nbytes for run in self._runs) + 60 * len(self._fresh)

    def error(self, count: int) -> float:
        """0: collisions are left out of account."""
        return 0.0


class BloomStore:
    """A Bloom filter (Bloom 1970) of a fixed number of bytes: never misses a hash that was added, but may see one that was not.

    With a share f of its bits set, a strange hash is seen with probability f^PROBES, and one of `count` with
    1 - (1 - f^PROBES)^count: errors drop dialogues that are new and never keep one that repeats.
    """

    def __init__(self, size: int) -> None:
        self._bits = np.zeros(size, np.uint8)
        self._set = 0

    def _probes(self, hashes: Hashes) -> Hashes:
        step = _mix(hashes) | np.uint64(1)
        return (hashes[:, None] + np.arange(PROBES, dtype=np.uint64) * step[:, None]) % np.uint64(8 * len(self._bits))

    def any(self, hashes: Hashes) -> bool:
        """See the class."""
        at = self._probes(hashes)
        found = (self._bits[(at >> np.uint64(3)).astype(np.int64)] >> (at & np.uint64(7)).astype(np.uint8)) & 1
        return bool(found.all(axis=1).any())

    def add(self, hashes: Hashes) -> None:
        """Set their bits."""
        at = np.unique(self._probes(hashes))
        byte, bit = (at >> np.uint64(3)).astype(np.int64), (at & np.uint64(7)).astype(np.uint8)
        self._set += len(at) - int(((self._bits[byte] >> bit) & 1).sum())
        np.bitwise_or.at(self._bits, byte, np.left_shift(np.uint8(1), bit))

    @property
    def nbytes(self) -> int:
        """Fixed."""
        return self._bits.nbytes

    def error(self, count: int) -> float:
        """See the class."""
        strange = (self._set / (8 * len(self._bits))) ** PROBES
        return float(-np.expm1(count * np.log1p(-strange))) if strange < 1 else 1.0


class Deduplicator:
    """Decides, in order, which dialogues are kept.

    Args:
        memory: bytes of a Bloom filter; None: exact, with 8 bytes for each n-gram kept.

    Attributes:
        kept, dropped: dialogues so far.
        grams: n-grams registered.
        false_drops: upper bound on the expected number of dialogues dropped though they were new (0 when exact).
    """

    def __init__(self, memory: int | None = None) -> None:
        self._store: Store = ExactStore() if memory is None else BloomStore(memory)
        self.kept = self.dropped = self.grams = 0
        self.false_drops = 0.0

    def admit(self, hashes: Hashes) -> bool:
        """Whether a dialogue with these n-grams is kept; if so they are registered."""
        self.false_drops += self._store.error(len(hashes))
        if len(hashes) and self._store.any(hashes):
            self.dropped += 1
            return False
        self._store.add(hashes)
        self.grams += len(hashes)
        self.kept += 1
        return True

    def facts(self) -> dict[str, float]:
        """Counts and errors so far, as JSON values."""
        return {"kept": self.kept, "dropped": self.dropped, "grams": self.grams, "bytes": self._store.nbytes,
                "expected_false_drops": self.false_drops}
