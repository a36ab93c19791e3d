"""Sums over paired rows, in float64, from any number of batches: all that a linear map between two spaces needs.

Shapes: N rows, A width of the first space, B width of the second.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DataError, ShapeError


@dataclass(frozen=True)
class PairMoments:
    """Moments of N pairs about a fixed point near their means (so that nothing cancels).

    Cost: 2 N (A² + B² + AB) FLOPs and 8 (A² + B² + AB) bytes, whatever N is.

    Args:
        n: number of pairs.
        origin_a: [A]; origin_b: [B]: the point.
        sum_a: [A]; sum_b: [B]: sums of offsets from it.
        aa: [A, A]; bb: [B, B]; ab: [A, B]: sums of products of offsets.
    """

    n: int
    origin_a: Tensor
    origin_b: Tensor
    sum_a: Tensor
    sum_b: Tensor
    aa: Tensor
    bb: Tensor
    ab: Tensor

    @classmethod
    def of(cls, pairs: Iterable[tuple[Tensor, Tensor]]) -> PairMoments:
        """Read pairs of batches [n, A], [n, B] one after the other.

        Raises:
            ShapeError: a batch is not two matrices of as many rows, or widths change.
            DataError: there are no rows, or some are not finite.
        """
        found: PairMoments | None = None
        for a, b in pairs:
            if a.ndim != 2 or b.ndim != 2 or len(a) != len(b):
                raise ShapeError(f"paired rows have shapes {tuple(a.shape)} and {tuple(b.shape)}",
                                 do="give two matrices [N, A] and [N, B] whose rows belong together")
            if not len(a):
                continue
            x, y = a.double(), b.double()
            if not bool(x.isfinite().all() and y.isfinite().all()):
                raise DataError("paired rows hold values that are not finite", do="find the token they come from")
            if found is None:
                found = cls._empty(x.mean(0), y.mean(0))
            if x.shape[1] != len(found.origin_a) or y.shape[1] != len(found.origin_b):
                raise ShapeError(f"paired rows have widths {x.shape[1]} and {y.shape[1]} after {len(found.origin_a)} and "
                                 f"{len(found.origin_b)}", do="give every batch the same widths")
            x, y = x - found.origin_a, y - found.origin_b
            found.sum_a.add_(x.sum(0))
            found.sum_b.add_(y.sum(0))
            found.aa.addmm_(x.T, x)
            found.bb.addmm_(y.T, y)
            found.ab.addmm_(x.T, y)
            found = cls(found.n + len(x), *found._tensors())
        if found is None:
            raise DataError("there are no paired rows", do="give at least one")
        return found

    @staticmethod
    def flops(n: int, a: int, b: int) -> int:
        """Floating-point operations of the moments of n pairs of widths a and b: 2 n (a² + b² + ab)."""
        return 2 * n * (a * a + b * b + a * b)

    @classmethod
    def _empty(cls, a: Tensor, b: Tensor) -> PairMoments:
        wide, high = len(a), len(b)
        return cls(0, a, b, torch.zeros_like(a), torch.zeros_like(b), a.new_zeros(wide, wide), b.new_zeros(high, high),
                   a.new_zeros(wide, high))

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.origin_a, self.origin_b, self.sum_a, self.sum_b, self.aa, self.bb, self.ab

    def sums(self) -> tuple[Tensor, ...]:
        """The five sums."""
        return self._tensors()[2:]

    def moved(self, origin_a: Tensor, origin_b: Tensor) -> PairMoments:
        """The same moments about another point."""
        da, db, n = self.origin_a - origin_a, self.origin_b - origin_b, self.n
        return PairMoments(
            n, origin_a, origin_b, self.sum_a + n * da, self.sum_b + n * db,
            self.aa + torch.outer(self.sum_a, da) + torch.outer(da, self.sum_a) + n * torch.outer(da, da),
            self.bb + torch.outer(self.sum_b, db) + torch.outer(db, self.sum_b) + n * torch.outer(db, db),
            self.ab + torch.outer(self.sum_a, db) + torch.outer(da, self.sum_b) + n * torch.outer(da, db))

    def __add__(self, other: PairMoments) -> PairMoments:
        """Of both sets of rows."""
        other = other.moved(self.origin_a, self.origin_b)
        return PairMoments(self.n + other.n, self.origin_a, self.origin_b,
                           *(x + y for x, y in zip(self.sums(), other.sums(), strict=True)))

    def __neg__(self) -> PairMoments:
        """What takes these rows away when added to a set that holds them."""
        return PairMoments(-self.n, self.origin_a, self.origin_b, *(-t for t in self.sums()))

    def swapped(self) -> PairMoments:
        """The two spaces exchanged."""
        return PairMoments(self.n, self.origin_b, self.origin_a, self.sum_b, self.sum_a, self.bb, self.aa, self.ab.T)

    @property
    def mean_a(self) -> Tensor:
        """[A]."""
        return self.origin_a + self.sum_a / self.n

    @property
    def mean_b(self) -> Tensor:
        """[B]."""
        return self.origin_b + self.sum_b / self.n

    def centred(self) -> PairMoments:
        """The moments about the means."""
        return self.moved(self.mean_a, self.mean_b)

    def error(self, matrix: Tensor, mean_a: Tensor, mean_b: Tensor) -> float:
        """Sum of |y - (x - mean_a) @ matrix - mean_b|² over the rows, without seeing them again. matrix: [A, B]."""
        at = self.moved(mean_a, mean_b)
        return float(at.bb.trace() - 2 * (at.ab * matrix).sum() + ((at.aa @ matrix) * matrix).sum())
