"""ROME, MEMIT and AlphaEdit: a value found by gradients from the logits down to one layer, then linear algebra.

The value is why these are no local editors: finding it differentiates through all layers above.

Shapes: B prompts of a batch, T tokens, D residual width, M MLP width, N prompts of the request.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Generic

import torch
from torch import Tensor

from reprbasis.errors import SiteError
from reprbasis.interfaces.base import C
from reprbasis.interfaces.editor import Editor, EditPlan, EditRequest
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import TokenBatch, TokenSequence
from reprbasis.kits.tuning import mlp_reads, restored
from reprbasis.kits.weights import delta_of
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .config import AlphaEditConfig, MemitConfig, RomeConfig
from .train import kl, logits_of, margins_of, other_nll, second_moment, texts_of

SUBJECT = "subject"


@dataclass(frozen=True)
class AddAt:
    """Adds [B, D] to a site at one position of each row."""

    site: Site
    value: Tensor
    at: Tensor

    def __call__(self, x: Tensor, batch: TokenBatch) -> Tensor:
        rows = torch.arange(len(x), device=x.device)
        return x.index_put((rows, self.at), self.value.to(x.dtype), accumulate=True)


def subject_at(item: ContrastBatch) -> Tensor:
    """[B] the last token of the subject, if the request names one; else of the prompt."""
    return item.roles[SUBJECT][:, -1] if SUBJECT in item.roles else item.clean.last()


class Located(Editor[C], Generic[C]):
    """What the three share. The config must be a `ValueConfig`."""

    locality: ClassVar[str] = "truncated back-propagation"

    def value(self, model: ModelAdapter, item: ContrastBatch, site: Site, *, shared: bool) -> tuple[Tensor, list[float]]:
        """[B, D] what to add at the subject so that the wrong answer is said (ROME, eq. 4), and the margins on the way.

        Args:
            model, item: what to change.
            site: where it is added.
            shared: one vector for all rows.
        """
        c, at = self.config, subject_at(item)
        there = model.forward(item.clean, capture=[site], stop_at=site, logits="none")[site]
        size = there[torch.arange(len(at), device=at.device), at].float().norm(dim=-1, keepdim=True)
        size = size.mean(0, keepdim=True) if shared else size
        delta = torch.zeros(len(size), there.shape[-1], device=there.device, requires_grad=True)
        essence = self._essence(model, item)
        before = None if essence is None else logits_of(model, essence[0], grad=False).log_softmax(-1)
        optimiser, margins = torch.optim.Adam([delta], lr=c.lr), []
        for _ in range(c.steps):
            def added(where: Tensor, rows: Tensor) -> AddAt:
                return AddAt(site, delta[rows] if len(delta) > 1 else delta.expand(len(rows), -1), where)

            everyone = torch.arange(len(at), device=at.device)
            logits = self._logits(model, item.clean, added(at, everyone))
            margins.append(float(margins_of(logits.detach(), item.targets).max()))
            if c.goal is not None and margins[-1] <= c.goal:
                break
            loss = other_nll(logits, item.targets).mean() + c.decay * (delta / size).square().sum(1).mean()
            if essence is not None and before is not None:
                now = self._logits(model, essence[0], added(essence[1], essence[2])).log_softmax(-1)
                loss = loss + c.kl_weight * kl(before, now)
            [delta.grad] = torch.autograd.grad(loss, [delta])
            optimiser.step()
            with torch.no_grad():
                delta.mul_((c.clamp * size / delta.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1))
        return delta.detach().expand(len(at), -1), margins

    def _logits(self, model: ModelAdapter, batch: TokenBatch, edit: AddAt) -> Tensor:
        logits = model.forward(batch, edits=[edit], grad=True, logits="last").logits
        assert logits is not None
        return logits[:, 0].float()

    def _essence(self, model: ModelAdapter, item: ContrastBatch) -> tuple[TokenBatch, Tensor, Tensor] | None:
        """`SUBJECT is a` for the different subjects of a batch: tokens, last position of the subject, row of each."""
        if SUBJECT not in item.roles or not self.config.kl_weight:
            return None
        found: dict[tuple[int, ...], int] = {}
        for row, where in enumerate(item.roles[SUBJECT].tolist()):
            found.setdefault(tuple(item.clean.ids[row, where].tolist()), row)
        tail = torch.tensor(model.tokenizer.encode(" is a", add_special_tokens=False), dtype=torch.long)
        sequences = [TokenSequence(torch.cat([torch.tensor(ids), tail])) for ids in found]
        batch = TokenBatch.pad(sequences, pad_id=model.pad_id).to(model.device)
        at = torch.tensor([len(ids) - 1 for ids in found], device=model.device)
        return batch, at, torch.tensor(list(found.values()), device=model.device)

    def moment(self, model: ModelAdapter, texts: Sequence[TokenBatch], layer: int) -> Tensor:
        """[M, M] second moment of what the layer's output matrix reads in texts to keep; zeros without texts."""
        width = model.mlp(layer).W_out.shape[1]
        if not texts:
            return torch.zeros(width, width, dtype=torch.float64, device=model.device)
        return second_moment([mlp_reads(model, layer, text)[text.mask] for text in texts])

    def keys(self, model: ModelAdapter, items: Sequence[ContrastBatch], layer: int) -> Tensor:
        """[M, N] what it reads at the subjects."""
        rows = [mlp_reads(model, layer, item.clean)[torch.arange(len(item.clean.ids), device=model.device), subject_at(item)]
                for item in items]
        return torch.cat(rows).double().T

    def known_layer(self, model: ModelAdapter, layer: int) -> int:
        """The layer.

        Raises:
            SiteError: the model does not have it.
        """
        if not 0 <= layer < model.info.n_layers:
            raise SiteError(f"the model has no layer {layer}", do=f"use 0 to {model.info.n_layers - 1}")
        return layer

    def plan(self, deltas: Mapping[str, Tensor], margins: Sequence[Sequence[float]], **about: object) -> EditPlan:
        """The plan, and what must stand beside it."""
        options = self.config.model_dump(mode="json")
        return EditPlan(dict(deltas), {"editor": self.full_name, "locality": self.locality, "options": options,
                                       "margins": [list(m) for m in margins], **about})


def diagonal(moment: Tensor, keys: Tensor, share: float) -> Tensor:
    """`moment` with `share` of its mean diagonal added to the diagonal (of the keys', if it is zero)."""
    size = moment.diagonal().mean()
    size = size if bool(size > 0) else keys.square().mean()
    return moment + share * size * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)


class Rome(Located[RomeConfig]):
    """ROME: W + Lambda (C^-1 k)^T with Lambda = (v - W k) / ((C^-1 k)^T k) (Meng et al. 2022, eq. 2).

    Key and value are means over the prompts and the prompts after other beginnings (eq. 3): one edit, also of several prompts.
    """

    def edit(self, model: ModelAdapter, basis: Basis, request: EditRequest) -> EditPlan:
        """See the class."""
        c = self.config
        layer = self.known_layer(model, model.info.n_layers // 3 if c.layer is None else c.layer)
        texts = texts_of(model, request, c.keep_tokens)
        items = [*request.change, *(self._after(model, item, text) for item in request.change for text in texts[:c.contexts])]
        found = [self.value(model, item, Site("mlp_out", layer), shared=True) for item in request.change]
        value = torch.cat([delta for delta, _ in found]).double().mean(0)
        keys = self.keys(model, items, layer)
        key = keys.mean(1)
        direction = torch.linalg.solve(diagonal(self.moment(model, texts, layer), keys, c.ridge), key)
        name, delta = delta_of(model, model.mlp(layer).W_out, torch.outer(value, direction / (direction @ key)))
        return self.plan({name: delta}, [margins for _, margins in found], layer=layer, keys=keys.shape[1])

    @staticmethod
    def _after(model: ModelAdapter, item: ContrastBatch, text: TokenBatch, most: int = 8) -> ContrastBatch:
        """The prompts after the first tokens of a text."""
        start = text.ids[0, :min(most, int(text.mask[0].sum()))].cpu()
        batch = TokenBatch.pad([TokenSequence(torch.cat([start, row.cpu()])) for row in item.clean.ids], pad_id=model.pad_id)
        return replace(item, clean=batch.to(model.device), corrupt=None, roles={k: v + len(start) for k, v in item.roles.items()})


class Spread(Located[C]):
    """Values for the stream above the highest layer, spread over the layers (Meng et al. 2023, section 4.3)."""

    @abstractmethod
    def solve(self, wanted: Tensor, keys: Tensor, moment: Tensor) -> Tensor:
        """Wanted change of the output [D, N] for keys [M, N], second moment of the keys to keep [M, M] -> change [D, M]."""

    def edit(self, model: ModelAdapter, basis: Basis, request: EditRequest) -> EditPlan:
        """See the class."""
        c, middle = self.config, model.info.n_layers // 3
        usual = range(max(0, middle - 2), min(model.info.n_layers, middle + 3))
        layers = [self.known_layer(model, i) for i in (usual if c.layers is None else c.layers)]
        texts, top = texts_of(model, request, c.keep_tokens), Site("resid", layers[-1])
        found = [self.value(model, item, top, shared=False) for item in request.change]
        aims = [self._stream(model, item, top) + delta for item, (delta, _) in zip(request.change, found, strict=True)]
        deltas: dict[str, Tensor] = {}
        names = [delta_of(model, model.mlp(i).W_out, torch.zeros(()))[0] for i in layers]
        with restored(model, names) as (weights, _):
            for i, layer in enumerate(layers):
                now = [self._stream(model, item, top) for item in request.change]
                left = torch.cat([aim - x for aim, x in zip(aims, now, strict=True)]).double().T / (len(layers) - i)
                change = self.solve(left, self.keys(model, request.change, layer), self.moment(model, texts, layer))
                name, delta = delta_of(model, model.mlp(layer).W_out, change)
                deltas[name] = delta
                weights[name].add_(delta)
        return self.plan(deltas, [margins for _, margins in found], layers=layers)

    @staticmethod
    def _stream(model: ModelAdapter, item: ContrastBatch, site: Site) -> Tensor:
        x = model.forward(item.clean, capture=[site], stop_at=site, logits="none")[site]
        return x[torch.arange(len(x), device=x.device), subject_at(item)].float()


class Memit(Spread[MemitConfig]):
    """MEMIT: R K^T (lambda C + K K^T)^-1 in each layer (Meng et al. 2023, eq. 14)."""

    def solve(self, wanted: Tensor, keys: Tensor, moment: Tensor) -> Tensor:
        c = self.config
        return torch.linalg.solve(c.keep_weight * diagonal(moment, keys, c.ridge) + keys @ keys.T, keys @ wanted.T).T


class AlphaEdit(Spread[AlphaEditConfig]):
    """AlphaEdit: R K^T P (K K^T P + I)^-1, P onto the null space of the keys to keep (Fang et al. 2025, eq. 12; one edit)."""

    def solve(self, wanted: Tensor, keys: Tensor, moment: Tensor) -> Tensor:
        size, basis = torch.linalg.eigh(moment)
        free = basis[:, size.cumsum(0) <= self.config.share * size.sum()]
        inside = free.T @ keys
        weight = self.config.ridge * keys.square().mean() * len(keys)
        eye = torch.eye(inside.shape[1], dtype=keys.dtype, device=keys.device)
        return wanted @ torch.linalg.solve(inside.T @ inside + weight * eye, inside.T) @ free.T
