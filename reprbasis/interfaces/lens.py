"""Kind `lens`: read a site in vocabulary coordinates.

Shapes: D residual width, V vocabulary, K directions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from ..errors import ArtifactError
from ..sites import Site
from .artifact import Artifact
from .base import C, Configured
from .reporter import Progress

if TYPE_CHECKING:
    from ..registry import Registry
    from ..runtime.activations import Activations
    from .model import ModelAdapter


@dataclass(frozen=True)
class LensFit(Artifact):
    """What a trained lens learned (nothing for the logit lens): tensors by name, and details.

    The step that makes one puts the lens and its options into `details["lens"]`, so that `lens` can build it again.
    """

    type: ClassVar[str] = "lens-fit"
    values: Mapping[str, Tensor] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self) -> Mapping[str, Tensor]:
        """The values."""
        return self.values

    def facts(self) -> Mapping[str, Any]:
        """The details."""
        return {"details": dict(self.details)}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], registry: Registry) -> Self:
        """Inverse of `tensors` and `facts`."""
        return cls(dict(tensors), facts["details"])

    def lens(self, registry: Registry) -> Lens[Any]:
        """The lens that learned this, ready to read.

        Raises:
            ArtifactError: the details do not say which lens it was.
        """
        if "lens" not in self.details:
            raise ArtifactError("this lens-fit does not say which lens it belongs to",
                                do="build the lens yourself and call `lens.restore(fit)`")
        made: Lens[Any] = registry.build(registry.select("lens", self.details["lens"]))
        return made.restore(self)


class Lens(Configured[C]):
    """Reads activations as scores over the vocabulary.

    A lens that learns something overrides `fit` and `restore`; one that does not needs neither.
    """

    def fit(self, model: ModelAdapter, activations: Activations, sites: Sequence[Site], *, seed: int = 0,
            progress: Progress | None = None) -> LensFit:
        """Learn from the training tokens of `activations` to read these sites. Default: there is nothing to learn.

        Args:
            model: whose sites; also its way out.
            activations: harvested at `sites` (and wherever else the lens needs).
            sites: to be read later; what needs no learning (`final`) may be among them.
            seed: of every draw.
            progress: where to report.
        """
        return LensFit()

    def restore(self, fit: LensFit) -> Self:
        """This lens with what `fit` learned; leaves this one as it is. Default: itself."""
        return self

    @abstractmethod
    def read(self, model: ModelAdapter, x: Tensor, site: Site) -> Tensor:
        """[..., D] at `site` -> [..., V] logits."""

    def read_directions(self, model: ModelAdapter, rows: Tensor, site: Site) -> Tensor:
        """Directions [K, D] (rows of a dictionary) at `site` -> [K, V] how much each raises every logit, centred over V.

        A direction has no scale of its own, so each row is read at root mean square 1. Default: `read` of the direction minus
        `read` of nothing; a lens that is affine before the norm leaves its constant out instead.
        """
        at_one = rows * (float(rows.shape[-1] ** 0.5) / rows.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny))
        logits = self.read(model, at_one, site) - self.read(model, torch.zeros_like(rows[:1]), site)
        return logits - logits.mean(-1, keepdim=True)
