"""Modes of attention heads that need no prompt: `ov`, `qk`, `pair`; singular directions of the OV matrix.

With a single key the softmax is 1, so what a head makes of one feature is its OV path alone (`ov`); whom it looks for is another
question (`qk`), and both meet only where keys compete (`pair`). Directions are read at root mean square 1, the scale at which the
layer's norm sees the stream; norms, grouped keys and values, biases, norms of queries and keys and rotary positions are the
model's own (Elhage et al. 2021 for OV and QK). What every key gets alike (value bias, constant of the norm) is left out.

Shapes: N sources, M keys, J background tokens, H query heads, G key/value heads, E head width, D residual width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from reprbasis.interfaces.model import AttentionWeights, ModelAdapter
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.kits.components import at_unit_rms, keys, project, queries, read, stream_before


@torch.no_grad()
def ov(weights: AttentionWeights, f: Tensor) -> Tensor:
    """What each head writes when it sees feature f alone: [N, D] -> [N, H, D]."""
    return torch.einsum("hne,hde->nhd", values(weights, f), weights.W_O)


def values(weights: AttentionWeights, f: Tensor) -> Tensor:
    """[N, D] -> [H, N, E]: the value that each query head gets of feature f."""
    return project(weights.W_V, None, read(weights.norm, f.to(weights.W_V)).to(weights.W_V))[weights.kv_of]


@dataclass(frozen=True)
class Background:
    """Real keys that a feature competes with.

    Args:
        x: [J, D] stream before the layer.
        gaps: [J] how many tokens before the query each lies.
    """

    x: Tensor
    gaps: Tensor


@torch.no_grad()
def background(model: ModelAdapter, tokens: TokenBatch, layer: int) -> Background:
    """The stream before a layer at all tokens of one prompt, position 0 (the attention sink) included, for a query after them."""
    site = stream_before(layer)
    row = tokens.mask[0]
    x = model.forward(tokens, capture=[site], logits="none")[site][0, row]
    at = tokens.positions[0, row]
    return Background(x, at.max() + 1 - at)


@torch.no_grad()
def qk(weights: AttentionWeights, f_q: Tensor, f_k: Tensor, *, offset: int = 0, against: Background | None = None) -> Tensor:
    """Attention score of a query of feature f_q for a key of feature f_k, with the real function (no bilinear form).

    Args:
        weights: of the layer.
        f_q: [N, D]; f_k: [M, D].
        offset: how many tokens before the query the key lies; 0 compares content alone.
        against: also subtract log mean exp of the scores of these keys: the margin over a typical one.

    Returns:
        [H, N, M].
    """
    q = queries(weights, weights.norm(at_unit_rms(f_q.to(weights.W_Q)))[None], _at(f_q, len(f_q), offset))[:, 0]
    k = keys(weights, weights.norm(at_unit_rms(f_k.to(weights.W_K)))[None], _at(f_k, len(f_k), 0))[weights.kv_of, 0]
    score = q @ k.mT * weights.scale
    if against is None:
        return score
    other = _scores_of(weights, f_q, against)
    return score - (other.logsumexp(-1, keepdim=True) - torch.tensor(float(other.shape[-1])).log())


@torch.no_grad()
def pair(weights: AttentionWeights, f_q: Tensor, f_k: Tensor, against: Background | None = None, *,
         offset: int = 0) -> tuple[Tensor, Tensor]:
    """What each head writes when a query of feature f_q sees a key of feature f_k among real keys.

    Args:
        weights: of the layer.
        f_q, f_k: [N, D] each, paired.
        against: the other keys.
        offset: how many tokens before the query the key lies.

    Returns:
        y [N, H, D], and [N, H] the share of attention that the key gets.
    """
    here = qk(weights, f_q, f_k, offset=offset).diagonal(dim1=1, dim2=2)[..., None]
    if against is None:
        share = torch.ones_like(here)
        return ov(weights, f_k), share[..., 0].mT
    share = torch.cat([here, _scores_of(weights, f_q, against)], dim=-1).softmax(-1)
    mixed = share[..., :1] * values(weights, f_k) + share[..., 1:] @ values(weights, against.x)
    return torch.einsum("hne,hde->nhd", mixed, weights.W_O), share[..., 0].mT


def _scores_of(weights: AttentionWeights, f_q: Tensor, against: Background) -> Tensor:
    """[H, N, J] scores for background keys, each at its own distance."""
    far = int(against.gaps.max())
    q = queries(weights, weights.norm(at_unit_rms(f_q.to(weights.W_Q)))[None], _at(f_q, len(f_q), far))[:, 0]
    at = (far - against.gaps).to(f_q.device)[None]
    k = keys(weights, weights.norm(against.x.to(weights.W_K))[None], at)[weights.kv_of, 0]
    return q @ k.mT * weights.scale


def _at(x: Tensor, n: int, position: int) -> Tensor:
    return torch.full((1, n), position, device=x.device)


@dataclass(frozen=True)
class OVDirections:
    """Singular directions of one layer's OV matrices: `W_O W_V = writes^T diag(strength) reads`.

    Args:
        strength: [H, E], largest first.
        writes, reads: [H, E, D], rows of length 1.
    """

    strength: Tensor
    writes: Tensor
    reads: Tensor

    def preference(self, normed: Tensor, target: Tensor) -> Tensor:
        """P of `ov` from the singular directions: normed sources [N, D], unit targets [N, D] -> [N, H]."""
        into = torch.einsum("nd,hed->nhe", normed, self.reads) * self.strength
        out = torch.einsum("nd,hed->nhe", target, self.writes)
        return (into * out).sum(-1) / into.norm(dim=-1)

    def read_share(self, normed: Tensor) -> Tensor:
        """[N, D] -> [N, H]: share of a source's square length that a head reads at all (E / D for a random one).

        P of a feature that is hardly read is noise, made large by the division by |y|.
        """
        return torch.einsum("nd,hed->nhe", normed, self.reads).square().sum(-1) / normed.square().sum(-1, keepdim=True)


@torch.no_grad()
def ov_directions(weights: AttentionWeights) -> OVDirections:
    """Singular value decomposition of every head's W_O W_V without forming D x D (Millidge & Black 2022).

    Cost: H (4 D E^2 + O(E^3)) FLOPs.
    """
    out, left = torch.linalg.qr(weights.W_O)
    into, right = torch.linalg.qr(weights.W_V.mT[weights.kv_of])
    u, s, vh = torch.linalg.svd(left @ right.mT)
    return OVDirections(s, (out @ u).mT, vh @ into.mT)
