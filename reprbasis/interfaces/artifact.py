"""Artifacts: what steps exchange. A directory with `manifest.json` and safetensors; never a pickle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..registry import Registry


class Artifact(ABC):
    """Something a step makes and another step, or a person, uses. Saved with `rb.save`, loaded with `rb.load`.

    An artifact whose tensors fit in memory implements `tensors`, `facts` and `load`. One that is written in shards while it
    is made (activations) also overrides `files` and `attach`.
    """

    type: ClassVar[str]
    """Key of `reprbasis.component.ARTIFACTS`."""

    def provides(self) -> frozenset[str]:
        """Capabilities of this artifact (those of the component that made it); see `CAPABILITIES`."""
        return frozenset()

    @abstractmethod
    def tensors(self) -> Mapping[str, Tensor]:
        """Everything numeric, by name; contiguous CPU tensors."""

    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """Everything else, as JSON values."""

    def to(self, device: torch.device) -> Self:
        """The artifact with what it computes with on `device`; most compute nothing and stay as they are.

        The pipeline calls this with the device of its model before a step that needs the model.
        """
        return self

    def files(self) -> Mapping[str, Path]:
        """Files that already lie on disk and belong to the artifact: relative name -> where it lies now."""
        return {}

    @classmethod
    @abstractmethod
    def load(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], registry: Registry) -> Self:
        """The inverse of `tensors` and `facts`; `registry` builds components named in the facts."""

    @classmethod
    def attach(cls, folder: Path, facts: Mapping[str, Any], registry: Registry) -> Self | None:
        """Open an artifact that keeps shards in `folder` without reading them; None means: use `load`."""
        return None
