"""How far to go: a forward-only search for the strength of an edit.

Shapes: B prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from reprbasis.errors import CapabilityError, DataError
from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.model import ForwardResult, ModelAdapter, Start
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import TokenBatch, TokenSequence
from reprbasis.kits.components import logits_of, stream_before
from reprbasis.runtime.batches import best_of
from reprbasis.runtime.last import LastToken
from reprbasis.sites import Site

from .config import SearchConfig

_NEAR = 0.05
"""The goal is met to within this share of the way to it."""
_AGAIN = 3
"""Times that a search by the last token alone is set right by whole forwards, at most."""
_ROWS = 32
"""Tokens whose logits exist at a time."""
_TOGETHER = 384
"""Tokens of a batch of texts, with the padding."""
_SPARE = 64
"""Padding that costs less than a batch more."""


@dataclass(frozen=True)
class Trial:
    """A strength, and the mean logit difference of the prompts to change."""

    strength: float
    margin: float


def margins(logits: Tensor, targets: Targets, rivals: str = "answers") -> Tensor:
    """[B] best answer's logit minus the best wrong answer's (without any: minus the log of the sum), from [B, V].

    With rivals `all` every token but the wrong answers counts as an answer.

    Raises:
        DataError: there are no answers.
    """
    if targets.answer is None:
        raise DataError("an edit needs answers", do="give batches whose targets name the answer to change")
    if rivals == "all" and targets.wrong is not None:
        there = targets.wrong.where(targets.wrong >= 0, targets.wrong[:, :1])
        return logits.scatter(1, there, -torch.inf).amax(1) - best_of(logits, targets.wrong)
    return best_of(logits, targets.answer) - (logits.logsumexp(-1) if targets.wrong is None else best_of(logits, targets.wrong))


def merged(change: Sequence[ContrastBatch], rows: int = 32) -> list[tuple[ContrastBatch, list[int]]]:
    """The same prompts in few large batches, padded on the right, without roles: a forward of one row costs nearly that of many.

    Batches that hold more than tokens (images) stay as they are.

    Returns:
        The batches, and from which of those given each row comes.
    """
    out = [(item, [i] * len(item.clean.ids)) for i, item in enumerate(change) if item.clean.extra]
    for mirrored in (False, True):
        chosen = [i for i, item in enumerate(change) if not item.clean.extra and (item.corrupt is not None) == mirrored]
        items = [change[i] for i in chosen]
        origins = [i for i in chosen for _ in change[i].clean.ids]
        clean = [s for item in items for s in _sequences(item.clean)]
        corrupt = [s for item in items for s in _sequences(item.corrupt)]
        answer, wrong = (_stacked([getattr(item.targets, name) for item in items]) for name in ("answer", "wrong"))
        for i in range(0, len(clean), rows):
            part = slice(i, i + rows)
            targets = Targets(*(None if t is None else t[part] for t in (answer, wrong)))
            device = items[0].clean.ids.device
            out.append((ContrastBatch(TokenBatch.pad(clean[part]).to(device),
                                      TokenBatch.pad(corrupt[part]).to(device) if mirrored else None, targets), origins[part]))
    return out


def _sequences(batch: TokenBatch | None) -> list[TokenSequence]:
    if batch is None:
        return []
    return [TokenSequence(batch.ids[i, mask].cpu(), {name: flag[i, mask].cpu() for name, flag in batch.flags.items()},
                          int(batch.sequences[i, mask][0])) for i, mask in enumerate(batch.mask)]


def _stacked(given: Sequence[Tensor | None]) -> Tensor | None:
    """[N, A] rows of token ids, padded with -1."""
    there = [t for t in given if t is not None]
    if not there or len(there) < len(given):
        return None
    wide = max(t.shape[1] for t in there)
    return torch.cat([torch.nn.functional.pad(t, (0, wide - t.shape[1]), value=-1) for t in there])


@dataclass(frozen=True)
class Prompts:
    """A batch of the prompts to change.

    Args:
        item: the prompts.
        origins: from which of the batches given (indices) each row comes.
        last: their last tokens; None where `LastToken` refuses.
        start: where forwards begin; None: with the embedding.
    """

    item: ContrastBatch
    origins: Sequence[int]
    last: LastToken | None = None
    start: Start | None = None

    def take(self, rows: Sequence[int]) -> Prompts:
        """These rows."""
        if list(rows) == list(range(len(self.origins))):
            return self
        index = torch.tensor(rows, device=self.item.clean.ids.device)
        at = slice(rows[0], rows[-1] + 1) if list(rows) == list(range(rows[0], rows[-1] + 1)) else index
        return Prompts(self.item.take(index), [self.origins[i] for i in rows], None if self.last is None else self.last.take(at),
                       None if self.start is None else Start(self.start.site, self.start.value[at]))


class Judge:
    """Measures a plan by forward passes.

    Args:
        model: the model, as it is without the plan.
        change: the prompts to change.
        texts: to keep.
        tokens: about so many of the texts are measured.
        layer: the first layer that a plan changes; forwards begin there, at streams that are kept. None: `begin` tells it; until
            then margins can be asked for, from the embedding on.
        groups: prompts (indices of `change`) that are measured apart; None: all together.
        rivals: see `margins`.
        doubled: rows of tokens said twice, of one length.

    Attributes:
        spare: prompts whose likeliest next token should stay, to be set before `begin`.
        prompts: how many prompts there are to change.
        texts, others: rows of the texts that are measured (the last are those said twice, if any), and those that are not.
    """

    def __init__(self, model: ModelAdapter, change: Sequence[ContrastBatch], texts: Sequence[TokenBatch] = (), tokens: int = 1,
                 layer: int | None = 0, groups: Sequence[Sequence[int]] | None = None, rivals: str = "answers",
                 doubled: TokenBatch | None = None) -> None:
        self.model, self.layer, self.rivals = model, layer or 0, rivals
        self.texts, self.others = some(texts, tokens)
        self.doubled = doubled
        if doubled is not None:
            self.texts.append(doubled)
        self._groups = [list(range(len(change)))] if groups is None else [list(chosen) for chosen in groups]
        order = [i for chosen in self._groups for i in chosen]
        self._merged = [Prompts(item, [order[i] for i in origins]) for item, origins in merged([change[i] for i in order])]
        self.prompts = sum(len(part.origins) for part in self._merged)
        self.spare: Sequence[TokenBatch] = ()
        self._read: list[ForwardResult] = []
        if layer is not None:
            self.begin(layer)

    def begin(self, layer: int) -> None:
        """Keep the streams of the unedited model before this layer, from what has been read of it or by further forwards."""
        self.layer = layer
        self.change = [replace(part, start=self._start(part.item.clean, part.last)) for part in self.change]
        self._parts = [[part.take(rows) for part in self.change
                        if (rows := [r for r, i in enumerate(part.origins) if i in group])]
                       for group in self._groups]
        if layer and self._read and (site := stream_before(layer)) in self._read[0].sites:
            self._text_starts = [None if r.batch.extra else Start(site, r[site]) for r in self._read]
        else:
            self._text_starts = [self._start(batch) for batch in self.texts]
        self._before = [r[self._end][r.batch.mask] for r in self._read] or [
            self._final(batch, start) for batch, start in zip(self.texts, self._text_starts, strict=True)]
        self._spare_starts = [self._start(batch) for batch in self.spare]
        self._tops = self._likeliest()
        self._fresh = 0.0 if self.doubled is None else self._loss(self._before[-1])

    @cached_property
    def change(self) -> list[Prompts]:
        """All prompts, in few batches, their last tokens from the layer on that is known at the first call."""
        found: list[Prompts] = []
        for part in self._merged:
            known = any(other.last is not None for other in found)
            found.append(replace(part, last=self._last(part.item.clean, check=not known)))
        return found

    def _last(self, batch: TokenBatch, *, check: bool) -> LastToken | None:
        try:
            return LastToken(self.model, batch, self.layer, check=check)
        except CapabilityError:
            return None

    def streams(self, layers: Sequence[int]) -> list[dict[int, Tensor]]:
        """Of each batch of prompts: layer -> [B, T, D] the stream before it."""
        sites = {n: stream_before(n) for n in layers}
        end, found = stream_before(max(layers)), []
        for part in self.change:
            if part.last is None:
                run = self.model.forward(part.item.clean, capture=sites.values(), stop_at=end, logits="none")
                found.append({n: run[site] for n, site in sites.items()})
            else:
                found.append({n: part.last.streams[n] for n in layers})
        return found

    def read(self, sites: Iterable[Site]) -> list[ForwardResult]:
        """Streams of the texts at these sites, by one forward; `begin` at one of them needs no other."""
        self._read = [self.model.forward(batch, capture=[*sites, self._end], stop_at=self._end, logits="none")
                      for batch in self.texts]
        return self._read

    @property
    def _end(self) -> Site:
        return Site("resid", self.model.info.n_layers - 1)

    def _start(self, batch: TokenBatch, last: LastToken | None = None) -> Start | None:
        if not self.layer or batch.extra:  # images may join the stream later
            return None
        site = stream_before(self.layer)
        return Start(site, self.model.forward(batch, capture=[site], stop_at=site, logits="none")[site] if last is None else
                     last.streams[self.layer])

    def margin(self, group: int | None = None, *, quick: bool = False) -> float:
        """Mean over prompts of the best answer's logit minus the best wrong answer's (without any: its log-probability).

        Args:
            group: of these prompts alone.
            quick: only the last token is run, at 1/T of the cost: what a plan does at earlier tokens is left out. Where the
                model or the plan does not allow it, it is a forward all the same.
        """
        found = []
        for part in self.change if group is None else self._parts[group]:
            if quick and part.last is not None and not self.model.standing:
                found.append(margins_at(part.last, part.last.final(first=self.layer), part.item.targets, self.rivals)[0])
                continue
            logits = self.model.forward(part.item.clean, start=part.start, logits="last").logits
            assert logits is not None
            found.append(margins(logits[:, 0].float(), part.item.targets, self.rivals))
        return float(torch.cat(found).mean())

    def kl(self) -> float:
        """Mean over tokens of KL(before || now); 0 without texts. Logits exist of a few tokens at a time."""
        total, count, out = 0.0, 0, self.model.unembedding()
        texts = len(self.texts) - (self.doubled is not None)
        for batch, start, before in list(zip(self.texts, self._text_starts, self._before, strict=True))[:texts]:
            for was, now in zip(before.split(_ROWS), self._final(batch, start).split(_ROWS), strict=True):
                a, b = logits_of(out, torch.cat([was, now])).float().log_softmax(-1).chunk(2)
                b -= a
                total -= float(a.exp_().flatten() @ b.flatten())
                count += len(a)
        return total / max(count, 1)

    def rise(self) -> float:
        """How much more the second halves of what is said twice cost now, in nats a token; 0 if there is none."""
        return 0.0 if self.doubled is None else self._loss(self._final(self.doubled, self._text_starts[-1])) - self._fresh

    def changed(self) -> float:
        """Share of the prompts to spare after which another token is the likeliest now; 0 without any."""
        return float((self._likeliest() != self._tops).double().mean()) if len(self._tops) else 0.0

    def _likeliest(self) -> Tensor:
        tops = [torch.empty(0, dtype=torch.long, device=self.model.device)]
        for batch, start in zip(self.spare, self._spare_starts, strict=True):
            logits = self.model.forward(batch, start=start, logits="last").logits
            assert logits is not None
            tops.append(logits[:, 0].argmax(1))
        return torch.cat(tops)

    def _loss(self, x: Tensor) -> float:
        """Mean over the second halves but their first tokens, from the last streams [tokens, D]."""
        assert self.doubled is not None
        ids = self.doubled.ids
        half = ids.shape[1] // 2
        seen, told = x.view(*ids.shape, -1)[:, half:-1].flatten(0, 1), ids[:, half + 1:].flatten()
        parts = zip(seen.split(_ROWS), told.split(_ROWS), strict=True)
        return sum(float(cross_entropy(logits_of(self.model.unembedding(), here).float(), token, reduction="sum"))
                   for here, token in parts) / len(told)

    def _final(self, batch: TokenBatch, start: Start | None) -> Tensor:
        """[tokens, D] the last stream."""
        end = self._end
        return self.model.forward(batch, start=start, capture=[end], stop_at=end, logits="none")[end][batch.mask]


@torch.no_grad()
def margins_at(last: LastToken, x: Tensor, targets: Targets, rivals: str = "answers") -> Tensor:
    """[K, B] `margins` of final streams [K, B, D]; with wrong answers only the logits asked about are formed."""
    if targets.answer is None or targets.wrong is None or rivals == "all":
        return torch.stack([margins(last.logits_of(row).float(), targets, rivals) for row in x])
    out = last.model.unembedding()
    normed = out.norm(x).float()

    def best(ids: Tensor) -> Tensor:
        logits = torch.einsum("kbd,bad->kba", normed, out.weight[ids.clamp_min(0)].float())
        logits = logits if out.bias is None else logits + out.bias[ids.clamp_min(0)]
        return logits.masked_fill(ids < 0, -torch.inf).amax(-1)

    return best(targets.answer) - best(targets.wrong)


@dataclass(frozen=True)
class Found:
    """What the search settled on.

    Args:
        strength: 0 if the goal is met without an edit.
        about: numbers to say of it.
    """

    strength: float
    about: dict[str, object]


@dataclass(frozen=True)
class Limit:
    """What else an edit may cost.

    Args:
        cost: of a strength.
        most: of it.
        option: that says so.
        told: what it does to the model, with a place for the cost.
    """

    cost: Callable[[float], float]
    most: float
    option: str
    told: str


def search(margin_of: Callable[[float], float], kl_of: Callable[[float], float], start: float, config: SearchConfig,
           quick: Callable[[float], float] | None = None, further: Mapping[str, Limit] | None = None) -> Found:
    """The smallest strength tried that meets the goal; if that exceeds a budget, about the largest within all of them.

    Args:
        margin_of: strength -> mean logit difference of the prompts to change.
        kl_of: strength -> KL divergence on the texts to keep; asked once where the first answer is within the budget.
        start: logit difference without the edit.
        config: goal, first strength, budgets, tries.
        quick: a cheap stand-in for `margin_of`; it finds strengths, `margin_of` sets it right.
        further: other limits, by name.

    Raises:
        DataError: no strength stays within the budgets.
    """
    goal, strength, trials = config.goal, config.strength, list[Trial]()
    if goal is not None and start <= goal:
        return Found(0.0, {"margin_before": start, "margin": start, "reached": True, "trials": []})
    near = 0.0 if goal is None else _NEAR * (start - goal)
    if goal is None:
        trials = [Trial(strength, margin_of(strength))]
    aim = goal
    for _ in range(0 if goal is None else _AGAIN if quick else 1):
        assert goal is not None
        assert aim is not None
        here = _climb(quick or margin_of, start, aim, strength, config.tries, near)
        best = min((t for t in here if t.margin <= aim), key=lambda t: t.strength, default=min(here, key=lambda t: t.margin))
        trials += here if quick is None else [Trial(best.strength, margin_of(best.strength))]
        if quick is None or best.margin > aim or abs(trials[-1].margin - goal) <= near:
            break
        moved = max(start - trials[-1].margin, 0.25 * (start - goal))  # by whole forwards; the stand-in had said start - aim
        aim, strength = start - (start - aim) * (start - goal) / moved, best.strength
    slack = near if quick else 0.0
    best = min((t for t in trials if goal is not None and t.margin <= goal + slack), key=lambda t: t.strength,
               default=min(trials, key=lambda t: t.margin))
    kl = Limit(kl_of, config.budget, "budget", "changes the texts to keep by {:.3g} nats a token")
    limits = {"kl_keep": kl, **(further or {})}
    cost = {name: limit.cost(best.strength) for name, limit in limits.items()}
    for _ in range(config.tries):
        used = max(cost[name] / limit.most for name, limit in limits.items())
        if used <= 1:
            break
        strength = best.strength * min(0.9, 0.95 * used ** -0.5)  # divergence and loss grow with about the square
        cost, best = {name: limit.cost(strength) for name, limit in limits.items()}, Trial(strength, torch.nan)
    for name, limit in limits.items():
        if cost[name] > limit.most:
            raise DataError(f"the weakest edit tried {limit.told.format(cost[name])}",
                            do=f"raise `{limit.option}` ({limit.most:g}), lower the strength, or edit other components")
    if best.margin != best.margin:
        best = Trial(best.strength, margin_of(best.strength))
        trials.append(best)
    return Found(best.strength, {"margin_before": start, "margin": best.margin, **cost,
                                 "reached": goal is not None and best.margin <= goal + slack,
                                 "trials": [asdict(t) for t in trials]})


def _climb(margin_of: Callable[[float], float], start: float, goal: float, strength: float, tries: int, near: float
           ) -> list[Trial]:
    """Goes on, at most twice as far each time, until the goal is met; then comes back, where a straight line says, within bounds.

    More is not always better: what an edit does to a layer, later layers may overdo. A trial worse than a weaker one is too much.
    """
    trials: list[Trial] = []
    low, high = Trial(0.0, start), None
    aim = goal - near / 2
    for _ in range(tries):
        now = Trial(strength, margin_of(strength))
        weaker = min((t.margin for t in trials if t.strength < strength), default=start)
        trials.append(now)
        if now.margin <= goal or now.margin > weaker:
            high = now
        else:
            low = now
        if goal - near <= now.margin <= goal or (high is not None and high.strength - low.strength <= 0.02 * high.strength):
            break
        if high is None:
            strength *= min(2.0, max(1.1, (start - aim) / max(start - now.margin, 1e-9)))
        else:
            share = (low.margin - aim) / (low.margin - high.margin) if high.margin < aim < low.margin else 0.5
            strength = low.strength + min(0.9, max(0.1, share)) * (high.strength - low.strength)
    return trials


def some(texts: Sequence[TokenBatch], tokens: int) -> tuple[list[TokenBatch], list[TokenBatch]]:
    """Every so many rows, so that they have about so many tokens together, and the others; rows of one sequence each."""
    step, first = max(1, round(sum(int(b.mask.sum()) for b in texts) / tokens)), 0
    found: tuple[list[TokenBatch], list[TokenBatch]] = ([], [])
    plain: tuple[list[TokenSequence], list[TokenSequence]] = ([], [])
    for batch in texts:
        rows = torch.arange(len(batch.ids), device=batch.ids.device)
        here = (rows + first) % step == 0
        first += len(rows)
        for part, batches, sequences in zip((rows[here], rows[~here]), found, plain, strict=True):
            if batch.extra:  # images
                batches += [batch.take(part)] if len(part) else []
            else:
                sequences += _sequences(batch.take(part))
    chosen, others = ([*batches, *(b.to(texts[0].ids.device) for b in batched(sequences))]
                      for batches, sequences in zip(found, plain, strict=True))
    return chosen, others


def batched(sequences: Sequence[TokenSequence], pad_id: int = 0) -> list[TokenBatch]:
    """The sequences by length, the longest first, in batches that stay in the cache: little padding, and no long rows."""
    found, ordered = [], sorted(sequences, key=len, reverse=True)
    while ordered:
        longest = max(1, len(ordered[0]))
        n = max(1, _TOGETHER // longest)
        rest = ordered[n:]
        if sum(longest - len(s) for s in rest) < _SPARE and len(rest) * longest < _TOGETHER // 2:
            n = len(ordered)
        found.append(TokenBatch.pad(ordered[:n], pad_id=pad_id))
        ordered = ordered[n:]
    return found
