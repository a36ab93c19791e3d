"""Kind `finder`: which small set of features carries the task."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor

from ..sites import Site
from .artifact import Artifact
from .base import C, Configured
from .metric import Metric
from .scorer import ContrastBatch, ScoreTable

if TYPE_CHECKING:
    from ..registry import Registry
    from ..runtime.basis import Basis
    from .model import ModelAdapter


@dataclass(frozen=True)
class Circuit(Artifact):
    """A set of nodes of a basis.

    Args:
        masks: site -> bool [K + 1] (shared over tokens) or [T, K + 1]; the last entry is the error node.
        scores: the scores it was found by, if any.
        details: finder, task, metric, n, four raw numbers and whatever must stand beside them; JSON values.
    """

    type: ClassVar[str] = "circuit"
    masks: Mapping[Site, Tensor] = field(default_factory=dict)
    scores: ScoreTable | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def size(self) -> int:
        """Number of nodes kept."""
        return sum(int(m.sum()) for m in self.masks.values())

    def tensors(self) -> Mapping[str, Tensor]:
        """Masks as `mask/SITE`, scores under `scores/`."""
        out = {f"mask/{s}": m.contiguous() for s, m in self.masks.items()}
        return out | {f"scores/{k}": v for k, v in (self.scores.tensors() if self.scores else {}).items()}

    def facts(self) -> Mapping[str, Any]:
        """Details, and the facts of the scores."""
        return {"details": dict(self.details), "scores": self.scores.facts() if self.scores else None}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], registry: Registry) -> Self:
        """Inverse of `tensors` and `facts`."""
        masks = {Site.parse(k.removeprefix("mask/")): v for k, v in tensors.items() if k.startswith("mask/")}
        inner = {k.removeprefix("scores/"): v for k, v in tensors.items() if k.startswith("scores/")}
        scores = None if facts["scores"] is None else ScoreTable.load(inner, facts["scores"], registry)
        return cls(masks, scores, facts["details"])


class CircuitFinder(Configured[C]):
    """Finds a circuit."""

    @abstractmethod
    def find(self, model: ModelAdapter, basis: Basis, batches: Sequence[ContrastBatch], metric: Metric, *,
             scores: ScoreTable | None = None) -> Circuit:
        """A small set of nodes that carries the metric on these batches."""
