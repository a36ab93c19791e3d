"""How well does a model do a task, before anything is built on it?

Shapes: B batch rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..interfaces.model import ModelAdapter
from ..interfaces.task import ContrastPair, Split, Task
from ..interfaces.tokens import Example, TokenBatch
from ..kits.intervals import Estimate, mean
from .batches import batches, best_of, last_logits

MEASURES = {
    "choice": "the answer is likelier than the wrong answer (chance 1/2)",
    "top1": "the answer is the likeliest token",
    "logit_diff": "logit of the answer minus logit of the wrong answer, clean prompt",
    "choice_corrupt": "choice after the corrupted prompt (if it is mirrored, each one is a mistake)",
    "logit_diff_corrupt": "logit_diff after the corrupted prompt",
    "kept_choice": "pairs that keep='choice' keeps (both sides right, where the corrupted one has a right answer)",
    "kept_top1": "pairs that keep='top1' keeps",
    "shuffled_choice": "control: choice with the answers of another pair at random",
    "shuffled_top1": "control: top1 with the answers of another pair",
    "shuffled_logit_diff": "control: logit_diff with the answers of another pair",
}
"""Measure -> what it is."""
BY_CASE = ("choice", "top1", "logit_diff", "kept_choice")


@dataclass(frozen=True)
class Shown:
    """One prompt with the model's likeliest tokens and their probabilities."""

    prompt: str
    answer: str
    wrong: str
    top: Sequence[tuple[str, float]]
    correct: bool


@dataclass(frozen=True)
class Trial:
    """What came out.

    Args:
        overall: measure -> estimate; see `MEASURES`. Intervals resample groups of pairs that have the same prompts.
        cases: case -> measure of `BY_CASE` -> estimate; empty if there is one case.
        examples: a few prompts, one of each case first.
    """

    overall: dict[str, Estimate]
    cases: dict[str, dict[str, Estimate]]
    examples: list[Shown]


def trial(model: ModelAdapter[Any], task: Task[Any] | Iterable[ContrastPair], *, split: Split = "validation", n: int = 100,
          batch: int = 16, seed: int = 0, examples: int = 4, top: int = 5) -> Trial:
    """Run a task's prompts through the unchanged model.

    Args:
        model, task, split, n, batch, seed: see `reprbasis.batches`; nothing is filtered.
        examples: prompts to show.
        top: likeliest tokens to show of each.

    Raises:
        DataError: the task gives no pairs, or pairs without wrong answers.
    """
    given = batches(model, task, split=split, n=n, batch=batch, seed=seed)
    if not all(pair.wrong for pair in given.pairs):
        raise DataError("the task has pairs without a wrong answer, so there is nothing to compare with",
                        do="use a task that provides contrast")
    clean, corrupt = _logits(model, given.pairs, batch)
    group = _groups(given.pairs)
    values = _values(given.pairs, clean, corrupt, group, seed)
    overall = {name: mean(x[~x.isnan()], group[~x.isnan()], seed=seed) for name, x in values.items() if not x.isnan().all()}
    names = [str(pair.meta.get("case", "")) for pair in given.pairs]
    cases = {}
    for case in sorted(set(names)) if len(set(names)) > 1 else ():
        mine = torch.tensor([name == case for name in names])
        cases[case] = {m: mean(values[m][mine], group[mine], seed=seed) for m in BY_CASE}
    first = [names.index(name) for name in dict.fromkeys(names)]
    order = [*first, *(i for i in range(given.n) if i not in first)][:examples]
    return Trial(overall, cases, [_shown(model, given.pairs[i], clean[i], bool(values["choice"][i]), top) for i in order])


def _logits(model: ModelAdapter[Any], pairs: Sequence[ContrastPair], size: int) -> tuple[Tensor, Tensor]:
    """[n, V] after the clean and after the corrupted prompts (NaN where there is none); every prompt is run once."""
    prompts = [e for pair in pairs for e in (pair.clean, pair.corrupt) if e is not None]
    unique = {_prompt(e): e for e in prompts}
    sequences = sorted(zip(unique, model.tokenize(list(unique.values())), strict=True), key=lambda item: len(item[1]))
    found: dict[Any, Tensor] = {}
    for start in range(0, len(sequences), size):
        keys, rows = zip(*sequences[start:start + size], strict=True)
        batch = TokenBatch.pad(rows, pad_id=model.pad_id).to(model.device)
        found.update(zip(keys, last_logits(model, batch).cpu(), strict=True))
    none = torch.full_like(next(iter(found.values())), torch.nan)
    return (torch.stack([found[_prompt(p.clean)] for p in pairs]),
            torch.stack([none if p.corrupt is None else found[_prompt(p.corrupt)] for p in pairs]))


def _prompt(example: Example) -> tuple[Any, ...]:
    return example.text, example.messages, tuple(i.tobytes() if hasattr(i, "tobytes") else str(i) for i in example.images)


def _values(pairs: Sequence[ContrastPair], clean: Tensor, corrupt: Tensor, group: Tensor, seed: int) -> dict[str, Tensor]:
    """Measure -> [n], NaN where it does not apply."""
    answer, wrong = _ids([p.answer for p in pairs]), _ids([p.wrong for p in pairs])
    mirrored = torch.tensor([p.mirrored and p.corrupt is not None for p in pairs])
    margin, back = (best_of(x, answer) - best_of(x, wrong) for x in (clean, corrupt))
    top, top_back = ((x.argmax(1, keepdim=True) == ids).any(1) for x, ids in ((clean, answer), (corrupt, wrong)))
    other = _others(group, seed)
    shuffled = best_of(clean, answer[other]) - best_of(clean, wrong[other])
    found = {
        "choice": margin > 0, "choice_corrupt": (back > 0).double().masked_fill(back.isnan(), torch.nan), "top1": top,
        "logit_diff": margin, "logit_diff_corrupt": back,
        "kept_choice": (margin > 0) & ((back < 0) | ~mirrored), "kept_top1": top & (top_back | ~mirrored),
        "shuffled_choice": shuffled > 0, "shuffled_top1": (clean.argmax(1, keepdim=True) == answer[other]).any(1),
        "shuffled_logit_diff": shuffled,
    }
    return {name: value.double() for name, value in found.items()}


def _others(group: Tensor, seed: int) -> Tensor:
    """[n] for each pair another one, drawn at random from those with other prompts (the pair itself if there is none)."""
    generator = torch.Generator().manual_seed(seed)
    differs = group[:, None] != group[None, :]
    draws = torch.rand(differs.shape, generator=generator).masked_fill(~differs, -1.0)
    best = draws.max(1)
    return torch.where(best.values < 0, torch.arange(len(group)), best.indices)


def _groups(pairs: Sequence[ContrastPair]) -> Tensor:
    """[n] label of the prompts of each pair, whichever way round they are."""
    known: dict[frozenset[Any], int] = {}
    sides = [frozenset(_prompt(e) for e in (p.clean, p.corrupt) if e is not None) for p in pairs]
    return torch.tensor([known.setdefault(side, len(known)) for side in sides])


def _ids(rows: Sequence[Sequence[int]]) -> Tensor:
    wide = max(map(len, rows))
    return torch.tensor([[*row, *[-1] * (wide - len(row))] for row in rows])


def _legible(model: ModelAdapter[Any], example: Example) -> str:
    """What the model reads, as text; the tokens of an image as one."""
    [sequence] = model.tokenize([example])
    image = sequence.flags.get("image", torch.zeros(len(sequence), dtype=torch.bool))
    if example.text is not None and not image.any():
        return example.text
    parts = []
    for seen, group in groupby(zip(sequence.ids.tolist(), image.tolist(), strict=True), key=lambda item: item[1]):
        ids = [i for i, _ in group]
        parts.append(f"[image: {len(ids)} tokens]" if seen else str(model.tokenizer.decode(ids)))
    return "".join(parts)


def _shown(model: ModelAdapter[Any], pair: ContrastPair, logits: Tensor, correct: bool, top: int) -> Shown:
    def text(ids: Sequence[int]) -> str:
        return " | ".join(model.tokenizer.decode([i]) for i in ids)

    found = logits.softmax(-1).topk(top)
    likeliest = [(str(model.tokenizer.decode([int(i)])), float(p)) for p, i in zip(*found, strict=True)]
    return Shown(_legible(model, pair.clean), text(pair.answer), text(pair.wrong), likeliest, correct)
