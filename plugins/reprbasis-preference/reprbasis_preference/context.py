"""Modes in context: `ctx` (what a head or MLP really writes at the answer) and `ctx_src` (from which token).

Shapes: B batch, T tokens, C components of a layer (H heads, the MLP, the constant), R null draws, D residual width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reprbasis.errors import DataError
from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.kits.components import answer_rows, heads_in_context, stream_before, through_norm, unembedded
from reprbasis.sites import Site

from .measures import Preference, measure, q_values, ratio, unit, z_values


@dataclass(frozen=True)
class Ranking:
    """What every component writes along a task's contrast (answer minus wrong answer), averaged over prompts.

    Args:
        values: name -> [L, H + 2]; columns are the heads, the MLP, and the constant (value and output biases). `p` (mean over
            prompts of the cosine), `p_sd`, `gain`, `rel`, `dla` (logits, the final norm at its scale in each prompt), `z` and `q`
            (against the same prompts with answer tokens replaced by random ones).
        n: prompts.
    """

    values: Mapping[str, Tensor]
    n: int

    def name(self, layer: int, column: int) -> str:
        """`head.3.1`, `mlp.3` or `constant.3`."""
        heads = self.values["p"].shape[1] - 2
        return f"head.{layer}.{column}" if column < heads else f"{('mlp', 'constant')[column - heads]}.{layer}"

    def top(self, n: int, by: str = "gain") -> list[tuple[int, int]]:
        """(layer, column) of the n largest absolute values, largest first."""
        value = self.values[by]
        best = value.abs().flatten().topk(min(n, value.numel())).indices
        return [divmod(int(i), value.shape[1]) for i in best]


@dataclass(frozen=True)
class LayerOutputs:
    """One layer at the last token of every row: y [C, B, D] (heads, MLP, constant); streams before it and at the end, [B, D]."""

    layer: int
    y: Tensor
    x: Tensor
    end: Tensor


@torch.no_grad()
def ctx(model: ModelAdapter, item: ContrastBatch) -> Iterator[LayerOutputs]:
    """What every component writes at the last token of each clean prompt, layer by layer; they add up to the stream's change.

    Cost: one forward, and attention computed again.
    """
    count = model.info.n_layers
    sites = [s for i in range(count) for s in (stream_before(i), Site("mlp_out", i))]
    result = model.forward(item.clean, capture=[*sites, Site("resid", count - 1)], logits="none")
    rows, at = torch.arange(len(item.clean.ids), device=model.device), item.clean.last()
    for layer in range(count):
        x = result[stream_before(layer)]
        heads = heads_in_context(model.attention(layer), x, item.clean, at)
        mlp, here = result[Site("mlp_out", layer)][rows, at], x[rows, at]
        y = torch.cat([heads.written, mlp[None], heads.constant.expand_as(mlp)[None]])
        yield LayerOutputs(layer, y, here, result[Site("resid", count - 1)][rows, at])


@torch.no_grad()
def ctx_src(model: ModelAdapter, item: ContrastBatch, layer: int) -> Preference:
    """From which token each head takes what it writes along the contrast: `attention W_O W_V N(x_j)`, each [B, H, T]."""
    site = stream_before(layer)
    x = model.forward(item.clean, capture=[site], logits="none")[site]
    at = item.clean.last()
    heads = heads_in_context(model.attention(layer), x, item.clean, at)
    w = heads.weights.W_O
    target = unit(answer_rows(unembedded(model), item.targets))
    inside = heads.attention[..., None] * heads.values
    gain = torch.einsum("hbte,hde,bd->bht", inside, w, target.to(w))
    size = torch.einsum("hbte,hef,hbtf->bht", inside, w.mT @ w, inside).clamp_min(0).sqrt()
    return Preference(ratio(gain, size), gain, size / x[torch.arange(len(x)), at].norm(dim=-1)[:, None, None])


@torch.no_grad()
def rank(model: ModelAdapter, batches: Sequence[ContrastBatch], *, null: int = 256, seed: int = 0) -> Ranking:
    """Rank components by their in-context, contrastive preference.

    Args:
        model: needs its weights.
        batches: of a task.
        null: draws; in each, every distinct answer token becomes a random token of the vocabulary, the same in all prompts.
        seed: of the draws.

    Cost: a forward for each batch, 2 R B C D FLOPs a layer for the null.
    """
    ids = _distinct(batches)
    draw = torch.Generator().manual_seed(seed)
    other = torch.randint(model.info.vocab, (null, len(ids)), generator=draw).to(model.device)
    up, weight = unembedded(model), model.unembedding().weight
    kept: dict[str, list[Tensor]] = {}
    chance = torch.zeros(null, model.info.n_layers, model.info.n_heads + 2, dtype=up.dtype, device=model.device)
    for item in batches:
        target, logits = answer_rows(up, item.targets), answer_rows(weight, item.targets)
        random = unit(torch.stack([answer_rows(up, _replaced(item.targets, ids, row)) for row in other]))
        found: dict[str, list[Tensor]] = {}
        for part in ctx(model, item):
            scores = measure(part.y, target, part.x)
            dla = (part.y * through_norm(model.unembedding(), part.end, logits)).sum(-1)
            for name, value in {"p": scores.p, "gain": scores.gain, "rel": scores.rel, "dla": dla}.items():
                found.setdefault(name, []).append(value)
            chance[:, part.layer] += torch.einsum("cbd,rbd->rc", unit(part.y), random)
        for name, rows in found.items():
            kept.setdefault(name, []).append(torch.stack(rows))
    each = {name: torch.cat(rows, dim=-1) for name, rows in kept.items()}
    n = each["p"].shape[-1]
    values = {name: value.mean(-1) for name, value in each.items()}
    values["p_sd"] = each["p"].std(-1) if n > 1 else torch.zeros_like(values["p"])
    values["z"] = z_values(values["p"], chance / n)
    values["q"] = q_values(values["z"])
    return Ranking({name: value.cpu().contiguous() for name, value in values.items()}, n)


def _distinct(batches: Sequence[ContrastBatch]) -> Tensor:
    given = [t.flatten() for b in batches for t in (b.targets.answer, b.targets.wrong) if t is not None]
    if not given:
        raise DataError("components cannot be ranked without answers", do="use a task whose pairs name an answer")
    ids = torch.cat(given).unique()
    return ids[ids >= 0]


def _replaced(targets: Targets, ids: Tensor, by: Tensor) -> Targets:
    def swap(given: Tensor | None) -> Tensor | None:
        return None if given is None else torch.where(given < 0, -1, by[torch.searchsorted(ids, given.clamp_min(ids[0]))])
    return Targets(swap(targets.answer), swap(targets.wrong))
