"""The last token of prompts, run again without the tokens before it: what changes there changes nothing earlier.

A trial costs a forward divided by the number of tokens. Shapes: K trials, B prompts, T tokens, D residual width, H query heads,
G key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from ..errors import CapabilityError
from ..interfaces.model import AttentionWeights, ModelAdapter
from ..interfaces.tokens import TokenBatch
from ..kits.components import HeadsInContext, keys, logits_of, project, queries, stream_before
from .products import linear

_CHECKED = 4
"""Prompts on which it is checked that the blocks add up."""
_STEP = 64
"""Rows by which the work of a block grows: blocks of one size use the same memory again."""


class LastToken:
    """Prompts with the stream before every block from one on, kept from one forward.

    Weights are read at every call, so a plan that is applied counts; but at the last token alone. What changed weights do at
    earlier tokens is left out: measure again with a forward what a search has found.

    Args:
        model: the model.
        batch: the prompts.
        first: the first block that trials may change.
        check: whether to find out if this model can be run so; once is enough.

    Attributes:
        streams: block -> [B, T, D] the stream before it.
        logits: [B, V] at the last token, as the forward gave them.

    Raises:
        CapabilityError: a block is not the stream plus its attention plus its MLP, or the model has standing edits.
    """

    @torch.no_grad()
    def __init__(self, model: ModelAdapter[Any], batch: TokenBatch, first: int = 0, *, check: bool = True) -> None:
        blocks = range(first, model.info.n_layers)
        result = model.forward(batch, capture=[stream_before(n) for n in blocks], logits="last")
        assert result.logits is not None
        self.model, self.batch, self.first, self.logits = model, batch, first, result.logits[:, 0]
        self.streams = {n: result[stream_before(n)] for n in blocks}
        self.at, self.rows = batch.last(), torch.arange(len(batch.ids), device=batch.ids.device)
        self._past: dict[int, tuple[Tensor, Tensor]] = {}
        if not check:
            return
        some = self.take(self.rows[:_CHECKED])
        again, near = some.logits_of(some.final()[0]), float(some.logits.abs().max())
        if model.standing or not torch.allclose(again, some.logits, rtol=2e-2, atol=2e-2 * near):
            raise CapabilityError("the blocks of this model do not add up to stream + attention + MLP",
                                  do="name the components, so that none need be searched")

    def take(self, rows: Tensor | slice) -> LastToken:
        """The same of these prompts alone, [n] indices (or a slice, then streams are not copied); no forward."""
        other = copy(self)
        other.batch, other.logits, other.at = self.batch.take(self.rows[rows]), self.logits[rows], self.at[rows]
        other.streams = {n: x[rows] for n, x in self.streams.items()}
        other._past = {n: (k[:, rows], v[:, rows]) for n, (k, v) in self._past.items()}
        other.rows = self.rows[:len(other.at)]
        return other

    def written(self, layer: int) -> Tensor:
        """[H, B, D] what each head writes at the last token (`HeadsInContext.written`)."""
        weights, x = self.model.attention(layer), self.streams[layer][self.rows, self.at]
        return torch.einsum("hkbe,hde->hkbd", self._mixed(layer, weights, x[None])[0], weights.W_O)[:, 0]

    def logits_of(self, x: Tensor) -> Tensor:
        """[..., D] final stream -> [..., V] logits."""
        return logits_of(self.model.unembedding(), x)

    @torch.no_grad()
    def final(self, added: Sequence[tuple[int, Tensor]] = (), *, first: int | None = None) -> Tensor:
        """The stream after the last block, at the last token.

        Args:
            added: trials, by block upwards: after the attention of this block [B, D] is added. All trials go up together, so
                that every weight is read once. Empty: one trial with nothing added.
            first: without trials, the block to begin at; None: the first that is kept.

        Returns:
            [K, B, D], K the number of trials (1 without).

        Cost: for each block, 1/T of its forward for every trial that begins there or below; keys and values of the block once.
        """
        trials = list(added) or [(self.first if first is None else first, torch.zeros_like(self.streams[self.first][:, 0]))]
        if [n for n, _ in trials] != sorted(n for n, _ in trials):
            raise ValueError("trials must go upwards")
        added_there, n = torch.stack([value for _, value in trials]).to(self.streams[self.first]), 0
        out, step = torch.zeros_like(added_there), -(-_STEP // max(1, len(self.rows)))
        for layer in range(trials[0][0], self.model.info.n_layers):
            new = slice(n, n := n + sum(at == layer for at, _ in trials))
            x, mlp = out[:-(-n // step) * step], self.model.mlp(layer)
            x[new] = self.streams[layer][self.rows, self.at]
            x += self._attention(layer, x)
            x[new] += added_there[new]
            x += mlp.function(mlp.norm(x))
        return out

    def _attention(self, layer: int, x: Tensor) -> Tensor:
        """[K, B, D] streams of the last token before a block -> [K, B, D] what its attention writes there."""
        weights = self.model.attention(layer)
        mixed, constant = self._mixed(layer, weights, x)
        return linear(mixed.movedim(0, -2).flatten(-2), weights.W_O.movedim(0, 1).flatten(1), constant)

    def _mixed(self, layer: int, weights: AttentionWeights, x: Tensor) -> tuple[Tensor, Tensor]:
        """[H, K, B, E] what each head's slice of the output matrix reads, without value bias; [D] `HeadsInContext.constant`."""
        if layer not in self._past:
            at_all = weights.norm(self.streams[layer])
            self._past[layer] = keys(weights, at_all, self.batch.positions), project(weights.W_V, None, at_all)
        k_past, v_past = self._past[layer]  # [G, B, T, E]
        batch, rows, at = self.batch, self.rows, self.at
        normed, here = weights.norm(x), batch.positions[rows, at]
        q = queries(weights, normed, here.expand(len(x), -1))
        k = keys(weights, normed, here.expand(len(x), -1))[weights.kv_of]
        v = project(weights.W_V, None, normed)[weights.kv_of]
        gap = here[:, None] - batch.positions
        seen = (gap > 0) & batch.mask & (batch.segments == batch.segments[rows, at][:, None])
        if weights.window is not None:
            seen &= gap < weights.window
        score = torch.einsum("hkbe,hbte->hkbt", q, k_past[weights.kv_of]).masked_fill(~seen, -torch.inf)
        share = (torch.cat([score, (q * k).sum(-1, keepdim=True)], -1) * weights.scale).softmax(-1)
        mixed = torch.einsum("hkbt,hbte->hkbe", share[..., :-1], v_past[weights.kv_of]) + share[..., -1:] * v
        return mixed, HeadsInContext(share, v, weights).constant
