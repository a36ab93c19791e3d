"""From a task to batches that a model can run: `reprbasis.batches`.

Shapes: B batch rows, T tokens, A accepted answers (padded with -1), R positions of a role, V vocabulary.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import DataError
from ..interfaces.metric import Targets
from ..interfaces.model import ModelAdapter
from ..interfaces.scorer import ContrastBatch
from ..interfaces.task import ContrastPair, Split, Task
from ..interfaces.tokens import TokenBatch, TokenSequence

log = logging.getLogger(__name__)
Keep = Literal["all", "choice", "top1"]
_Locate = Callable[[ContrastPair, TokenSequence], Mapping[str, tuple[int, ...]]]
ALL_CASES = "all"


class Batches(list[ContrastBatch]):
    """Batches of a task, the pairs they were made of, and how many pairs the filter kept.

    Attributes:
        pairs: the pairs in the batches; `TokenBatch.sequences` holds indices into it.
        seen: case -> pairs that were looked at; the case is `pair.meta["case"]`, and `all` counts every pair.
        kept: case -> pairs that the filter kept.
    """

    def __init__(self, batches: Iterable[ContrastBatch] = (), *, pairs: Sequence[ContrastPair] = (),
                 seen: Mapping[str, int] | None = None, kept: Mapping[str, int] | None = None) -> None:
        super().__init__(batches)
        self.pairs = tuple(pairs)
        self.seen = dict(seen or {})
        self.kept = dict(kept or {})

    @property
    def n(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def keep_rate(self, case: str = ALL_CASES) -> float:
        """Share of the pairs of a case that the filter kept."""
        return self.kept.get(case, 0) / self.seen[case]


def batches(model: ModelAdapter[Any], task: Task[Any] | Iterable[ContrastPair], *, split: Split = "train", n: int | None = None,
            batch: int = 16, seed: int = 0, keep: Keep = "all") -> Batches:
    """Tokenise pairs of a task into batches for scorers, finders and editors.

    All rows of a batch have one layout: the same number of tokens and the same role positions. So nothing is padded, a
    position means the same in every row, and clean and corrupt align token by token. A task of several layouts (several
    templates) gives batches of each, in the order in which they fill; the last batch of a layout may be smaller.

    Each `ContrastBatch` holds, on the model's device:

    * `clean`, `corrupt`: `TokenBatch` [B, T] (`corrupt` is None for pairs without contrast). A beginning-of-sequence token that
      the tokenizer puts is in it and counted by positions; it is flagged `special`. `sequences` [B, T] is the index of the pair.
    * `targets`: `answer` [B, A] and `wrong` [B, A], padded with -1; no reference logits.
    * `roles`: name -> [B, R] long, token positions of the role (the same in every row).

    Args:
        model: gives the tokenizer, and for a filter its answers.
        task: a task component, or any iterable of pairs.
        split: `train`, `validation` or `test`; ignored for an iterable.
        n: pairs to give (after the filter); None: all that there are.
        batch: rows of a batch at most.
        seed: of the order of the pairs.
        keep: `all`; `choice`: pairs where the (unchanged) model prefers the answer to the wrong answer after `clean` and, if the
            pair is `mirrored`, the other way round after `corrupt`; `top1`: pairs where these answers are its most likely tokens.

    Returns:
        A list with `pairs`, `seen`, `kept` and `keep_rate()`.

    Raises:
        DataError: there are no pairs, the filter keeps none, two sides differ in length, or a role lies outside its prompt.
    """
    if (n is not None and n < 1) or batch < 1:
        raise DataError(f"cannot make batches of {batch} rows from {n} pairs", do="ask for at least one of each")
    source = task.pairs(model.tokenizer, split, seed) if isinstance(task, Task) else task
    seen: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    rows: list[_Row] = []
    locate = task.locate if isinstance(task, Task) else None
    for row, good in _filtered(model, _rows(model, source, locate), batch, keep):
        seen.update((ALL_CASES, row.case))
        if good:
            kept.update((ALL_CASES, row.case))
            rows.append(row)
            if len(rows) == n:
                break
    name = task.full_name if isinstance(task, Task) else "the given pairs"
    if not rows:
        raise DataError(f"none of {seen[ALL_CASES]} pairs of {name} ({split}) is kept by keep='{keep}'" if seen
                        else f"{name} gave no pairs ({split})",
                        do="use keep='all', a task the model can do, or a larger model" if seen else "check its options")
    if keep != "all":
        log.info("%s (%s): keep='%s' kept %d of %d pairs", name, split, keep, kept[ALL_CASES], seen[ALL_CASES])
    if n is not None and len(rows) < n:
        log.warning("%s (%s) gave %d of %d pairs", name, split, len(rows), n)
    numbered = [replace(row, index=i) for i, row in enumerate(rows)]
    made = [_contrast(model, group) for group in _grouped(numbered, batch)]
    return Batches(made, pairs=[row.pair for row in rows], seen=_cases(seen), kept=_cases(kept))


def last_logits(model: ModelAdapter[Any], batch: TokenBatch) -> Tensor:
    """[B, V] logits after each row of a batch, float32 or more."""
    logits = model.forward(batch, logits="last").logits
    assert logits is not None
    return logits[:, 0].float() if logits.dtype in (torch.float16, torch.bfloat16) else logits[:, 0]


def best_of(logits: Tensor, choices: Tensor) -> Tensor:
    """[B] largest of the logits [B, V] among the choices [B, A] of each row."""
    return logits.gather(1, choices.clamp_min(0)).masked_fill(choices < 0, -torch.inf).amax(1)


@dataclass(frozen=True)
class _Row:
    pair: ContrastPair
    clean: TokenSequence
    corrupt: TokenSequence | None
    index: int = 0

    @property
    def case(self) -> str:
        return str(self.pair.meta.get("case", ""))

    @property
    def layout(self) -> tuple[Any, ...]:
        return len(self.clean), self.corrupt is None, tuple(sorted((k, tuple(v)) for k, v in self.pair.roles.items()))


def _rows(model: ModelAdapter[Any], source: Iterable[ContrastPair], locate: _Locate | None) -> Iterator[_Row]:
    for pair in source:
        sides = [pair.clean] if pair.corrupt is None else [pair.clean, pair.corrupt]
        clean, *other = model.tokenize(sides)
        pair = pair if locate is None else replace(pair, roles=locate(pair, clean))
        if other and len(other[0]) != len(clean):
            raise DataError(f"pair '{pair.key}' has {len(clean)} clean and {len(other[0])} corrupted tokens",
                            do="a task must give sides of equal length; keep fillers with as many tokens as their partner")
        if outside := [name for name, where in pair.roles.items() if any(not 0 <= at < len(clean) for at in where)]:
            raise DataError(f"pair '{pair.key}' has {len(clean)} tokens; roles outside them: {', '.join(outside)}",
                            do="count positions in tokens, with what the tokenizer puts before the text")
        if not pair.answer:
            raise DataError(f"pair '{pair.key}' has no answer", do="give the token ids accepted after the clean prompt")
        yield _Row(pair, clean, other[0] if other else None)


def _filtered(model: ModelAdapter[Any], rows: Iterator[_Row], size: int, keep: Keep) -> Iterator[tuple[_Row, bool]]:
    """Every row, and whether the model's own answers pass."""
    while chunk := list(islice(rows, 4 * size)):  # enough to fill batches of several layouts
        good = dict.fromkeys(range(len(chunk)), True)
        if keep != "all":
            for group in _grouped([replace(row, index=i) for i, row in enumerate(chunk)], size):
                passed = _correct(model, _contrast(model, group), [row.pair.mirrored for row in group], keep)
                good |= dict(zip((row.index for row in group), passed.tolist(), strict=True))
        yield from ((row, good[i]) for i, row in enumerate(chunk))


def _correct(model: ModelAdapter[Any], item: ContrastBatch, mirrored: Sequence[bool], keep: Keep) -> Tensor:
    """[B] bool."""
    answer, wrong = item.targets.answer, item.targets.wrong
    assert answer is not None
    assert wrong is not None

    def right(batch: TokenBatch, answers: Tensor, others: Tensor) -> Tensor:
        logits = last_logits(model, batch)
        if keep == "top1":
            return (logits.argmax(1, keepdim=True) == answers).any(1)
        return best_of(logits, answers) > best_of(logits, others)

    good = right(item.clean, answer, wrong)
    if item.corrupt is not None and any(mirrored):
        good &= right(item.corrupt, wrong, answer) | ~torch.tensor(mirrored, device=good.device)
    return good


def _grouped(rows: Sequence[_Row], size: int) -> Iterator[list[_Row]]:
    """Rows of one layout, `size` at a time, in the order in which the groups fill; then what is left."""
    open_groups: dict[tuple[Any, ...], list[_Row]] = {}
    for row in rows:
        group = open_groups.setdefault(row.layout, [])
        group.append(row)
        if len(group) == size:
            yield open_groups.pop(row.layout)
    yield from open_groups.values()


def _contrast(model: ModelAdapter[Any], group: Sequence[_Row]) -> ContrastBatch:
    def side(sequences: Sequence[TokenSequence]) -> TokenBatch:
        numbered = [replace(s, sequence=row.index) for s, row in zip(sequences, group, strict=True)]
        return TokenBatch.pad(numbered, pad_id=model.pad_id).to(model.device)

    corrupt = [row.corrupt for row in group if row.corrupt is not None]
    targets = Targets(_padded([row.pair.answer for row in group], model.device),
                      _padded([row.pair.wrong for row in group], model.device))
    roles = {name: torch.tensor([row.pair.roles[name] for row in group], dtype=torch.long, device=model.device)
             for name in group[0].pair.roles}
    return ContrastBatch(side([row.clean for row in group]), side(corrupt) if corrupt else None, targets, roles)


def _padded(ids: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    wide = max(1, *map(len, ids))
    return torch.tensor([[*row, *[-1] * (wide - len(row))] for row in ids], dtype=torch.long, device=device)


def _cases(counts: Counter[str]) -> dict[str, int]:
    return {case: count for case, count in sorted(counts.items()) if case}
