"""Kind `lens`: read a site in vocabulary coordinates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor

from ..sites import Site
from .artifact import Artifact
from .base import C, Configured

if TYPE_CHECKING:
    from ..registry import Registry
    from .model import ModelAdapter


@dataclass(frozen=True)
class LensFit(Artifact):
    """What a trained lens learned (nothing for the logit lens): tensors by name, and details."""

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


class Lens(Configured[C]):
    """Reads activations as scores over the vocabulary."""

    @abstractmethod
    def read(self, model: ModelAdapter, x: Tensor, site: Site) -> Tensor:
        """[..., D] at `site` -> [..., V] logits."""
