"""Editor `online`: a stream of edits in one weight by recursive least squares.

    g = S k / (1 + k^T S k)      W += (v - W k) g^T      S -= g (S k)^T

After every edit W is the ridge solution for all edits so far, so no edit undoes an earlier one; taking an edit back is the same
step with the opposite sign. Memory: I^2, and I + D for each key held; cost of a key: O(I^2 + I D), flat in the number of edits.

Shapes: D residual width, I width of what the component reads, N keys of one edit.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from reprbasis.errors import DataError, UserError
from reprbasis.interfaces.editor import Editor, EditPlan, EditRequest
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.runtime.basis import Basis

from .config import OnlineConfig
from .local import prior
from .parts import Part, ahead, candidates, elsewhere, place, read_in, targets_of
from .scaled import kept
from .search import Judge, search


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


class Session:
    """A stream of edits in one component of a model, with the strength of each found by forwards.

    Args:
        model: is never left changed; `plan()` says what all edits held add to it.
        part: the component.
        stream: its weight.
        texts: to keep.
        config: of the editor.
    """

    def __init__(self, model: ModelAdapter, part: Part, stream: Stream, texts: Sequence[TokenBatch],
                 config: OnlineConfig) -> None:
        self.model, self.part, self.stream, self.config = model, part, stream, config
        self.texts = texts
        self.neutral = Judge(model, (), texts, config.budget_tokens, part.layer)
        self.strength = config.strength

    @torch.no_grad()
    def edit(self, item: ContrastBatch, name: str) -> dict[str, object]:
        """From now on the item's prompts shall prefer the wrong answer. Gives numbers; the search begins at the last strength.

        Raises:
            ConflictError: see `Stream.check`.
            DataError: the edit exceeds the budget; the stream is as it was.
        """
        c = self.config
        with self.plan().applied(self.model):  # what other tokens an edit must be ahead of depends on those before it
            keys, way = keys_and_ways(self.model, self.part, item, c, self.texts)
        self.stream.check(name, keys[:1] if c.contexts else keys)
        gain = self.stream.step(keys)
        room = min(self.stream.room(key) for key in keys)
        judge, so_far = Judge(self.model, [item], layer=self.part.layer, rivals=c.rivals), self.stream.change()

        def plan_of(strength: float) -> EditPlan:
            return self.part.plan(self.model, so_far - strength * way.T @ gain)

        def margin_of(strength: float) -> float:
            with plan_of(strength).applied(self.model):
                return judge.margin()

        def kl_of(strength: float) -> float:
            with plan_of(strength).applied(self.model):
                return self.neutral.kl()

        found = search(margin_of, kl_of, margin_of(0.0), c.model_copy(update={"strength": self.strength}))
        self.stream.edit(name, keys, keys @ self.stream.weight.T - found.strength * way)
        self.strength = found.strength or self.strength
        return {"strength": found.strength, "free_key": room, **found.about}

    def forget(self, name: str) -> None:
        """Take an edit back, exactly.

        Raises:
            DataError: there is no edit of that name.
        """
        self.stream.forget(name)

    def plan(self) -> EditPlan:
        """All edits held."""
        return self.part.plan(self.model, self.stream.change())


class Online(Editor[OnlineConfig]):
    """Each batch of the request is an edit of its own, `edit-0`, `edit-1`, ...: its prompts shall prefer the wrong answer.

    The strength of each is searched with all earlier edits in place.
    """

    def edit(self, model: ModelAdapter, basis: Basis, request: EditRequest) -> EditPlan:
        """All edits in one plan; `start` gives a session instead, in which edits come and go.

        Raises:
            ConflictError: two edits ask for different outputs at one key.
            DataError: there is nothing to change, or an edit exceeds the budget.
        """
        if not request.change:
            raise DataError("there is nothing to change", do="give a request with at least one batch of prompts")
        session = self.start(model, request)
        about = {f"edit-{i}": session.edit(item, f"edit-{i}") for i, item in enumerate(request.change)}
        return EditPlan(session.plan().deltas, {"editor": self.full_name, "locality": "closed", "component": str(session.part),
                                                "edits": about, "options": self.config.model_dump(mode="json")})

    @torch.no_grad()
    def start(self, model: ModelAdapter, request: EditRequest) -> Session:
        """A session without edits yet. The request's first batch gives the scale of keys and, if none is named, the component."""
        c, first = self.config, request.change[0]
        part = Part.parse(c.component, model) if c.component else next(_supporting(model, request.change[:1]))
        texts = kept(model, request, c.keep_tokens)
        keys = part.keys(model, first.clean, place(first, c.at))[:, 0].double().T
        known = read_in(model, {part: keys}, texts, c.near)[part]
        moment = known.moment + c.near_weight * known.near @ known.near.T
        return Session(model, part, Stream(part.weight(model), prior(keys, moment, c.keep_weight, c.ridge), conflict=c.conflict),
                       texts, c)


def keys_and_ways(model: ModelAdapter, part: Part, item: ContrastBatch, config: OnlineConfig, texts: Sequence[TokenBatch]
                  ) -> tuple[Tensor, Tensor]:
    """What the part reads [N, I], and by what its output there is to change for one unit along the contrast [N, D]."""
    at = place(item, config.at)
    run = model.forward(item.clean, capture=part.sites, logits="none")
    target = ahead(model, item, abs(config.goal or 1.0)) if config.rivals == "all" else targets_of(model, item)
    keys, way = part.keys_in(model, run, at)[:, 0].double(), part.wanted(model, run, at, target)
    way = way / way.square().sum(1, keepdim=True).clamp_min(1e-30)
    if (also := elsewhere(item, config.at, texts, config.contexts)) is not None:
        there = part.keys(model, also, also.last()[:, None])[:, 0].double()
        keys, way = torch.cat([keys, there]), torch.cat([way, way[:1].expand(len(there), -1)])
    return keys, way


def _supporting(model: ModelAdapter, change: Sequence[ContrastBatch]) -> Iterator[Part]:
    found = candidates(model, change, "both")
    if not found:
        raise DataError("no component writes towards the answers", do="name the component, or use prompts that the model answers")
    yield from (c.part for c in found)
