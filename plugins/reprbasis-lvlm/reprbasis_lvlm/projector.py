"""Editor `projector`: what the image tokens show of a clean image becomes what they show of its patch image.

    y = W h + b                        the projector's last map, W [D, E]; y is the stream at an image token
    A, a = argmin  sum |A y + a - (y' - y)|^2  +  keep_weight sum |A y" + a|^2  +  ridge |A|^2
    W <- W + strength A W,  b <- b + strength (A b + a)

y and y' are a token of a clean image and of its patch image, y" a token of an image to keep (patch images among them). The
target is what the other image gives, so nothing is differentiated; one matrix changes, and nothing where there is no image.

Shapes: D residual width, E input width of the map, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reprbasis.errors import CapabilityError, DataError
from reprbasis.interfaces.editor import Editor, EditPlan, EditRequest
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.tokens import Example, TokenBatch
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .config import ProjectorConfig
from .model import LvlmAdapter

_EMBED = Site("embed")


class Projector(Editor[ProjectorConfig]):
    """See the module. A closed-form rewrite of one linear map, as Meng et al. 2023 (MEMIT) rewrite MLPs, with a local target."""

    @torch.no_grad()
    def edit(self, model: ModelAdapter[Any], basis: Basis, request: EditRequest) -> EditPlan:
        """Plan the edit; the basis is not used. Cost: a forward to the first block for each prompt.

        Raises:
            CapabilityError: the model is not one of `lvlm`.
            DataError: the prompts to change have no patch side, or no images.
        """
        c = self.config
        if not isinstance(model, LvlmAdapter):
            raise CapabilityError("the editor 'projector' edits vision-language models", do="use the model `lvlm`")
        clean, patch = [], []
        for item in request.change:
            if item.corrupt is None:
                raise DataError("the prompts to change have no patch image to take after", do="use a task that provides contrast")
            clean.append(_shown(model, item.clean))
            patch.append(_shown(model, item.corrupt))
        before, after = torch.cat(clean), torch.cat(patch)
        if not len(before):
            raise DataError("the prompts to change show no images", do="use a task with images, such as visual-question")
        kept = torch.cat([after, *_kept(model, request.keep)])
        name = f"{model.kind.projector}.weight"
        weight, bias = (model.parameters().get(n) for n in (name, f"{model.kind.projector}.bias"))
        assert weight is not None
        constant = bias is not None
        one, other = _extended(before, constant), _extended(kept, constant)
        share = other.T @ other * (c.keep_weight * len(one) / len(other))
        gram = one.T @ one + share
        gram.diagonal().add_(c.ridge * float(gram.diagonal().mean()))
        target = after - before
        solved = torch.linalg.solve(gram, one.T @ target).T  # [D, D (+ 1)]
        width = before.shape[1]
        linear = c.strength * solved[:, :width]
        deltas = {name: (linear @ weight.double()).to(weight)}
        if bias is not None:
            deltas[f"{model.kind.projector}.bias"] = (linear @ bias.double() + c.strength * solved[:, width]).to(bias)
        missed = one @ solved.T - target
        return EditPlan(deltas, {
            "editor": self.full_name, "locality": "closed", "options": c.model_dump(mode="json"), "tokens": len(one),
            "kept_tokens": len(other), "fitted": 1 - float(missed.square().sum() / target.square().sum().clamp_min(1e-300)),
            "moved_kept": _size(other @ solved.T), "moved": _size(target),
            "relative": float(deltas[name].norm() / weight.norm())})


def _size(rows: Tensor) -> float:
    """Root mean square length of rows."""
    return float(rows.square().sum(1).mean().sqrt())


def _shown(model: ModelAdapter[Any], batch: TokenBatch) -> Tensor:
    """[N, D] the stream at all image tokens."""
    x = model.forward(batch, capture=[_EMBED], stop_at=_EMBED, logits="none").sites[_EMBED]
    return x[batch.flag("image") & batch.mask].double()


def _kept(model: ModelAdapter[Any], examples: Sequence[Example], together: int = 16) -> list[Tensor]:
    with_images = [e for e in examples if e.images]
    return [_shown(model, model.batch(with_images[at:at + together])) for at in range(0, len(with_images), together)]


def _extended(rows: Tensor, constant: bool) -> Tensor:
    """[N, D (+ 1)] with a column of ones if a bias can change too."""
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) if constant else rows
