"""Editors of activations: `steer` adds one vector at a site, `codebook` adds one near each fitted prompt. No weight changes.

Shapes: B prompts, N prompts of all batches, T tokens, D residual width, R latents.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from reprbasis.errors import DataError, ShapeError
from reprbasis.interfaces.editor import Codebook, EditPlan, EditRequest
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .config import CodebookConfig, SiteConfig, SteerConfig
from .parts import place, targets_of
from .scaled import Direction, ScaledEditor
from .search import Judge

A = TypeVar("A", bound=SiteConfig)


class ActivationEditor(ScaledEditor[A]):
    """Reads and shifts one site."""

    def site(self, model: ModelAdapter) -> Site:
        """The site named, or the stream after three quarters of the blocks."""
        if self.config.site is None:
            return Site("resid", 3 * model.info.n_layers // 4)
        [site] = model.info.select(self.config.site)
        return site

    @staticmethod
    def at(model: ModelAdapter, site: Site, batch: TokenBatch, where: Tensor) -> Tensor:
        """[B, D] the site's value at one token [B] of each row."""
        value = model.forward(batch, capture=[site], logits="none")[site]
        return value[torch.arange(len(value), device=value.device), where]


class Steer(ActivationEditor[SteerConfig]):
    """One vector at every token: latents taken away, or the way from clean prompts to corrupted ones.

    The difference of means of two kinds of prompts (Turner et al. 2023, Arditi et al. 2024). It acts on every text.
    """

    def direction(self, model: ModelAdapter, basis: Basis, request: EditRequest, texts: Sequence[TokenBatch],
                  judge: Judge) -> Direction:
        """The shift of every token but the first."""
        site, latents = self.site(model), list(self.config.latents)
        clean = [self.at(model, site, item.clean, item.clean.last()) for item in request.change]
        if latents:
            if wrong := [i for i in latents if i >= basis.d_dict]:
                raise ShapeError(f"the basis has {basis.d_dict} latents, {wrong[0]} is asked for",
                                 do=f"choose latents from 0 to {basis.d_dict - 1}")
            rows = basis.directions(site)[latents].to(model.device)
            moves = [-basis.encode(site, x)[:, latents] @ rows for x in clean]
        else:
            if any(item.corrupt is None for item in request.change):
                raise DataError("the prompts to change have no corrupted counterpart to steer towards", do="name latents")
            moves = [self.at(model, site, item.corrupt, item.corrupt.last()) - x
                     for item, x in zip(request.change, clean, strict=True)]

        def fit(which: Sequence[int]) -> EditPlan:
            shift = torch.cat([moves[i] for i in which]).float().mean(0, keepdim=True)
            return EditPlan(books=[Codebook(site, torch.zeros_like(shift), shift.new_full((1,), torch.inf), shift)])

        return Direction(fit, {"site": str(site), "latents": latents})


class CodebookEditor(ActivationEditor[CodebookConfig]):
    """Where the stream comes near that of a fitted prompt, it is pushed from the answer to the wrong answer.

    After GRACE (Hartvigsen et al. 2023), its value along the known direction instead of by gradients through upper layers.
    Locality is nearly perfect and generality nearly none: a fallback for single facts.
    """

    def direction(self, model: ModelAdapter, basis: Basis, request: EditRequest, texts: Sequence[TokenBatch],
                  judge: Judge) -> Direction:
        """An entry for each prompt; its radius is a share of the distance to the nearest token of the texts to keep."""
        site, share = self.site(model), self.config.radius
        keys = [self.at(model, site, item.clean, place(item, self.config.at)[:, 0]).float() for item in request.change]
        away = [x.new_full((len(x),), torch.inf) for x in keys]
        for batch in texts:
            others = model.forward(batch, capture=[site], logits="none")[site][batch.mask & (batch.positions > 0)].float()
            away = [torch.minimum(near, torch.cdist(x, others).amin(1)) for near, x in zip(away, keys, strict=True)]
        lengths = [torch.where(near.isinf(), x.norm(dim=1), near) for near, x in zip(away, keys, strict=True)]
        shifts = [-x.norm(dim=1, keepdim=True) * targets_of(model, item).to(x)
                  for x, item in zip(keys, request.change, strict=True)]

        def fit(which: Sequence[int]) -> EditPlan:
            key, length, shift = (torch.cat([rows[i] for i in which]) for rows in (keys, lengths, shifts))
            return EditPlan(books=[Codebook(site, key, share * length, shift)])

        return Direction(fit, {"site": str(site), "radius": [round(float(v), 4) for v in share * torch.cat(lengths)]})
