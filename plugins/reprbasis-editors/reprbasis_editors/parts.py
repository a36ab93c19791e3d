"""One editable component: its weight, what it reads (keys), what it writes; how components are chosen.

Shapes: B prompts, T tokens, D residual width, I width of what a component reads (head width or MLP width), N keys.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reprbasis.errors import CapabilityError, DataError, SiteError
from reprbasis.interfaces.editor import EditPlan
from reprbasis.interfaces.model import ForwardResult, ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.kits.components import answer_rows, heads_in_context, neurons, stream_before, unembedded
from reprbasis.kits.weights import delta_of
from reprbasis.sites import Site


@dataclass(frozen=True)
class Part:
    """A head's slice of an output matrix (`head.3.1`), which no other head shares, or an MLP's output matrix (`mlp.3`)."""

    layer: int
    head: int | None = None

    def __str__(self) -> str:
        return f"mlp.{self.layer}" if self.head is None else f"head.{self.layer}.{self.head}"

    @classmethod
    def parse(cls, text: str, model: ModelAdapter) -> "Part":
        """From its name.

        Raises:
            SiteError: the model has no such layer or head.
        """
        layer, *head = (int(i) for i in text.split(".")[1:])
        if layer >= model.info.n_layers or (head and head[0] >= model.info.n_heads):
            raise SiteError(f"the model has no component {text}",
                            do=f"it has {model.info.n_layers} layers of {model.info.n_heads} heads, counted from 0")
        return cls(layer, *head)

    def weight(self, model: ModelAdapter) -> Tensor:
        """[D, I] view of the weight."""
        return model.mlp(self.layer).W_out if self.head is None else model.attention(self.layer).W_O[self.head]

    @property
    def sites(self) -> tuple[Site, ...]:
        """What has to be captured to know its keys."""
        before = stream_before(self.layer)
        return (before,) if self.head is not None else (before, Site("attn_out", self.layer), Site("mlp_out", self.layer))

    def keys(self, model: ModelAdapter, batch: TokenBatch, at: Tensor) -> Tensor:
        """[B, Q, I] what the weight reads at token positions [B, Q] of each row. Cost: a forward up to its layer."""
        return self.keys_in(model, model.forward(batch, capture=self.sites, logits="none"), at)

    def keys_in(self, model: ModelAdapter, result: ForwardResult, at: Tensor) -> Tensor:
        """The same from a forward that captured its `sites`.

        Raises:
            CapabilityError: the MLP reads something else than the stream after the attention.
        """
        batch, before = result.batch, result[self.sites[0]]
        if self.head is not None:
            return heads_in_context(model.attention(self.layer), before, batch, at).read[self.head]
        rows = torch.arange(len(at), device=at.device)[:, None]
        weights, x = model.mlp(self.layer), (before + result[self.sites[1]])[rows, at]
        read = neurons(weights, weights.norm(x))
        out = read @ weights.W_out.T if weights.b_out is None else read @ weights.W_out.T + weights.b_out
        if not torch.allclose(out, result[self.sites[2]][rows, at], rtol=1e-2, atol=1e-2 * float(out.abs().max())):
            raise CapabilityError(f"the MLP of layer {self.layer} does not read the stream after the attention",
                                  do="edit heads instead")
        return read

    def plan(self, model: ModelAdapter, change: Tensor) -> EditPlan:
        """The plan that adds `change` [D, I] to the weight."""
        name, delta = delta_of(model, self.weight(model), change)
        return EditPlan({name: delta})


def place(item: ContrastBatch, at: str = "answer") -> Tensor:
    """[B, 1] position whose logits give the answer, or the last position of a role.

    Raises:
        DataError: the batch has no such role, or its subject is not in the prompt.
    """
    if at == "answer":
        return item.clean.last()[:, None]
    if at not in item.roles or not item.roles[at].shape[1]:
        raise DataError(f"the prompts to change have no role '{at}'" + (f", only {', '.join(item.roles)}" if item.roles else ""),
                        do="edit at the answer (at: answer), or mark the subject, which must stand in the prompt")
    return item.roles[at][:, -1:]


def targets_of(model: ModelAdapter, item: ContrastBatch) -> Tensor:
    """[B, D] unit direction from the wrong answer to the answer."""
    rows = answer_rows(unembedded(model), item.targets).double()
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-30)


@dataclass
class Kept:
    """What a component reads in the texts to keep.

    Args:
        moment: [I, I] mean of k k^T over all tokens, in float64; zeros without texts.
        near: [I, M] the keys most like those to change.
    """

    moment: Tensor
    near: Tensor


def read_in(model: ModelAdapter, parts: Mapping[Part, Tensor], texts: Sequence[TokenBatch], near: int = 0) -> dict[Part, Kept]:
    """What components read in the texts. Cost: one forward of the texts for all of them.

    Args:
        model: the model.
        parts: component -> keys to change, [I, N].
        texts: to keep.
        near: so many tokens, those whose keys have the largest cosine to any of the keys to change, are given themselves.
    """
    totals = {p: like.new_zeros(len(like), len(like), dtype=torch.float64) for p, like in parts.items()}
    best = {p: (like.new_zeros(0, dtype=torch.float64), like.new_zeros(0, len(like), dtype=torch.float64))
            for p, like in parts.items()}
    count = 0
    for batch in texts:
        result = model.forward(batch, capture={site for part in parts for site in part.sites}, logits="none")
        every = torch.arange(batch.shape[1], device=model.device).expand(batch.shape)
        count += int(batch.mask.sum())
        for part, like in parts.items():
            rows = part.keys_in(model, result, every)[batch.mask].double()
            totals[part] += rows.T @ rows
            if near:
                alike = (rows @ like.double() / like.norm(dim=0)).amax(1) / rows.norm(dim=1).clamp_min(1e-30)
                value, held = (torch.cat(pair) for pair in zip(best[part], (alike, rows), strict=True))
                first = value.topk(min(near, len(value))).indices
                best[part] = value[first], held[first]
    return {part: Kept(total / max(count, 1), best[part][1].T) for part, total in totals.items()}


@dataclass(frozen=True)
class Candidate:
    """A component and why: mean over prompts of P and gain along the contrast."""

    part: Part
    p: float
    gain: float


def candidates(model: ModelAdapter, change: Sequence[ContrastBatch], among: str) -> list[Candidate]:
    """Components that write towards the answer in context, largest P times gain first."""
    found = [c for c in (Candidate(part, *values) for part, values in _written(model, change, among)) if c.gain > 0 and c.p > 0]
    return sorted(found, key=lambda c: -c.p * c.gain)


def _written(model: ModelAdapter, change: Sequence[ContrastBatch], among: str) -> Iterator[tuple[Part, tuple[float, float]]]:
    totals: dict[Part, Tensor] = {}
    count = 0
    for item in change:
        at, rows = item.clean.last(), torch.arange(len(item.clean.ids), device=model.device)
        sites = [s for i in range(model.info.n_layers) for s in (stream_before(i), Site("mlp_out", i))]
        result, target = model.forward(item.clean, capture=sites, logits="none"), targets_of(model, item)
        count += len(rows)
        for layer in range(model.info.n_layers):
            out: list[tuple[Part, Tensor]] = []
            if among != "mlps":
                heads = heads_in_context(model.attention(layer), result[stream_before(layer)], item.clean, at)
                out += [(Part(layer, h), y) for h, y in enumerate(heads.written)]
            if among != "heads":
                out.append((Part(layer), result[Site("mlp_out", layer)][rows, at]))
            for part, y in out:
                gain = (y.double() * target).sum(-1)
                p = gain / y.double().norm(dim=-1).clamp_min(1e-30)
                totals[part] = totals.get(part, 0) + torch.stack([p.sum(), gain.sum()])
    for part, total in totals.items():
        p, gain = (total / count).tolist()
        yield part, (p, gain)
