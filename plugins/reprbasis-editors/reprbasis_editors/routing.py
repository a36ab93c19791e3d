"""Editor `routing`: where a few heads look at the answer's position.

    W_Q' = W_Q + D    with  D n = wanted change of the query, for the normed streams n of the prompts, and D n_keep small

Shapes: B prompts, T tokens, N prompts of all batches, D residual width, E head width.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from reprbasis.errors import DataError, SiteError
from reprbasis.interfaces.editor import EditPlan, EditRequest
from reprbasis.interfaces.model import AttentionWeights, ModelAdapter
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.kits.components import keys, stream_before
from reprbasis.kits.weights import delta_of
from reprbasis.runtime.basis import Basis
from reprbasis.runtime.products import linear

from .config import RoutingConfig
from .local import prior
from .localise import heads_that_matter
from .parts import Part
from .scaled import Direction, ScaledEditor, together
from .search import Judge


def towards_sink(weights: AttentionWeights, head: int, x: Tensor, batch: TokenBatch, at: Tensor) -> tuple[Tensor, Tensor]:
    """Normed stream at the query position [B, D], and the smallest change of the query [B, E] that raises the log-odds of
    attending the first token by one, to first order.

    The graph holds one head's scores: the query goes through the family's own norm and rotation.

    Args:
        weights: of the layer.
        head: which.
        x: [B, T, D] the stream before the block.
        batch: its tokens.
        at: [B] query positions.
    """
    rows = torch.arange(len(x), device=x.device)
    normed = weights.norm(x)
    k = keys(weights, normed, batch.positions)[weights.kv_of[head]]
    here = batch.positions[rows, at][:, None]
    seen = batch.mask & (batch.positions <= here) & (batch.segments == batch.segments[rows, at][:, None])
    if weights.window is not None:
        seen &= here - batch.positions < weights.window
    q = normed[rows, at] @ weights.W_Q[head].T
    q = (q if weights.b_Q is None else q + weights.b_Q[head]).detach().requires_grad_()
    with torch.enable_grad():
        turned = weights.rotate((q if weights.q_norm is None else weights.q_norm(q))[:, None], here)[:, 0]
        score = torch.einsum("be,bte->bt", turned, k.detach()) * weights.scale
        first = seen & (batch.positions == 0)
        odds = score.masked_fill(~first, -torch.inf).logsumexp(-1) - score.masked_fill(~seen | first, -torch.inf).logsumexp(-1)
        [slope] = torch.autograd.grad(odds.sum(), q)
    return normed[rows, at], slope / slope.square().sum(-1, keepdim=True).clamp_min(1e-12)


class Routing(ScaledEditor[RoutingConfig]):
    """The heads that carry a preference are made to look at the first token (the sink) where the answer is given.

    What the query reads there says what kind of place it is, not which names or facts stand before it; so the edit holds for
    words it was not fitted on. Keys and values, which all heads of a group share, are not touched.
    """

    locality = "component"

    def direction(self, model: ModelAdapter, basis: Basis, request: EditRequest, texts: Sequence[TokenBatch],
                  judge: Judge) -> Direction:
        """One change of the query matrix for each head, of the same strength."""
        c, chosen = self.config, self._chosen(model, judge)
        layers = sorted({n for n, _ in chosen})
        streams, moments = judge.streams(layers), _moments(model, layers, judge)
        origins = torch.tensor([i for part in judge.change for i in part.origins])
        known = [(model.attention(n).W_Q[head], moments[n],
                  [towards_sink(model.attention(n), head, x[n], part.item.clean, part.item.clean.last())
                   for x, part in zip(streams, judge.change, strict=True)])
                 for n, head in chosen]

        def fit(which: Sequence[int]) -> EditPlan:
            plans, rows = [], torch.isin(origins, torch.tensor(list(which)))
            for view, moment, found in known:
                read, wanted = (torch.cat([pair[part] for pair in found])[rows.to(view.device)].double().T for part in (0, 1))
                system = read @ read.T + prior(read, moment, c.keep_weight * read.shape[1], c.ridge)
                plans.append(EditPlan(dict([delta_of(model, view, torch.linalg.solve(system, read @ wanted.T).T)])))
            return together(*plans)

        return Direction(fit, {"components": {f"head.{n}.{h}": why for (n, h), why in chosen.items()}}, layers[0], last=True)

    def _chosen(self, model: ModelAdapter, judge: Judge) -> dict[tuple[int, int], dict[str, float]]:
        info = model.info
        if self.config.heads:
            named = [tuple(int(i) for i in name.split(".")[1:]) for name in self.config.heads]
            if wrong := [f"head.{n}.{h}" for n, h in named if n >= info.n_layers or h >= info.n_heads]:
                raise SiteError(f"the model has no {wrong[0]}",
                                do=f"it has {info.n_layers} layers of {info.n_heads} heads, counted from 0")
            return {(n, h): {} for n, h in named}
        found = heads_that_matter(judge, layers=self.config.layers)
        judge.layer = min(n for n, _ in found)
        best: dict[tuple[int, int], dict[str, float]] = {}
        silent = EditPlan()
        for (layer, head), effect in found.items():
            if effect <= 0 or len(best) == self.config.top:
                break
            part = Part(layer, head)
            silent = together(silent, part.plan(model, -part.weight(model)))
            with silent.applied(model):
                left = judge.margin(quick=True)
            best[layer, head] = {"exchange": effect, "left_when_silent_with_those_before": left}
            if self.config.goal is not None and left <= self.config.goal:
                break
        if not best:
            raise DataError("no head supports the answers", do="name the heads, or use prompts that the model answers")
        return best


def _moments(model: ModelAdapter, layers: Sequence[int], judge: Judge) -> dict[int, Tensor]:
    """Layer -> [D, D] mean of n n^T over the tokens of the texts, n what its attention reads. One forward of the texts."""
    sites, width, count = {n: stream_before(n) for n in layers}, model.info.d_model, 0
    totals = {n: torch.zeros(width, width, dtype=torch.float64, device=model.device) for n in layers}
    last = sites[layers[-1]]
    others = (model.forward(batch, capture=sites.values(), stop_at=last, logits="none") for batch in judge.others)
    for result in chain(judge.read(sites.values()), others):
        count += int(result.batch.mask.sum())
        for n, site in sites.items():
            rows = model.attention(n).norm(result[site])[result.batch.mask].T
            totals[n] += linear(rows, rows)
    return {n: total / max(count, 1) for n, total in totals.items()}
