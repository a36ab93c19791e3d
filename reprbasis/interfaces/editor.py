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
from ..sites import Site
from .artifact import Artifact
from .base import C, Configured
from .scorer import ContrastBatch
from .tokens import Example, TokenBatch

if TYPE_CHECKING:
    from ..registry import Registry
    from ..runtime.basis import Basis
    from .model import Edit, ModelAdapter


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
class Codebook:
    """An `Edit`: where the value of a site is near a key, it is shifted. One key of infinite radius shifts it everywhere.

    Of several keys the nearest counts. Position 0 is left alone: what stands there serves attention as a sink.

    Args:
        site: where it applies.
        keys: [N, D] values of the site.
        radius: [N] largest Euclidean distance at which a key counts.
        shift: [N, D] what is added.
    """

    site: Site
    keys: Tensor
    radius: Tensor
    shift: Tensor

    def __call__(self, x: Tensor, batch: TokenBatch) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        keys, radius, shift = (t.to(x.device, torch.float32) for t in (self.keys, self.radius, self.shift))
        away = torch.cdist(x.float(), keys[None], compute_mode="donot_use_mm_for_euclid_dist")
        nearest = torch.where(away <= radius, away, torch.inf).min(-1)
        hit = nearest.values.isfinite() | radius.isinf()[nearest.indices]
        hit = hit & (batch.positions > 0) if x.shape[:2] == batch.positions.shape else hit
        return torch.where(hit[..., None], (x.float() + shift[nearest.indices]).to(x.dtype), x)


@dataclass(frozen=True)
class EditPlan(Artifact):
    """Changes of weights, and of values while the model runs, that can be applied and taken back bit for bit.

    Args:
        deltas: parameter name -> tensor of the same shape to add.
        details: why these parameters, and every number that must stand beside the edit; JSON values.
        books: shifts of a site's value at every forward and every generated token; at most one for a site.
    """

    type: ClassVar[str] = "edit-plan"
    deltas: Mapping[str, Tensor] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    books: Sequence[Codebook] = ()

    def apply(self, model: ModelAdapter) -> Applied:
        """Change the model until `revert()` is called on what is returned. If it fails midway, nothing has changed.

        Raises:
            ShapeError: the plan was made for another model.
        """
        parameters = model.parameters()
        for name, delta in self.deltas.items():
            if name not in parameters or parameters[name].shape != delta.shape:
                have = tuple(parameters[name].shape) if name in parameters else "no such parameter"
                raise ShapeError(f"the edit plan changes '{name}' {tuple(delta.shape)}, the model has {have}",
                                 do="apply the plan to the model it was made for")
        for book in self.books:
            width = model.info.widths.get(book.site)
            if width != book.shift.shape[-1]:
                raise ShapeError(f"the edit plan shifts '{book.site}' of width {book.shift.shape[-1]}, the model has "
                                 f"{width or 'no such site'}",
                                 do="apply the plan to the model it was made for")
        applied = Applied(model, {name: parameters[name].detach().clone() for name in self.deltas}, model.standing)
        try:
            with torch.no_grad():
                for name, delta in self.deltas.items():
                    parameters[name].add_(delta.to(parameters[name]))
            model.standing = (*model.standing, *self.books)
        except BaseException:
            applied.revert()
            raise
        return applied

    @contextmanager
    def applied(self, model: ModelAdapter) -> Iterator[None]:
        """Apply inside a `with` block; on leaving, everything is what it was, bit for bit, whatever happened."""
        done = self.apply(model)
        try:
            yield
        finally:
            done.revert()

    def tensors(self) -> Mapping[str, Tensor]:
        """The deltas by parameter; the books as `book/SITE/keys`, `/radius` and `/shift`."""
        books = {f"book/{b.site}/{k}": getattr(b, k).contiguous() for b in self.books for k in ("keys", "radius", "shift")}
        return {k: v.contiguous() for k, v in self.deltas.items()} | books

    def facts(self) -> Mapping[str, Any]:
        """The details."""
        return {"details": dict(self.details)}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], registry: Registry) -> Self:
        """Inverse of `tensors` and `facts`."""
        sites = [name.split("/")[1] for name in tensors if name.startswith("book/") and name.endswith("/shift")]
        books = [Codebook(Site.parse(s), *(tensors[f"book/{s}/{k}"] for k in ("keys", "radius", "shift"))) for s in sites]
        return cls({k: v for k, v in tensors.items() if not k.startswith("book/")}, facts["details"], books)


@dataclass(frozen=True)
class Applied:
    """A plan in force.

    Args:
        model: the changed model.
        kept: the parameters as they were.
        standing: the model's standing edits as they were.
    """

    model: ModelAdapter
    kept: Mapping[str, Tensor]
    standing: tuple[Edit, ...]

    def revert(self) -> None:
        """Everything is what it was when the plan was applied, bit for bit. Undo several plans in reverse order."""
        parameters = self.model.parameters()
        with torch.no_grad():
            for name, value in self.kept.items():
                parameters[name].copy_(value)
        self.model.standing = self.standing


class Editor(Configured[C]):
    """Makes an edit plan. Never leaves the model changed."""

    @abstractmethod
    def edit(self, model: ModelAdapter, basis: Basis, request: EditRequest) -> EditPlan:
        """Plan the edit; the model is restored before this returns."""
