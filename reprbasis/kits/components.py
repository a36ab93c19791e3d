"""What each attention head and MLP of a model writes in context, and the direction that a task asks about.

Nothing here runs a module other than the model's own norms; attention is computed from the weight views, so grouped keys and
values, biases, norms of queries and keys, rotary positions and windows are those of the family.

Shapes: B batch, T tokens, D residual width, H query heads, G key/value heads, E head width, M MLP width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import CapabilityError, DataError
from ..interfaces.metric import Targets
from ..interfaces.model import AttentionWeights, MLPWeights, ModelAdapter, Unembedding
from ..interfaces.tokens import TokenBatch
from ..runtime.products import linear
from ..sites import Site


def stream_before(layer: int) -> Site:
    """The site that holds the residual stream before a block."""
    return Site("resid", layer - 1) if layer else Site("embed")


def project(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """Per-head projection: [heads, E, D], [heads, E] or None, [..., D] -> [heads, ..., E]."""
    out = linear(x, weight.flatten(0, 1)).view(*x.shape[:-1], *weight.shape[:2]).movedim(-2, 0)
    return out if bias is None else out + bias.view(bias.shape[0], *[1] * (x.ndim - 1), -1)


def queries(weights: AttentionWeights, normed: Tensor, positions: Tensor) -> Tensor:
    """Queries as they meet the keys: normed input [B, T, D] and positions [B, T] -> [H, B, T, E]."""
    q = project(weights.W_Q, weights.b_Q, normed)
    return weights.rotate(q if weights.q_norm is None else weights.q_norm(q), positions)


def keys(weights: AttentionWeights, normed: Tensor, positions: Tensor) -> Tensor:
    """Keys as they meet the queries: normed input [B, T, D] and positions [B, T] -> [G, B, T, E]."""
    k = project(weights.W_K, weights.b_K, normed)
    return weights.rotate(k if weights.k_norm is None else weights.k_norm(k), positions)


@dataclass(frozen=True)
class HeadsInContext:
    """One attention layer at one query position of every row, or at Q of them (then every shape has Q after B).

    Args:
        attention: [H, B, T] probabilities; 0 where the query sees nothing.
        values: [H, B, T, E] values without bias (each query head's own copy of its group's).
        weights: the layer's.
    """

    attention: Tensor
    values: Tensor
    weights: AttentionWeights

    @property
    def mixed(self) -> Tensor:
        """[H, B, E] what each head's slice of the output matrix reads, without the value bias."""
        return torch.einsum("hb...t,hbte->hb...e", self.attention, self.values)

    @property
    def read(self) -> Tensor:
        """[H, B, E] the same with the value bias: the real input of the output matrix."""
        bias, mixed = self.weights.b_V, self.mixed
        return mixed if bias is None else mixed + bias[self.weights.kv_of].view(len(mixed), *[1] * (mixed.ndim - 2), -1)

    @property
    def written(self) -> Tensor:
        """[H, B, D] what each head writes, without the value bias."""
        return torch.einsum("hb...e,hde->hb...d", self.mixed, self.weights.W_O)

    @property
    def constant(self) -> Tensor:
        """[D] what the layer writes whatever it sees: value biases through the output matrix, and the output bias.

        `written.sum(0) + constant` is the layer's output.
        """
        w = self.weights
        out = w.W_O.new_zeros(w.W_O.shape[1]) if w.b_O is None else w.b_O
        return out if w.b_V is None else out + torch.einsum("he,hde->d", w.b_V[w.kv_of], w.W_O)


def heads_in_context(weights: AttentionWeights, x: Tensor, batch: TokenBatch, at: Tensor) -> HeadsInContext:
    """Attention of one layer at chosen query positions.

    Args:
        weights: of the layer.
        x: [B, T, D] the stream before the block.
        batch: the tokens (positions, segments).
        at: [B] index of the query token of each row, or [B, Q] of several; no padding among them.

    Cost: 4 B T D G E + 2 B Q H E (D + 2 T) FLOPs.
    """
    several = at if at.ndim == 2 else at[:, None]
    rows = torch.arange(len(x), device=x.device)[:, None]
    normed = weights.norm(x)
    here, segment = batch.positions[rows, several], batch.segments[rows, several]
    q = queries(weights, normed[rows, several], here)
    k = keys(weights, normed, batch.positions)[weights.kv_of]
    gap = here[:, :, None] - batch.positions[:, None]
    seen = (gap >= 0) & (batch.segments[:, None] == segment[:, :, None])
    if weights.window is not None:
        seen &= gap < weights.window
    share = (q @ k.mT * weights.scale).masked_fill(~seen, -torch.inf).softmax(-1)
    values = project(weights.W_V, None, normed)[weights.kv_of]
    return HeadsInContext(share if at.ndim == 2 else share[:, :, 0], values, weights)


def neurons(weights: MLPWeights, normed: Tensor) -> Tensor:
    """Activations of an MLP's neurons, the input of its output matrix: normed input [..., D] -> [..., M]."""
    up = linear(normed, weights.W_in, weights.b_in)
    if weights.W_gate is None:
        return weights.activation(up)
    return weights.activation(linear(normed, weights.W_gate, weights.b_gate)) * up


def logits_of(out: Unembedding, x: Tensor) -> Tensor:
    """[..., D] last stream -> [..., V] logits."""
    return linear(out.norm(x), out.weight, out.bias)


def answer_rows(matrix: Tensor, targets: Targets) -> Tensor:
    """[B, D] mean row of the accepted answers minus mean row of the wrong ones (of all of the vocabulary if none are given).

    Args:
        matrix: [V, D], for example the unembedding's weight.
        targets: token ids, -1 where there is none.

    Raises:
        DataError: there are no answers.
    """
    def mean(ids: Tensor) -> Tensor:
        there = (ids >= 0).to(matrix.dtype)
        return (matrix[ids.clamp_min(0)] * there[..., None]).sum(1) / there.sum(1, keepdim=True).clamp_min(1)

    if targets.answer is None:
        raise DataError("a target direction needs answers", do="use a task whose pairs name an answer")
    wrong = matrix.mean(0) if targets.wrong is None else mean(targets.wrong)
    return mean(targets.answer) - wrong


@torch.no_grad()
def through_norm(out: Unembedding, x: Tensor, gradient: Tensor) -> Tensor:
    """Gradient [..., D] at the final vector -> at the stream x [..., D], the norm held at the scale it has there.

    The scale is read off the norm itself: `norm(x) = s gain (x - c) + norm(0)` with c = 0 (RMSNorm) or the mean of x (LayerNorm).

    Raises:
        CapabilityError: the norm is neither.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    eps = max(torch.finfo(x.dtype).eps, torch.finfo(torch.float32).eps)  # norms of float64 models may work in float32
    gain, y = out.gain.to(wide), (out.norm(x) - out.norm(torch.zeros_like(x))).to(wide)
    for centred in (False, True):
        v = gain * (x.to(wide) - x.to(wide).mean(-1, keepdim=True) if centred else x.to(wide))
        scale = (y * v).sum(-1, keepdim=True) / v.square().sum(-1, keepdim=True).clamp_min(torch.finfo(wide).tiny)
        if float((y - scale * v).norm()) <= 10 * eps * max(float(y.norm()), 1e-12) * x.shape[-1] ** 0.5:
            u = gain * gradient.to(wide)
            return scale * (u - u.mean(-1, keepdim=True) if centred else u)
    raise CapabilityError("the final norm is neither an RMSNorm nor a LayerNorm with the gain that the model names",
                          do="use attribution or ig, which need to know nothing about the norm")


def at_unit_rms(x: Tensor) -> Tensor:
    """Rows [..., D] scaled to root mean square 1, the scale at which norms see a direction; zero rows stay zero."""
    size: Tensor = x.norm(dim=-1, keepdim=True)
    return x * (float(x.shape[-1] ** 0.5) / size.clamp_min(torch.finfo(x.dtype).tiny))


def read(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What a norm makes of directions [..., D], without its constant: `norm(x at rms 1) - norm(0)`."""
    x = at_unit_rms(x)
    return norm(x) - norm(torch.zeros_like(x))


def unembedded(model: ModelAdapter[Any]) -> Tensor:
    """[V, D] directions of the stream that raise each logit: centred rows of the unembedding times the final norm's gain."""
    out = model.unembedding()
    return (out.weight - out.weight.mean(0)) * out.gain
