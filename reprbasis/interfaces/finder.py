"""Kind `finder`: which small set of features carries the task.

Shapes: K latents; node K of a site is the reconstruction error. R rows of a mask (places): token positions, roles, or 1. F rows
of the ablation values.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias

import torch
from torch import Tensor

from ..errors import UserError
from ..sites import Site
from .artifact import Artifact
from .base import C, Configured
from .metric import Metric
from .scorer import ContrastBatch, ScoreTable

if TYPE_CHECKING:
    from ..registry import Registry
    from ..runtime.basis import Basis
    from .model import ModelAdapter

AblationKind: TypeAlias = Literal["mean", "corrupt", "zero"]
ErrorPolicy: TypeAlias = Literal["node", "own", "mean", "none"]
Index: TypeAlias = Literal["token", "role", "shared"]


@dataclass(frozen=True)
class Setup:
    """What being in a circuit means: without it a mask cannot be run, and sizes cannot be compared.

    Args:
        sites: where the basis is spliced in, in execution order.
        ablation: what nodes outside take: their mean over corrupted prompts, their value in the paired corrupted prompt, or 0.
        error: the reconstruction error is a `node` like any other; always kept (`own`); always at its mean; or `none`: the model
            sees reconstructions alone.
        index: what the rows of a mask are: token positions, roles, or nothing (`shared`: a latent counts once for all positions).
        roles: names of the rows of masks per role.
        protect: this many leading tokens of every prompt are left alone.
    """

    sites: tuple[Site, ...]
    ablation: AblationKind = "mean"
    error: ErrorPolicy = "node"
    index: Index = "token"
    roles: tuple[str, ...] = ()
    protect: int = 0

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        return {"sites": [str(s) for s in self.sites], "ablation": self.ablation, "error": self.error, "index": self.index,
                "roles": list(self.roles), "protect": self.protect}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Setup:
        """Inverse of `facts`."""
        return cls(tuple(Site.parse(s) for s in facts["sites"]), facts["ablation"], facts["error"], facts["index"],
                   tuple(facts["roles"]), facts["protect"])


@dataclass(frozen=True)
class Circuit(Artifact):
    """A set of nodes of a basis.

    Args:
        masks: site -> bool [K + 1] (shared over tokens) or [R, K + 1]; the last entry is the error node.
        scores: the scores it was found by, if any.
        details: finder, setup, metric, n and whatever must stand beside them; JSON values.
        fill: site -> [F, K], the value a latent takes when it is not in the circuit (empty where that depends on the prompt).
        error_fill: site -> [F, D], the same for the error.
    """

    type: ClassVar[str] = "circuit"
    masks: Mapping[Site, Tensor] = field(default_factory=dict)
    scores: ScoreTable | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    fill: Mapping[Site, Tensor] = field(default_factory=dict)
    error_fill: Mapping[Site, Tensor] = field(default_factory=dict)

    @property
    def setup(self) -> Setup:
        """What being in it means.

        Raises:
            UserError: the finder did not say.
        """
        if "setup" not in self.details:
            raise UserError("the circuit does not say how its nodes are ablated", do="give it details['setup'] (Setup.facts())")
        return Setup.of(self.details["setup"])

    def size(self) -> int:
        """Number of nodes kept."""
        return sum(int(m.sum()) for m in self.masks.values())

    def nodes(self) -> list[tuple[Site, int, int]]:
        """(site, row, latent) of every node, in order; row -1 in a shared mask, latent K is the error."""
        out = []
        for site, mask in self.masks.items():
            for where in mask.nonzero().tolist():
                out.append((site, -1, where[0]) if len(where) == 1 else (site, where[0], where[1]))
        return out

    def stats(self) -> dict[str, Any]:
        """Counts: nodes, errors among them, distinct latents (those at several rows of a site once), by site and row."""
        flat = self.shared()
        rows: dict[str, int] = {}
        for _, row, _ in self.nodes():
            rows[str(row)] = rows.get(str(row), 0) + 1
        return {"nodes": self.size(), "errors": sum(int(m[..., -1].sum()) for m in self.masks.values()),
                "latents": sum(int(m[:-1].sum()) for m in flat.masks.values()),
                "by_site": {str(s): int(m.sum()) for s, m in self.masks.items()}, "by_row": rows}

    def shared(self) -> Circuit:
        """The same latents with rows dropped: on where they are on in any row. For comparisons of ids, not to be run."""
        masks = {s: m if m.ndim == 1 else m.any(0) for s, m in self.masks.items()}
        return Circuit(masks, None, {**self.details, "rows": "dropped"})

    def union(self, other: Circuit) -> Circuit:
        """Nodes of either."""
        return self._with(other, torch.logical_or)

    def intersect(self, other: Circuit) -> Circuit:
        """Nodes of both."""
        return self._with(other, torch.logical_and)

    def minus(self, other: Circuit) -> Circuit:
        """Nodes that the other does not have."""
        return self._with(other, lambda a, b: a & ~b)

    def iou(self, other: Circuit, *, drop_rows: bool = False) -> float:
        """Shared nodes / nodes of either; 1 for two empty circuits. `drop_rows` compares latents whatever their position."""
        a, b = (self.shared(), other.shared()) if drop_rows else (self, other)
        either = a.union(b).size()
        return a.intersect(b).size() / either if either else 1.0

    def containment(self, other: Circuit, *, drop_rows: bool = False) -> float:
        """Share of this circuit's nodes that the other has; 1 for an empty circuit."""
        a, b = (self.shared(), other.shared()) if drop_rows else (self, other)
        return a.intersect(b).size() / a.size() if a.size() else 1.0

    def _with(self, other: Circuit, how: Callable[[Tensor, Tensor], Tensor]) -> Circuit:
        """Node by node; a site or row that one of them lacks is off there.

        Raises:
            UserError: shared and per-row masks, or bases of different widths.
        """
        out = {}
        for site in dict.fromkeys([*self.masks, *other.masks]):
            a, b = self.masks.get(site), other.masks.get(site)
            one = a if a is not None else b
            assert one is not None
            a, b = (torch.zeros_like(one) if m is None else m for m in (a, b))
            if a.ndim != b.ndim or a.shape[-1] != b.shape[-1]:
                raise UserError(f"masks at {site} have shapes {tuple(a.shape)} and {tuple(b.shape)}",
                                do="compare circuits of one basis and one kind of mask, or their shared() forms")
            if a.ndim == 2 and len(a) != len(b):
                rows = max(len(a), len(b))
                a, b = (torch.cat([m, m.new_zeros(rows - len(m), m.shape[1])]) for m in (a, b))
            out[site] = how(a, b)
        return replace(self, masks=out, scores=None)

    def tensors(self) -> Mapping[str, Tensor]:
        """Masks as `mask/SITE`, ablation values as `fill/SITE` and `error_fill/SITE`, scores under `scores/`."""
        out = {f"{name}/{s}": t.contiguous() for name, table in self._tables().items() for s, t in table.items()}
        return out | {f"scores/{k}": v for k, v in (self.scores.tensors() if self.scores else {}).items()}

    def _tables(self) -> dict[str, Mapping[Site, Tensor]]:
        return {"mask": self.masks, "fill": self.fill, "error_fill": self.error_fill}

    def facts(self) -> Mapping[str, Any]:
        """Details, and the facts of the scores."""
        return {"details": dict(self.details), "scores": self.scores.facts() if self.scores else None}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], registry: Registry) -> Self:
        """Inverse of `tensors` and `facts`."""
        def table(name: str) -> dict[Site, Tensor]:
            return {Site.parse(k.removeprefix(f"{name}/")): v for k, v in tensors.items() if k.startswith(f"{name}/")}

        inner = {k.removeprefix("scores/"): v for k, v in tensors.items() if k.startswith("scores/")}
        scores = None if facts["scores"] is None else ScoreTable.load(inner, facts["scores"], registry)
        return cls(table("mask"), scores, facts["details"], table("fill"), table("error_fill"))


class CircuitFinder(Configured[C]):
    """Finds a circuit."""

    @abstractmethod
    def find(self, model: ModelAdapter, basis: Basis, batches: Sequence[ContrastBatch], metric: Metric, *,
             scores: ScoreTable | None = None) -> Circuit:
        """A small set of nodes that carries the metric on these batches."""

    def family(self, model: ModelAdapter, basis: Basis, batches: Sequence[ContrastBatch], metric: Metric, *,
               scores: ScoreTable | None = None) -> list[Circuit]:
        """Circuits of several sizes, smallest first, for a frontier; by default the one that `find` gives."""
        return [self.find(model, basis, batches, metric, scores=scores)]
