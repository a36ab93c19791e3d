"""From a view of a weight (`model.attention(3).W_O`) back to the parameter it shows: what editors need."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ShapeError, UserError
from ..interfaces.editor import EditPlan
from ..interfaces.model import ModelAdapter


def parameter_of(model: ModelAdapter[Any], view: Tensor) -> str:
    """Name of the parameter whose memory a view shows.

    Raises:
        UserError: it is (tied to) the unembedding, which as input embedding serves every layer and is never edited in place.
        ShapeError: it is no view of a parameter.
    """
    place = view.untyped_storage().data_ptr()
    if place == model.unembedding().weight.untyped_storage().data_ptr():
        raise UserError("this would edit the unembedding, which may be tied to the input embedding",
                        do="edit what attention or an MLP writes instead")
    for name, parameter in model.parameters().items():
        if parameter.untyped_storage().data_ptr() == place:
            return name
    raise ShapeError("a weight shown by the model is no view of one of its parameters", do="use another model adapter")


def delta_of(model: ModelAdapter[Any], view: Tensor, change: Tensor) -> tuple[str, Tensor]:
    """A change of a view, however transposed or sliced, as (name, delta) of its parameter, for an `EditPlan`.

    Args:
        model: whose weight.
        view: as `attention()` or `mlp()` show it, or a slice of that.
        change: same shape as `view`; anything that broadcasts to it.

    Returns:
        The parameter's name and a tensor of the parameter's shape, zero outside the view.

    Raises:
        UserError, ShapeError: as `parameter_of`.
    """
    name = parameter_of(model, view)
    parameter = model.parameters()[name].detach()
    delta = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    start = view.storage_offset() - parameter.storage_offset()
    delta.as_strided(view.shape, view.stride(), start).copy_(change.detach())
    return name, delta


def random_edit(plan: EditPlan, seed: int) -> EditPlan:
    """Control: Gaussian changes of the same norm in the same rows and columns of each parameter; shifts of the same length."""
    generator = torch.Generator().manual_seed(seed)

    def like(x: Tensor, where: Tensor | float = 1.0) -> Tensor:
        noise: Tensor = torch.randn(x.shape, generator=generator).to(x) * where
        return noise.mul(x.norm() / noise.norm().clamp_min(1e-30))

    deltas = {}
    for name, delta in sorted(plan.deltas.items()):
        flat = delta.reshape(len(delta), -1)
        touched = (flat != 0).any(1, keepdim=True) & (flat != 0).any(0)
        deltas[name] = like(flat, touched).reshape(delta.shape)
    books = [replace(b, shift=like(b.shift)) for b in plan.books]
    return replace(plan, deltas=deltas, books=books, details={"control": "random"})
