"""Editors `ridge`, `null-space` and `component-sgd`: change what a few components write for some keys.

    W' = W + D    with  D K = V* - W K  on the keys to change, and D K_keep small

Shapes: B prompts, D residual width, I width of what a component reads, N keys.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from reprbasis.errors import DataError
from reprbasis.interfaces.editor import EditPlan, EditRequest
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.tokens import Example, TokenBatch
from reprbasis.kits.prefixes import captured
from reprbasis.runtime.basis import Basis

from .config import ComponentSGDConfig, LocalConfig, NullSpaceConfig, RidgeConfig
from .parts import Part, ahead, alone, candidates, elsewhere, hold, peers, place, read_in, readers, targets_of, with_subject
from .scaled import Direction, ScaledEditor, together
from .search import Judge

L = TypeVar("L", bound=LocalConfig)


class LocalEditor(ScaledEditor[L]):
    """Keys are what a component reads at one token of each prompt; the wanted change of its output lies along the contrast.

    Needs forward passes and linear algebra alone. What it learns, it learns about the prompts given: measure it on others.
    """

    @abstractmethod
    def solve(self, wanted: Tensor, keys: Tensor, moment: Tensor) -> Tensor:
        """Wanted change of the output [D, N] for keys [I, N], second moment of the keys to keep [I, I] -> change [D, I]."""

    def direction(self, model: ModelAdapter, basis: Basis, request: EditRequest, texts: Sequence[TokenBatch],
                  judge: Judge) -> Direction:
        """One change for each component, of the same strength."""
        c, chosen = self.config, self._chosen(model, request, judge)
        parts = [Part.parse(name, model) for name in chosen]
        sites = {s for p in parts for s in p.sites}
        runs = [captured(model, item.clean, sites) for item in request.change]
        places = [place(item, c.at) for item in request.change]
        all_others = c.rivals == "all" and c.aim == "push"
        targets = [ahead(model, item, abs(c.goal or 1.0)) if all_others else targets_of(model, item) for item in request.change]
        others = [elsewhere(item, c.at, texts, c.contexts) for item in request.change]
        also = [None if batch is None else model.forward(batch, capture=sites, logits="none") for batch in others]
        keys, ways = {}, {}  # of each part, of each batch: [I, N] and [D, N]
        for part in parts:
            keys[part] = [part.keys_in(model, run, at)[:, 0].double().T for run, at in zip(runs, places, strict=True)]
            ways[part] = [part.wanted(model, run, at, target).T for run, at, target in zip(runs, places, targets, strict=True)]
            for i, more in enumerate(also):
                if more is not None:
                    there = part.keys_in(model, more, more.batch.last()[:, None])[:, 0].double().T
                    keys[part][i] = torch.cat([keys[part][i], there], 1)
                    ways[part][i] = torch.cat([ways[part][i], ways[part][i][:, :1].expand(-1, there.shape[1])], 1)
        known = read_in(model, {part: torch.cat(held, 1) for part, held in keys.items()}, texts, c.near)
        others_like = [peers(model, item, c.at, c.peers) for item in request.change]
        hold(model, known, others_like)
        if c.neighbours is not None:
            judge.spare = [found[0] for found in others_like if found is not None]

        def fit(which: Sequence[int]) -> EditPlan:
            plans = []
            for part in parts:
                here, way = (torch.cat([held[part][i] for i in which], 1) for held in (keys, ways))
                gain = (way * (part.weight(model).double() @ here)).sum(0)
                size = gain if c.aim == "forget" else torch.ones_like(gain)
                moment = known[part].moment + c.near_weight * known[part].near @ known[part].near.T
                wanted = -size * way / way.square().sum(0).clamp_min(1e-30)
                plans.append(part.plan(model, self.solve(wanted, here, moment)))
            return together(*plans)

        first = min(part.layer for part in parts)
        return Direction(fit, {"components": chosen}, first, last=c.at == "answer", spared=c.neighbours)

    def _chosen(self, model: ModelAdapter, request: EditRequest, judge: Judge) -> dict[str, dict[str, float]]:
        """Component -> why: named by the user, or P, gain and what zeroing it takes from the logit difference."""
        if self.config.components:
            return {name: {} for name in self.config.components}
        if self.config.among == "values":
            found = readers(model, request.change, self.config.at)
            return {str(part): {"pull": pull} for part, pull in list(found.items())[:self.config.top]}
        start = judge.margin()
        out: dict[str, dict[str, float]] = {}
        for found in candidates(model, request.change, self.config.among)[:2 * self.config.top]:
            with found.part.plan(model, -found.part.weight(model)).applied(model):
                effect = start - judge.margin(quick=True)
            if effect > 0:
                out[str(found.part)] = {"p": found.p, "gain": found.gain, "ablation": effect}
            if len(out) == self.config.top:
                break
        if not out:
            raise DataError("no component writes towards the answers and supports them when it is taken away",
                            do="name the components, or use prompts that the model answers")
        return out


class Ridge(LocalEditor[RidgeConfig]):
    """D = R K^T (K K^T + w C + l I)^-1, C the second moment of the keys to keep.

    With one key and l -> 0 it is the rank-one update of ROME (Meng et al. 2022), with C in place of its fixed covariance; with
    many keys that of MEMIT (Meng et al. 2023). The wanted output lies along a known direction; no loss on the logits finds it.
    """

    def solve(self, wanted: Tensor, keys: Tensor, moment: Tensor) -> Tensor:
        """See the class. Cost: 2 I^2 (N + D) + I^3 / 3 FLOPs."""
        system = keys @ keys.T + prior(keys, moment, self.config.keep_weight, self.config.ridge)
        return torch.linalg.solve(system, keys @ wanted.T).T


class Fact(Ridge):
    """`ridge` on the value matrix that reads a fact's subject, with options set for facts: what heads take from the subject leads
    to another answer, while the subject's peers (see `peers`) and the texts to keep are read as before.

    Where that does not reach the goal, the value matrices of three layers share the change; where they do not either, the MLP of
    the last block but one writes it at the answer, which reaches other wordings least. The plan says which it was.
    """

    def edit(self, model: ModelAdapter, basis: Basis, request: EditRequest) -> EditPlan:
        """See the class. A subject that is not marked is found.

        Of several prompts each is an edit of its own strength, with those before it in force and among the texts to keep; what
        holds already is left out.

        Raises:
            DataError: see `ScaledEditor.edit`; no way stays within the budget.
        """
        each = [row for item in request.change for row in alone(item)]
        if len(each) < 2:
            return self._one(model, basis, request)
        plans: list[EditPlan] = []
        about: list[dict[str, Any]] = []
        keep, goal = list(request.keep), -torch.inf if self.config.goal is None else self.config.goal
        for item in each:
            with together(*plans).applied(model), torch.no_grad():
                met = Judge(model, [item], (), rivals=self.config.rivals).margin() <= goal
                plan = EditPlan() if met else self._one(model, basis, EditRequest([item], keep, request.options))
            plans.append(plan)
            about.append({"prompt": model.tokenizer.decode(item.clean.ids[0][item.clean.mask[0]]), "held_already": met}
                         | {k: plan.details.get(k) for k in ("components", "strength", "margin_fitted", "reached", "fell_short")})
            keep.append(Example(text=about[-1]["prompt"], key=f"edit-{len(plans)}"))
        if not any(plan.deltas for plan in plans):
            raise DataError("the prompts to change go on as they shall already", do="leave this edit out, or lower the goal")
        return replace(together(*plans), details={"editor": self.full_name, "locality": self.locality, "edits": about,
                                                  "options": self.config.model_dump(mode="json")})

    def _one(self, model: ModelAdapter, basis: Basis, request: EditRequest) -> EditPlan:
        """One prompt."""
        c, best, fault = self.config, None, None
        if c.at == "subject":
            request = replace(request, change=[with_subject(model, item) for item in request.change])
        ways: list[dict[str, Any]] = [{}]
        if not c.components:
            ways += [{"top": c.top + 2}, {"components": (f"mlp.{max(model.info.n_layers - 2, 0)}",), "at": "answer"}]
        tried: list[dict[str, object]] = []
        for way in ways:
            try:
                plan = super(Fact, type(self)(c.model_copy(update=way))).edit(model, basis, request)
            except DataError as error:
                fault = error
                tried.append({**way, "failed": error.what})
                continue
            if best is None or plan.details["margin_fitted"] < best.details["margin_fitted"]:
                best = plan
            if plan.details["reached"] or c.goal is None:
                break
            tried.append({**way, "margin_fitted": plan.details["margin_fitted"]})
        if best is None:
            assert fault is not None
            raise fault
        short = [{name: list(v) if isinstance(v, tuple) else v for name, v in way.items()} for way in tried]
        return replace(best, details={**best.details, "fell_short": short})


class NullSpace(LocalEditor[NullSpaceConfig]):
    """D = R K^T P (P K K^T P + l I)^-1 P, P the projection on the directions that the texts to keep hardly use.

    After Fang et al. 2025 (AlphaEdit), with a threshold relative to the component's own second moment. It says nothing about keys
    that the texts to keep do not span.
    """

    def solve(self, wanted: Tensor, keys: Tensor, moment: Tensor) -> Tensor:
        """See the class. Cost: about 10 I^3 FLOPs (eigenvectors)."""
        size, vectors = torch.linalg.eigh(moment)
        free = vectors[:, size.clamp_min(0).cumsum(0) <= self.config.share * size.clamp_min(0).sum()]
        if not free.shape[1]:
            raise DataError(f"every direction holds more than {self.config.share:g} of what is read in the texts to keep",
                            do="raise `share`, or edit a component that reads more than it uses (an MLP)")
        inside = free.T @ keys
        small = self.config.ridge * keys.square().mean() * torch.eye(len(inside), dtype=keys.dtype, device=keys.device)
        return torch.linalg.solve(inside @ inside.T + small, inside @ wanted.T).T @ free.T


class ComponentSGD(LocalEditor[ComponentSGDConfig]):
    """Adam on one component's change, from keys kept in memory: mean max(0, |v| - <v/|v|, D k>)^2 / 2 + w mean |D k_keep|^2.

    Only the part along the wanted change is asked for, and more of it is no fault. The graph is that of one matrix product.
    """

    locality = "component"

    def solve(self, wanted: Tensor, keys: Tensor, moment: Tensor) -> Tensor:
        """See the class. Cost: about 6 steps I D (N + I) FLOPs."""
        c = self.config
        size, length = wanted.norm(dim=0), float(keys.square().sum(0).mean().sqrt())
        unit, most = (wanted / size.clamp_min(1e-30)).float(), float(size.square().mean().sqrt()) or 1.0
        size, k, kept = (size / most).float(), (keys / length).float(), (moment / length**2).float()
        shape = (len(wanted), len(keys))
        draw = torch.Generator().manual_seed(c.seed)
        factors = [torch.zeros(shape)] if c.rank is None else [
            torch.zeros(shape[0], c.rank), torch.randn(c.rank, shape[1], generator=draw) / shape[1]**0.5]
        factors = [f.to(k.device).requires_grad_() for f in factors]
        adam = torch.optim.Adam(factors, lr=c.lr)
        with torch.enable_grad():
            for _ in range(c.steps):
                change = factors[0] if c.rank is None else factors[0] @ factors[1]
                short = (size - (unit * (change @ k)).sum(0)).clamp_min(0)
                loss = short.square().mean() / 2 + c.keep_weight * ((change @ kept) * change).sum()
                adam.zero_grad()
                loss.backward()
                adam.step()
        change = factors[0] if c.rank is None else factors[0] @ factors[1]
        return (most / length) * change.detach().double()


def prior(keys: Tensor, moment: Tensor, keep_weight: float, ridge: float) -> Tensor:
    """[I, I] what a change costs apart from the keys to change: `w C + l I`, l relative to the mean square of all keys."""
    size = torch.maximum(keys.square().mean(), moment.diagonal().mean())
    return keep_weight * moment + ridge * size * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
