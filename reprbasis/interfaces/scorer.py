"""Kind `scorer`: how much does each feature or component matter.

Shapes: R rows (token positions or roles), K latents; node K of a site is the reconstruction error.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from ..errors import ShapeError
from ..sites import Site
from .artifact import Artifact
from .base import C, Configured
from .metric import Metric, Targets
from .tokens import TokenBatch

if TYPE_CHECKING:
    from ..registry import Registry
    from ..runtime.basis import Basis
    from .model import ModelAdapter


@dataclass(frozen=True)
class ContrastBatch:
    """A batch of a task: clean and corrupted tokens at the same positions, and the answers; see `reprbasis.batches`.

    Args:
        clean, corrupt: [B, T] tokens; `corrupt` is None for tasks without contrast.
        targets: answers and wrong answers.
        roles: name -> [B, R] token positions.
    """

    clean: TokenBatch
    corrupt: TokenBatch | None
    targets: Targets
    roles: Mapping[str, Tensor] = field(default_factory=dict)

    def take(self, rows: Tensor) -> ContrastBatch:
        """The batch made of these rows, [n] indices."""
        return ContrastBatch(self.clean.take(rows), None if self.corrupt is None else self.corrupt.take(rows),
                             self.targets.take(rows), {name: places[rows] for name, places in self.roles.items()})


@dataclass(frozen=True)
class ScoreTable(Artifact):
    """Scores of nodes, and of edges where the scorer gives them.

    Args:
        nodes: site -> [K + 1] (the last entry is the error node), or [R, K + 1] with a row for each token position or role.
        edges: (from, to) -> sparse COO [K_from + 1, K_to + 1], or [R, K_from + 1, R, K_to + 1].
        details: scorer, metric, n, `index` (`shared`, `token` or `role`), `rows` (their names), completeness
            residual and whatever else must stand beside the numbers; JSON values.
    """

    type: ClassVar[str] = "scores"
    nodes: Mapping[Site, Tensor] = field(default_factory=dict)
    edges: Mapping[tuple[Site, Site], Tensor] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self) -> Mapping[str, Tensor]:
        """Nodes as `node/SITE`, edges as `edge/FROM>TO/indices` and `/values`."""
        out = {f"node/{s}": v.contiguous() for s, v in self.nodes.items()}
        for (a, b), e in self.edges.items():
            e = e.coalesce()
            out |= {f"edge/{a}>{b}/indices": e.indices().contiguous(), f"edge/{a}>{b}/values": e.values().contiguous()}
        return out

    def facts(self) -> Mapping[str, Any]:
        """Details, and the shapes of the edges."""
        return {"details": dict(self.details), "edge_shapes": {f"{a}>{b}": list(e.shape) for (a, b), e in self.edges.items()}}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], registry: Registry) -> Self:
        """Inverse of `tensors` and `facts`."""
        nodes = {Site.parse(k.removeprefix("node/")): v for k, v in tensors.items() if k.startswith("node/")}
        edges = {}
        for name, shape in facts["edge_shapes"].items():
            a, _, b = name.partition(">")
            edges[Site.parse(a), Site.parse(b)] = torch.sparse_coo_tensor(
                tensors[f"edge/{name}/indices"], tensors[f"edge/{name}/values"], tuple(shape), check_invariants=True).coalesce()
        return cls(nodes, edges, facts["details"])

    def top(self, n: int) -> list[tuple[Site, int, float]]:
        """The n latents of largest absolute score (summed over tokens), error nodes left out."""
        rows: list[tuple[Site, int, float]] = []
        for site, value in self.nodes.items():
            if value.ndim not in (1, 2):
                raise ShapeError(f"scores at {site} have shape {tuple(value.shape)}", do="use [K + 1] or [T, K + 1]")
            flat = (value if value.ndim == 1 else value.sum(0))[:-1]
            best = flat.abs().topk(min(n, flat.numel())).indices
            rows += [(site, int(i), float(flat[i])) for i in best]
        return sorted(rows, key=lambda r: -abs(r[2]))[:n]


class AttributionScorer(Configured[C]):
    """Scores nodes (and edges) of a model in a basis for a metric on a task."""

    @abstractmethod
    def score(self, model: ModelAdapter, basis: Basis, batches: Sequence[ContrastBatch], metric: Metric) -> ScoreTable:
        """Score every latent and error node of every site of the basis."""
