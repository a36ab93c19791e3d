"""What all editors share whose plan is a direction times a strength: fit, search the strength, say why.

Shapes: D residual width.
"""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from reprbasis.errors import DataError
from reprbasis.interfaces.editor import Editor, EditPlan, EditRequest
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.kits.probes import said_twice
from reprbasis.runtime.basis import Basis

from .config import SearchConfig
from .search import Judge, Limit, batched, search

S = TypeVar("S", bound=SearchConfig)
_SEED = 977
"""Of the random tokens that are kept."""


@dataclass(frozen=True)
class Direction:
    """An edit at strength 1.

    Args:
        fit: from which batches (indices) -> the plan at strength 1. Called again for every fold, so what does not depend on the
            choice is computed before.
        details: why these components, and whatever else is to be said; JSON values.
        layer: the first layer that it changes; trials begin there.
        last: whether it acts at the last token above all, so that trials may run that token alone.
        spared: most of what the judge shall spare that may change; None: any.
    """

    fit: Callable[[Sequence[int]], EditPlan]
    details: Mapping[str, Any]
    layer: int = 0
    last: bool = False
    spared: float | None = None


class ScaledEditor(Editor[S]):
    """Finds a direction, then how far to go along it, with forward passes alone."""

    locality: ClassVar[str] = "closed"
    """`closed`: linear algebra; `component`: gradients inside one component."""

    @abstractmethod
    def direction(self, model: ModelAdapter, basis: Basis, request: EditRequest, texts: Sequence[TokenBatch],
                  judge: Judge) -> Direction:
        """The edit but for its strength. Runs without gradients unless it turns them on.

        Args:
            model, basis, request: as of `edit`.
            texts: to keep.
            judge: of the prompts and the texts; what it has read need not be read again.
        """

    @torch.no_grad()
    def edit(self, model: ModelAdapter, basis: Basis, request: EditRequest) -> EditPlan:
        """See the class.

        Raises:
            DataError: there is nothing to change, or every strength exceeds the budget.
            SiteError: a component that the model does not have.
        """
        if not request.change:
            raise DataError("there is nothing to change", do="give a request with at least one batch of prompts")
        texts = kept(model, request, self.config.keep_tokens)
        turns = folds(request.change, self.config.folds)
        n = self.config.said_twice
        doubled = TokenBatch.pad(said_twice(model, length=16, n=n, seed=_SEED)).to(model.device) if n else None
        judge = Judge(model, request.change, texts, self.config.budget_tokens, None, [left for _, left in turns] or None,
                      self.config.rivals, doubled)
        found = self.direction(model, basis, request, texts if doubled is None else [*texts, doubled], judge)
        judge.begin(found.layer)
        start = judge.margin(quick=True)
        if self.config.goal is not None and start <= self.config.goal:
            raise DataError(f"the mean logit difference of the prompts to change is {start:.3g}, the goal {self.config.goal:g}",
                            do="give prompts that the model answers as it should not, or a lower goal")
        whole = found.fit(range(len(request.change)))
        parts = [found.fit(seen) for seen, _ in turns] or [whole]
        sizes = [sum(len(request.change[i].clean.ids) for i in left) for _, left in turns] or [1]

        def margin_of(strength: float, *, quick: bool = False) -> float:
            total = 0.0
            for group, (plan, n) in enumerate(zip(parts, sizes, strict=True)):
                with scaled(plan, strength).applied(model):
                    total += n * judge.margin(group if turns else None, quick=quick)
            return total / sum(sizes)

        def cost(measure: Callable[[], float]) -> Callable[[float], float]:
            def of(strength: float) -> float:
                with scaled(whole, strength).applied(model):
                    return measure()

            return of

        further = {}
        if self.config.induction is not None:
            further["induction_rise"] = Limit(cost(judge.rise), self.config.induction, "induction",
                                              "raises the loss on tokens said twice by {:.3g} nats a token")
        if found.spared is not None:
            further["peers_changed"] = Limit(cost(judge.changed), found.spared, "neighbours",
                                             "changes what is likeliest after {:.0%} of the peers")
        quick = None if whole.books or not found.last else partial(margin_of, quick=True)
        settled = search(margin_of, cost(judge.kl), start, self.config, quick, further)
        plan, about = scaled(whole, settled.strength), dict(settled.about)
        if turns:
            about["margin_left_out"] = about["margin"]
            with plan.applied(model):
                about["margin"] = judge.margin(quick=quick is not None)
        about["margin_fitted"] = about.pop("margin")
        size = model.parameters()
        return replace(plan, details={
            "editor": self.full_name, "locality": self.locality, "options": self.config.model_dump(mode="json"),
            "strength": settled.strength, "prompts": judge.prompts, "keep_tokens": sum(int(b.mask.sum()) for b in texts),
            "relative_change": {n: float(d.norm() / size[n].norm()) for n, d in plan.deltas.items()}, **found.details, **about})


def scaled(plan: EditPlan, strength: float) -> EditPlan:
    """The same plan, so many times."""
    return EditPlan({n: strength * d for n, d in plan.deltas.items()}, plan.details,
                    [replace(b, shift=strength * b.shift) for b in plan.books])


def together(*plans: EditPlan) -> EditPlan:
    """One plan that does what all of them do."""
    deltas: dict[str, Tensor] = {}
    for plan in plans:
        for name, delta in plan.deltas.items():
            deltas[name] = deltas[name] + delta if name in deltas else delta
    return EditPlan(deltas, books=[book for plan in plans for book in plan.books])


def kept(model: ModelAdapter, request: EditRequest, tokens: int) -> list[TokenBatch]:
    """The texts to keep, cut, in batches."""
    found = [s.cut(tokens) for s in model.tokenize(list(request.keep))]
    return [batch.to(model.device) for batch in batched(found, model.pad_id)]


def folds(change: Sequence[ContrastBatch], count: int) -> list[tuple[list[int], list[int]]]:
    """(batches to fit, batches left out) for each turn; layouts stay together if there are several. Empty if it is impossible."""
    layouts: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, item in enumerate(change):
        places = sorted(int(p) for role in item.roles.values() for p in role[0])
        layouts[item.clean.ids.shape[1], *places].append(index)
    groups = list(layouts.values()) if len(layouts) > 1 else [[i] for i in range(len(change))]
    count = min(count, len(groups))
    if count < 2:
        return []
    left = [[i for group in groups[turn::count] for i in group] for turn in range(count)]
    return [([i for i in range(len(change)) if i not in out], out) for out in left]
