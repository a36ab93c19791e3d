"""Kind `editor`: change the model's behaviour through features, reversibly."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from ..errors import ShapeError
from .artifact import Artifact
from .base import C, Configured
from .scorer import ContrastBatch
from .tokens import Example

if TYPE_CHECKING:
    from ..registry import Registry
    from ..runtime.basis import Basis
    from .model import ModelAdapter


@dataclass(frozen=True)
class EditRequest:
    """What should change, what must not.

    Args:
        change: batches whose behaviour should change (clean -> the answer to forget or correct; `targets.wrong` -> to prefer).
        keep: examples whose behaviour must stay.
        options: further wishes of the editor's own (JSON values).
    """

    change: Sequence[ContrastBatch]
    keep: Sequence[Example] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EditPlan(Artifact):
    """Weight changes that can be applied and taken back bit for bit.

    Args:
        deltas: parameter name -> tensor of the same shape to add.
        details: why these parameters, and every number that must stand beside the edit; JSON values.
    """

    type: ClassVar[str] = "edit-plan"
    deltas: Mapping[str, Tensor] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def applied(self, model: ModelAdapter) -> Iterator[None]:
        """Apply inside a `with` block; on leaving, every parameter is what it was, bit for bit, whatever happened."""
        parameters = model.parameters()
        for name, delta in self.deltas.items():
            if name not in parameters or parameters[name].shape != delta.shape:
                have = tuple(parameters[name].shape) if name in parameters else "no such parameter"
                raise ShapeError(f"the edit plan changes '{name}' {tuple(delta.shape)}, the model has {have}",
                                 do="apply the plan to the model it was made for")
        kept = {name: parameters[name].detach().clone() for name in self.deltas}
        try:
            with torch.no_grad():
                for name, delta in self.deltas.items():
                    parameters[name].add_(delta.to(parameters[name]))
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    parameters[name].copy_(value)

    def tensors(self) -> Mapping[str, Tensor]:
        """The deltas."""
        return {k: v.contiguous() for k, v in self.deltas.items()}

    def facts(self) -> Mapping[str, Any]:
        """The details."""
        return {"details": dict(self.details)}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], registry: Registry) -> Self:
        """Inverse of `tensors` and `facts`."""
        return cls(dict(tensors), facts["details"])


class Editor(Configured[C]):
    """Makes an edit plan. Never leaves the model changed."""

    @abstractmethod
    def edit(self, model: ModelAdapter, basis: Basis, request: EditRequest) -> EditPlan:
        """Plan the edit; the model is restored before this returns."""
