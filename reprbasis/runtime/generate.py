"""Let the model write its own answers: batched, in fixed chunks, resumable after SIGKILL with the same bytes.

1. Dialogues are taken in windows of `WINDOW` batches. A window is answered turn by turn: all dialogues that have another
   user turn are sorted by length, cut into batches, and each batch is continued together.
2. A finished batch is written atomically to `context.scratch`, under a name that digests everything that went in; when
   the work is repeated, it is read back. What is in a batch depends on the input alone, never on what is finished.
3. Under torchrun the batches of a turn are divided over the processes, which read back what the others wrote.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import CapabilityError, DataError, StorageError
from ..interfaces.corpus import CorpusContext
from ..interfaces.model import ModelAdapter, Sampling
from ..interfaces.tokens import Example, Message, TokenSequence
from . import distributed

WINDOW = 8
"""Batches that are sorted by length together. Examples come out in their original order, a window at a time."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Answer:
    """What the model wrote in one turn: the text, whether it was cut before the turn ended, and its number of tokens."""

    text: str
    cut: bool
    tokens: int


def complete(model: ModelAdapter[Any], examples: Iterable[Example], sampling: Sampling, *, batch: int = 32,
             context: CorpusContext | None = None) -> Iterator[Example]:
    """Answer every user turn of every dialogue, each with the model's earlier answers before it.

    Given assistant turns are dropped. An answer that was cut (at `sampling.max_new`) before the model ended its
    turn is left open (`continue_last`) when it is the dialogue's last: no end-of-turn token is put into the model's mouth.

    Args:
        model: must provide `generate`.
        examples: dialogues; the order decides the batches, so give them in a fixed order.
        sampling: how to generate; each turn of each dialogue draws from a stream of its own.
        batch: dialogues continued together.
        context: where finished batches are kept, and where progress goes.

    Returns:
        The dialogues in the order given, `meta["generated"]` set to the number of tokens written.

    Raises:
        CapabilityError: the model cannot generate.
        DataError: an example is plain text or has no user turn.
        StorageError: a finished batch cannot be written.
    """
    context = context or CorpusContext()
    if model.provides and "generate" not in model.provides:
        raise CapabilityError(f"the model '{model.full_name}' cannot generate",
                              do="use a model that can, or generate: false")
    total = len(examples) if isinstance(examples, Sized) else None
    source, done, written, spent, ranks = iter(examples), 0, 0, 0.0, distributed.current()
    with context.progress.task("generate answers", total, "dialogues") as task:
        while window := list(islice(source, WINDOW * batch)):
            prompts = [_prompt(e) for e in window]
            answers: list[list[_Answer]] = [[] for _ in prompts]
            turns = sum(map(_turns, prompts))
            for turn in range(max(map(_turns, prompts))):
                asked = {i: _fill(p, answers[i], upto=turn) for i, p in enumerate(prompts) if _turns(p) > turn}
                order = sorted(asked, key=lambda i: (_length(asked[i]), i))
                chunks = [order[at:at + batch] for at in range(0, len(order), batch)]
                jobs = [([asked[i] for i in chunk], [done + i for i in chunk]) for chunk in chunks]
                drawn = replace(sampling, seed=sampling.seed + 1_000_003 * turn)
                if ranks.count > 1 and context.scratch is not None:
                    for job in jobs[ranks.rank::ranks.count]:
                        _batch(model, *job, drawn, context.scratch)
                    ranks.barrier()  # now every batch of this turn can be read back
                for chunk, job in zip(chunks, jobs, strict=True):
                    begun = time.perf_counter()
                    found = _batch(model, *job, drawn, context.scratch)
                    for i, answer in zip(chunk, found, strict=True):
                        answers[i].append(answer)
                    spent += time.perf_counter() - begun
                    written += sum(a.tokens for a in found)
                    task.update(done + len(window) * sum(map(len, answers)) / turns,
                                tokens_per_second=round(written / max(spent, 1e-9)))
            yield from map(_fill, prompts, answers)
            done += len(window)


def _prompt(example: Example) -> Example:
    """The dialogue without its assistant turns."""
    if example.messages is None:
        raise DataError("plain text has no turns to answer", where=example.origin,
                        do="give a dialogue, or generate: false")
    kept = tuple(m for m in example.messages if m.role != "assistant")
    if not any(m.role == "user" for m in kept):
        raise DataError("the dialogue has no user turn to answer", where=example.origin, do="add a user turn")
    return replace(example, messages=kept, continue_last=False, add_prompt=False)


def _turns(example: Example) -> int:
    return sum(m.role == "user" for m in example.messages or ())


def _length(example: Example) -> int:
    return sum(len(m.content) for m in example.messages or ())


def _fill(prompt: Example, answers: Sequence[_Answer], upto: int | None = None) -> Example:
    """The dialogue with answers after its user turns; with `upto`, ending at that user turn, ready to be answered."""
    out: list[Message] = []
    turn = 0
    for message in prompt.messages or ():
        out.append(message)
        if message.role == "user":
            if turn == upto:
                return replace(prompt, messages=tuple(out), add_prompt=True)
            out.append(Message("assistant", answers[turn].text))
            turn += 1
    return replace(prompt, messages=tuple(out), continue_last=answers[-1].cut,
                   meta={**prompt.meta, "generated": sum(a.tokens for a in answers)})


def _batch(model: ModelAdapter[Any], prompts: Sequence[Example], indices: Sequence[int], sampling: Sampling,
           scratch: Path | None) -> list[_Answer]:
    """Answer one batch, or read it back if it was answered before."""
    if scratch is None:
        return _answer(model, prompts, indices, sampling)
    what = [model.full_name, repr(model.config), model.info.revision, asdict(sampling), indices,
            [[(m.role, m.content, m.images) for m in p.messages or ()] for p in prompts]]
    path = scratch / f"answers-{_digest(json.dumps(what))[:32]}.json"
    if path.exists():
        if (kept := _read(path)) is not None:
            return kept
        _log.warning("%s is damaged; these answers are generated again", path)
    answers = _answer(model, prompts, indices, sampling)
    _write(path, answers)
    return answers


def _answer(model: ModelAdapter[Any], prompts: Sequence[Example], indices: Sequence[int],
            sampling: Sampling) -> list[_Answer]:
    sequences = [replace(s, sequence=i) for s, i in zip(model.tokenize(prompts), indices, strict=True)]
    return [_text(model, s) for s in model.generate(sequences, sampling=sampling)]


def _text(model: ModelAdapter[Any], sequence: TokenSequence) -> _Answer:
    new = sequence.flags["generated"]
    control = sequence.flags["special"] & new if "special" in sequence.flags else new & False
    cut = not bool(control.any())
    text = str(model.tokenizer.decode(sequence.ids[new & ~control].tolist(), skip_special_tokens=True))
    if model.thinking is not None and "thinking" in sequence.flags:
        begin, end = model.thinking
        if bool(sequence.flags["thinking"][new][:1].any()) or text.lstrip().startswith(end):
            text = f"{begin}\n{text}"  # the template's prompt opened the thinking; the dialogue must say so again
    return _Answer(text.rstrip("\ufffd") if cut else text, cut, int(new.sum()))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, answers: Sequence[_Answer]) -> None:
    body = json.dumps([[a.text, a.cut, a.tokens] for a in answers])
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w") as file:
            file.write(_digest(body) + "\n" + body)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):  # the error that matters is the first one
            part.unlink(missing_ok=True)
        raise StorageError(f"generated answers cannot be kept: {error.strerror or error}", where=str(path),
                           do="free space and run again: finished batches are reused") from error


def _read(path: Path) -> list[_Answer] | None:
    """The answers of a finished batch, or None if the file is damaged."""
    digest, _, body = path.read_text().partition("\n")
    if digest != _digest(body):
        return None
    return [_Answer(*answer) for answer in json.loads(body)]
