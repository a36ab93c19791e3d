"""From wishes in words to a request for an editor, and to what is measured afterwards.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..config.wishes import Wish
from ..errors import DataError, UserError
from ..interfaces.editor import EditRequest
from ..interfaces.model import ModelAdapter
from ..interfaces.task import ContrastPair
from ..interfaces.tokens import Example, TokenBatch
from .batches import Batches, batches, last_logits


@dataclass(frozen=True)
class Asked:
    """A request and what to look at.

    Args:
        request: for an editor. Answers are what the model says now (or `old`), wrong answers what it shall say.
        probes: name -> prompts: `fitted`, and where they were given `paraphrases` and `neighbours`.
    """

    request: EditRequest
    probes: dict[str, Batches]


def asked(model: ModelAdapter[Any], wishes: Sequence[Wish], keep: Sequence[Example] = ()) -> Asked:
    """Find out what the model says now, and check that what it shall say can be said.

    A target of several tokens becomes several prompts, each with one more token of it, until the model goes on by itself. A wish
    without target asks for the runner-up: the model shall no longer prefer what it says.

    Args:
        model: unchanged, or with earlier edits in force.
        wishes: what shall change.
        keep: texts on which nothing shall change; the neighbours' prompts with the model's own answers are added.

    Raises:
        UserError: a target is no usable token after its prompt, the model says it already, or `old` is not usable.
    """
    fitted: list[ContrastPair] = []
    paraphrases: list[ContrastPair] = []
    neighbours: list[ContrastPair] = []
    for wish in wishes:
        first = _pairs(model, wish)
        fitted += first
        answer, wrong = first[0].answer, first[0].wrong
        paraphrases += [_pair(model, wish, p, answer, wrong) if wish.target is not None or wish.old is not None
                        else _pairs(model, Wish(p, where=wish.where))[0] for p in wish.paraphrases]
        for prompt in wish.neighbours:
            top = _likeliest(model, prompt, 2)
            other = wrong[0] if wrong[0] != top[0] else top[1]
            neighbours.append(ContrastPair(Example(text=prompt, key=prompt), None, (top[0],), (other,), key=prompt))
    said = [Example(text=f"{p.clean.text}{model.tokenizer.decode([p.answer[0]])}", key=p.key) for p in neighbours]
    given = {"fitted": fitted, "paraphrases": paraphrases, "neighbours": neighbours}
    probes = {name: batches(model, pairs, batch=8) for name, pairs in given.items() if pairs}
    return Asked(EditRequest(probes["fitted"], [*keep, *said]), probes)


def _likeliest(model: ModelAdapter[Any], prompt: str, n: int) -> list[int]:
    batch = TokenBatch.pad(model.tokenize([Example(text=prompt)]), pad_id=model.pad_id).to(model.device)
    found: list[int] = last_logits(model, batch)[0].topk(n).indices.tolist()
    return found


def _tokens(model: ModelAdapter[Any], wish: Wish, word: str) -> list[int]:
    """Tokens of a word after the wish's prompt.

    Raises:
        UserError: there are none, they change the prompt's own, or the tokenizer does not know them.
    """
    after = word if word[:1].isspace() or wish.prompt[-1:].isspace() else f" {word}"
    before, whole = (list(model.tokenizer(t)["input_ids"]) for t in (wish.prompt, wish.prompt + after))
    if not word.strip() or len(whole) <= len(before):
        raise UserError(f"'{word}' is no token after '{wish.prompt}'", where=wish.where, do="give a word")
    if whole[:len(before)] != before:
        raise UserError(f"'{word}' changes the tokens of the prompt '{wish.prompt}' that it is put after", where=wish.where,
                        do="end the prompt with a whole word, without a space")
    found = whole[len(before):]
    if (unknown := getattr(model.tokenizer, "unk_token_id", None)) is not None and unknown in found:
        raise UserError(f"the tokenizer has no token for '{word}'", where=wish.where, do="write it with other letters")
    return found


def _pairs(model: ModelAdapter[Any], wish: Wish) -> list[ContrastPair]:
    """The prompt, and the prompt with more and more of a target of several tokens."""
    top = _likeliest(model, wish.prompt, 3)
    now = top[0] if wish.old is None else _tokens(model, wish, wish.old)[0]
    if wish.target is None:
        return [_pair(model, wish, wish.prompt, (now,), (next(t for t in top if t != now),))]
    wanted = _tokens(model, wish, wish.target)
    pairs: list[ContrastPair] = []
    for i, token in enumerate(wanted):
        prompt = wish.prompt + model.tokenizer.decode(wanted[:i]) if i else wish.prompt
        if i:
            now = _likeliest(model, prompt, 1)[0]
        if token != now:
            pairs.append(_pair(model, wish, prompt, (now,), (token,)))
        elif i == 0:
            said = model.tokenizer.decode([now])
            if wish.old is None and len(wanted) == 1:
                raise _said_already(said, wish)
            if wish.old is not None:
                raise UserError(f"'{wish.target}' and '{wish.old}' begin with the same token '{said}'", where=wish.where,
                                do="choose a target that begins otherwise")
    if not pairs:
        raise _said_already(wish.target, wish)
    return pairs


def _said_already(said: str, wish: Wish) -> UserError:
    return UserError(f"the model says '{said}' after '{wish.prompt}' already", where=wish.where, do="leave this edit out")


def _pair(model: ModelAdapter[Any], wish: Wish, prompt: str, answer: tuple[int, ...], wrong: tuple[int, ...]) -> ContrastPair:
    roles = {}
    if wish.subject is not None and wish.subject in prompt:
        start = prompt.rindex(wish.subject)
        end = start + len(wish.subject)
        offsets = model.tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
        roles["subject"] = tuple(i for i, (a, b) in enumerate(offsets) if a < end and b > start)
        if not roles["subject"]:
            raise DataError(f"no token of '{prompt}' belongs to '{wish.subject}'", do="use a fast tokenizer (tokenizer.json)")
    meta = {"prompt": wish.prompt, "target": wish.target}
    return ContrastPair(Example(text=prompt, key=prompt), None, answer, wrong, roles, prompt, meta)
