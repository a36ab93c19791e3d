"""Move what was found in one model to another through an alignment: a direction, a dictionary, a table of preferences.

A direction moves with the linear part of the map (`Alignment.direction`); what moved is judged in `reprbasis.kits.transferred`.

Shapes: A and B widths of the two models, K latents, E head width, I and J heads of the two models (all layers).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CapabilityError, ShapeError, SiteError
from ..interfaces.aligner import Alignment
from ..interfaces.model import ModelAdapter
from ..runtime.basis import Basis, Normaliser
from ..sites import Site
from .affine import AffineDictionary
from .components import read, stream_before


def transfer_basis(basis: Basis, alignment: Alignment, site: Site, *, source: Site | None = None) -> Basis:
    """The dictionary of a basis for one site of another model: the same latents, read and written through the alignment.

    Decoder rows move with the matrix (D_B = D_A M), encoder rows with the way back, so that `encode(y)` is what the first
    model's dictionary makes of `backward(y)`, and `decode(z)` is `forward` of what it decodes. Cost: 2 K A B FLOPs each.

    Args:
        basis: of the first model.
        alignment: from its site to `site`.
        site: of the second model.
        source: site of the first model; may be left out if the basis has only one.

    Raises:
        CapabilityError: encoder or decoder is not affine.
        ShapeError: the alignment starts from another width. SiteError: the basis does not cover `source`.
    """
    if source is None:
        if len(basis.sites) > 1:
            raise SiteError(f"the basis covers {len(basis.sites)} sites, and an alignment maps from one",
                            do="name the site that it maps from")
        source = basis.sites[0]
    dictionary, index = basis.dictionary, basis.index(source)
    if not isinstance(dictionary, AffineDictionary):
        raise CapabilityError("this dictionary cannot be moved: its encoder or decoder is not affine",
                              do="use a learner built on reprbasis.kits.affine")
    if alignment.matrix.shape[0] != basis.d_in:
        raise ShapeError(f"the alignment maps from width {alignment.matrix.shape[0]}, the basis has width {basis.d_in}",
                         do="align from the model the basis was learned on")
    m, scale = basis.normaliser.mean[index], basis.normaliser.scale[index]
    state = {k: v.detach().clone() for k, v in dictionary.state_dict().items()}
    kind = state["W_enc"].dtype
    matrix, inverse, mean_a, mean_b, m = (t.double() for t in (alignment.matrix, alignment.inverse, alignment.mean_a,
                                                                alignment.mean_b, m))
    encoder, decoder = state["W_enc"].double(), state["W_dec"].double()
    moved = {"W_enc": encoder @ inverse.T, "W_dec": decoder @ matrix,
             "b_enc": state["b_enc"].double() + scale * (encoder @ (mean_a - m)),
             "b_dec": (state["b_dec"].double() + scale * (m - mean_a)) @ matrix}
    state |= {k: v.to(kind).contiguous() for k, v in moved.items()}
    new = basis.learner.restore(alignment.matrix.shape[1], state)
    return Basis([site], Normaliser(mean_b[None].to(basis.normaliser.mean), scale[None].clone()), new, basis.learner,
                 capabilities=basis.capabilities,
                 details={**basis.details, "moved": {"from": str(source), **{k: v for k, v in alignment.details.items()
                                                                             if k in ("n", "aligner", "model_a", "model_b")}}})


@torch.no_grad()
def head_similarity(model_a: ModelAdapter[Any], model_b: ModelAdapter[Any], alignments: Mapping[Site, Alignment]) -> Tensor:
    """[I, J] cosine between what every head of the first model and every head of the second does to the stream.

    A head is its OV matrix with the gain of its layer's norm folded in (Elhage et al. 2021). The first model's heads are moved
    to the second's space: read through the way back, written through the map, each by the alignment of the nearest site. 1 for
    heads of rotated copies; about 1 / sqrt(A B) in size by chance. What a head attends to is not compared.

    Args:
        model_a, model_b: show their weights.
        alignments: site of the first model (`embed`, `resid.L`) -> alignment; one is enough for rotated copies.

    Cost: 2 I E (A B) to move and 4 I J E² B FLOPs.
    """
    def nearest(site: Site) -> Alignment:
        depth = model_a.info.depth(site)
        return alignments[min(alignments, key=lambda s: abs(model_a.info.depth(s) - depth))]

    if not alignments:
        raise SiteError("there is no alignment to move heads through", do="align at least one site")
    values_a, outputs_a = [], []
    for layer in range(model_a.info.n_layers):
        value, output = _ov(model_a, layer)
        into, out = nearest(stream_before(layer)), nearest(Site("resid", layer))
        values_a.append(value @ into.inverse.to(value).T)
        outputs_a.append(out.matrix.to(output).T @ output)
    values_b, outputs_b = map(list, zip(*(_ov(model_b, layer) for layer in range(model_b.info.n_layers)), strict=True))
    one, two = (torch.cat(values_a), torch.cat(outputs_a)), (torch.cat(values_b), torch.cat(outputs_b))
    size_a, size_b = (_inner(v, o, v, o).clamp_min(0).sqrt() for v, o in (one, two))
    products = torch.cat([_inner(v[None], o[None], *two)[None] for v, o in zip(*one, strict=True)])
    return products / (size_a[:, None] * size_b).clamp_min(1e-30)


def transfer_table(table: Tensor, similarity: Tensor) -> Tensor:
    """A number for each head of the first model [I] -> a guess for each head of the second [J].

    A head is guessed to score what the head most alike scores, times how alike they are.
    """
    best = similarity.max(0)
    return table.flatten()[best.indices] * best.values


def _ov(model: ModelAdapter[Any], layer: int) -> tuple[Tensor, Tensor]:
    """Values [H, E, D] with the norm's gain folded in, outputs [H, D, E]."""
    weights = model.attention(layer)
    eye = torch.eye(weights.W_V.shape[-1], device=weights.W_V.device, dtype=weights.W_V.dtype)
    folded = weights.W_V @ (read(weights.norm, eye) / len(eye) ** 0.5).to(eye).T
    return folded[weights.kv_of].float().cpu(), weights.W_O.detach().float().cpu()


def _inner(value_a: Tensor, output_a: Tensor, value_b: Tensor, output_b: Tensor) -> Tensor:
    """Frobenius products of OV matrices, <O V, O' V'> = tr((Oᵀ O') (V' Vᵀ)); of one with all, or pair by pair: [J]."""
    return ((output_a.mT @ output_b) * (value_a @ value_b.mT)).sum((-1, -2))
