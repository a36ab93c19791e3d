"""Kind `aligner`: map one model's space onto another's.

Shapes: N paired rows, A width of the first space, B width of the second.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self

import torch
from torch import Tensor

from .artifact import Artifact
from .base import C, Configured

if TYPE_CHECKING:
    from ..registry import Registry


ENOUGH: Final = 8
"""Pairs for each dimension below which a map fits noise (a true rotation with 10 % noise is found to 7 % at 8, to 48 % at 1)."""


@dataclass(frozen=True)
class Alignment(Artifact):
    """An affine map `y = (x - mean_a) @ matrix + mean_b` and its inverse.

    Args:
        matrix: [A, B]; inverse: [B, A], maps back.
        mean_a: [A]; mean_b: [B].
        details: n, held-out figures and their nulls; JSON values.
    """

    type: ClassVar[str] = "alignment"
    matrix: Tensor
    inverse: Tensor
    mean_a: Tensor
    mean_b: Tensor
    details: Mapping[str, Any] = field(default_factory=dict)

    def forward(self, x: Tensor) -> Tensor:
        """[..., A] -> [..., B]."""
        return (x - self.mean_a) @ self.matrix + self.mean_b

    def backward(self, y: Tensor) -> Tensor:
        """[..., B] -> [..., A]."""
        return (y - self.mean_b) @ self.inverse + self.mean_a

    def direction(self, v: Tensor) -> Tensor:
        """Directions [..., A] -> [..., B]: differences of points move with the linear part alone."""
        return v @ self.matrix

    def direction_back(self, v: Tensor) -> Tensor:
        """Directions [..., B] -> [..., A]."""
        return v @ self.inverse

    def swapped(self) -> Alignment:
        """The way back as an alignment of its own."""
        return Alignment(self.inverse, self.matrix, self.mean_b, self.mean_a, self.details)

    def tensors(self) -> Mapping[str, Tensor]:
        """The four tensors."""
        return {"matrix": self.matrix, "inverse": self.inverse, "mean_a": self.mean_a, "mean_b": self.mean_b}

    def facts(self) -> Mapping[str, Any]:
        """The details."""
        return {"details": dict(self.details)}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], registry: Registry) -> Self:
        """Inverse of `tensors` and `facts`."""
        return cls(**{k: torch.as_tensor(v) for k, v in tensors.items()}, details=facts["details"])


class Aligner(Configured[C]):
    """Fits a map between two spaces from paired rows."""

    rows: ClassVar[Literal["any", "unembedding"]] = "any"
    """What paired rows it understands: any (activations, or unembedding rows, which a rotation of the stream rotates alike), or
    unembedding rows alone.
    """

    @abstractmethod
    def fit(self, a: Tensor, b: Tensor) -> Alignment:
        """[N, A], [N, B] -> a map."""

    def fit_stream(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Alignment:
        """The same from batches of paired rows, each seen once; override where sums over batches suffice."""
        found = list(pairs)
        return self.fit(torch.cat([a for a, _ in found]), torch.cat([b for _, b in found]))
