"""Editor `online`: a stream of edits in one weight by recursive least squares.

    g = S k / (1 + k^T S k)      W += (v - W k) g^T      S -= g (S k)^T

After every edit W is the ridge solution for all edits so far, so no edit undoes an earlier one; taking an edit back is the same
step with the opposite sign. Memory: I^2, and I + D for each key held; cost of a key: O(I^2 + I D), flat in the number of edits.

Shapes: D residual width, I width of what the component reads, N keys of one edit.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from reprbasis.errors import DataError, UserError
from reprbasis.interfaces.editor import Editor, EditPlan, EditRequest
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.runtime.basis import Basis

from .config import OnlineConfig
from .local import prior
from .parts import Part, candidates, place, second_moment, targets_of
from .scaled import kept
from .search import Judge, Trial, search


class ConflictError(UserError):
    """An edit asks for another output where an earlier edit has already settled it."""


class Stream:
    """Edits of one weight [D, I], in float64.

    Args:
        weight: [D, I] as it is before the first edit.
        cost: [I, I] positive definite: `k^T cost k` is what a change of the output at k costs if nothing else is asked.
        conflict: an edit is refused if less than this share of one of its keys is free.
    """

    def __init__(self, weight: Tensor, cost: Tensor, *, conflict: float = 0.05) -> None:
        self.start = weight.detach().double().clone()
        self.weight = self.start.clone()
        self.free = torch.linalg.inv(cost.double())
        self.first_free = self.free.clone()
        self.conflict = conflict
        self.held: dict[str, tuple[Tensor, Tensor]] = {}

    def room(self, key: Tensor) -> float:
        """Share of a key [I] that no edit has used yet: 1 at first, 0 when its output is settled."""
        key = key.double()
        return float((key @ self.free @ key) / (key @ self.first_free @ key))

    def check(self, name: str, keys: Tensor) -> None:
        """Whether an edit with these keys [N, I] can be made.

        Raises:
            ConflictError: the name is taken, or an earlier edit holds a key too like one of these.
        """
        if name in self.held:
            raise ConflictError(f"there is an edit '{name}' already", do=f"forget('{name}') first, or give another name")
        for key in keys.double():
            if (room := self.room(key)) < self.conflict:
                like = {n: float((k @ key / (k.norm(dim=1) * key.norm())).abs().max()) for n, (k, _) in self.held.items()}
                nearest = max(like, key=like.__getitem__)
                raise ConflictError(f"edit '{name}' finds {room:.2%} of its key free: edit '{nearest}' settled the output there",
                                    do=f"forget('{nearest}') first, or lower `conflict` to overrule it in part")

    def step(self, keys: Tensor) -> Tensor:
        """[N, I] G such that the weight becomes `W + (V - W K) G` for keys as rows of `keys` [N, I]."""
        used = self.free @ keys.double().T
        return torch.linalg.solve(torch.eye(len(keys), dtype=used.dtype, device=used.device) + keys.double() @ used, used.T)

    def edit(self, name: str, keys: Tensor, values: Tensor) -> None:
        """Let the weight give `values` [N, D] at `keys` [N, I], as far as its cost allows.

        Raises:
            ConflictError: see `check`.
        """
        self.check(name, keys)
        keys, values = keys.double(), values.double()
        gain = self.step(keys)
        self.weight = self.weight + (values - keys @ self.weight.T).T @ gain
        self.free = _symmetric(self.free - (self.free @ keys.T) @ gain)
        self.held[name] = keys, values

    def forget(self, name: str) -> None:
        """Take an edit back: afterwards everything is as if it had never been asked.

        Raises:
            DataError: there is no edit of that name.
        """
        if name not in self.held:
            raise DataError(f"there is no edit '{name}'", do=f"the stream holds {', '.join(self.held) or 'none'}")
        keys, values = self.held.pop(name)
        used = self.free @ keys.T
        back = torch.linalg.solve(torch.eye(len(keys), dtype=used.dtype, device=used.device) - keys @ used, used.T)
        self.weight = self.weight - (values - keys @ self.weight.T).T @ back
        self.free = _symmetric(self.free + used @ back)

    def change(self) -> Tensor:
        """[D, I] what all edits held add to the weight."""
        return self.weight - self.start


def _symmetric(x: Tensor) -> Tensor:
    return (x + x.T) / 2


class Online(Editor[OnlineConfig]):
    """Each batch of the request is an edit of its own, `edit-0`, `edit-1`, ...: its prompts shall prefer the wrong answer.

    The strength of each is searched with all earlier edits in place.
    """

    def edit(self, model: ModelAdapter, basis: Basis, request: EditRequest) -> EditPlan:
        """All edits in one plan; `edits` gives the stream itself.

        Raises:
            ConflictError: two edits ask for different outputs at one key.
            DataError: there is nothing to change, or an edit exceeds the budget.
        """
        part, stream, about = self.edits(model, request)
        plan = part.plan(model, stream.change())
        return EditPlan(plan.deltas, {"editor": self.full_name, "locality": "closed", "component": str(part), "edits": about,
                                      "options": self.config.model_dump(mode="json")})

    @torch.no_grad()
    def edits(self, model: ModelAdapter, request: EditRequest) -> tuple[Part, Stream, dict[str, dict[str, object]]]:
        """The component, the stream (which can `forget` single edits and take new ones), and numbers for each edit."""
        c = self.config
        part = Part.parse(c.component, model) if c.component else next(_supporting(model, request.change[:1]))
        texts = kept(model, request, c.keep_tokens)
        moment, _ = second_moment(model, part, texts)
        first = part.keys(model, request.change[0].clean, place(request.change[0]))[:, 0].double().T
        stream = Stream(part.weight(model), prior(first, moment, c.keep_weight, c.ridge), conflict=c.conflict)
        about = {f"edit-{i}": self._next(model, part, stream, f"edit-{i}", item, Judge(model, [item], texts))
                 for i, item in enumerate(request.change)}
        return part, stream, about

    def _next(self, model: ModelAdapter, part: Part, stream: Stream, name: str, item: ContrastBatch,
              judge: Judge) -> dict[str, object]:
        keys = part.keys(model, item.clean, place(item))[:, 0].double()
        stream.check(name, keys)
        target, gain = targets_of(model, item), stream.step(keys)
        room = min(stream.room(key) for key in keys)
        so_far = stream.change()

        def plan_of(strength: float) -> EditPlan:
            return part.plan(model, so_far - strength * target.T @ gain)

        def trial(strength: float) -> Trial:
            with plan_of(strength).applied(model):
                return Trial(strength, judge.margin(), judge.kl())

        found = search(trial, trial(0.0).margin, self.config)
        stream.edit(name, keys, keys @ stream.weight.T - found.strength * target)
        return {"strength": found.strength, "free_key": room, **found.about}


def _supporting(model: ModelAdapter, change: list[ContrastBatch]) -> Iterator[Part]:
    found = candidates(model, change, "both")
    if not found:
        raise DataError("no component writes towards the answers", do="name the component, or use prompts that the model answers")
    yield from (c.part for c in found)
