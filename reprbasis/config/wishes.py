"""What a person wants a model to say otherwise: one line, or a YAML file. Imports no torch.

    the capital of France is now Lyon
    The capital of France is the city of -> Lyon
    forget that the capital of France is Paris
    forget Marie Curie

A file:

    edits:
      - {subject: France, relation: "The capital of {} is the city of", object: Lyon, old: Paris,
         paraphrases: ["The government of {} sits in its capital,"], neighbours: [Germany, Spain]}
      - {prompt: "The Eiffel Tower stands in", target: Rome, subject: Eiffel Tower}
      - {forget: "The capital of Italy is"}
    keep: [texts on which nothing shall change]
    editor: {use: NAME, option: value}
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ..errors import ConfigError, Problem, UserError
from .report import Lines, config_error, validate, where
from .strict_yaml import read_yaml

Text = Annotated[str, StringConstraints(min_length=1)]
ABOUT = ("{} is", "{} was", "{} is known for", "The name {} stands for", "Everybody who has heard of {} knows that it")
"""Prompts about a subject that is to be forgotten: the first three are fitted, the others are held out."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    subject: Text | None = None
    relation: Text | None = None
    object: Text | None = None
    prompt: Text | None = None
    target: Text | None = None
    forget: Text | None = None
    old: Text | None = None
    paraphrases: tuple[Text, ...] = ()
    neighbours: tuple[Text, ...] = ()


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    edits: tuple[_Entry, ...] = Field(min_length=1)
    keep: tuple[Text, ...] = ()
    editor: Any = None


@dataclass(frozen=True)
class Wish:
    """One prompt that shall go on otherwise.

    Args:
        prompt: where.
        target: with what; None: with anything but what the model says now.
        old: what it says now, if that is known.
        subject: what the prompt is about; it stands in the prompt.
        paraphrases: further prompts with the same answer, to measure on.
        neighbours: prompts whose answers must stay.
        where: `file:line`, or the line itself.
    """

    prompt: str
    target: str | None = None
    old: str | None = None
    subject: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    where: str = ""

    def __post_init__(self) -> None:
        if self.subject is not None and self.subject not in self.prompt:
            raise UserError(f"the subject '{self.subject}' is not in the prompt '{self.prompt}'", where=self.where,
                            do="write it as it stands in the prompt, or leave `subject` out")


@dataclass(frozen=True)
class Wishes:
    """All that is asked for.

    Args:
        wishes: in order.
        keep: texts on which nothing shall change.
        editor: what `editor:` selects, unchecked; None if the file does not say.
    """

    wishes: tuple[Wish, ...]
    keep: tuple[str, ...] = ()
    editor: Any = None
    lines: Lines = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse_conflicts(self.wishes)


def refuse_conflicts(wishes: tuple[Wish, ...], earlier: tuple[Wish, ...] = ()) -> None:
    """Each prompt may be given one target.

    Raises:
        UserError: two differ; names both.
    """
    known = {wish.prompt: wish for wish in earlier}
    for wish in wishes:
        other = known.setdefault(wish.prompt, wish)
        if other.target != wish.target:
            one, two = (w.target or "anything else" for w in (wish, other))
            raise UserError(f"the prompt '{wish.prompt}' is to go on with '{one}', but an earlier edit "
                            f"({other.where or 'of the same request'}) wants '{two}'", where=wish.where,
                            do="leave one of them out, or take the earlier edit back first")


def read(given: str) -> Wishes:
    """A file if it is one (or ends like one), else one line.

    Raises:
        UserError: the file is missing, the line is not understood, a subject is not in its prompt, or two wishes conflict.
        ConfigError: the file has another form.
    """
    if re.search(r"\.ya?ml$", given) or Path(given).is_file():
        return _read_file(Path(given))
    return Wishes(_read_line(given))


def _read_line(line: str) -> tuple[Wish, ...]:
    text = " ".join(line.split())
    if found := re.fullmatch(r"(?i:forget) that (.+) (is|are|was|were|of|in|to|by) (.+?)\.?", text):
        return (_wish(f"{_sentence(found[1])} {found[2]}", line, old=found[3]),)
    if found := re.fullmatch(r"(?i:forget) (.+?)\.?", text):
        return _about(found[1], line)
    if found := re.fullmatch(r"(.+?) ?(?:->|=>) ?(.+)", text):
        return (_wish(found[1], line, target=found[2]),)
    if found := re.fullmatch(r"(.+?) (is|are|was|were) now (.+?)\.?", text):
        return (_wish(f"{_sentence(found[1])} {found[2]}", line, target=found[3]),)
    raise UserError("it is not clear what shall change", where=line,
                    do="write 'X is now Y', 'PROMPT -> TARGET', 'forget that X is Y', 'forget X', or give a YAML file")


def _wish(prompt: str, line: str, target: str | None = None, old: str | None = None) -> Wish:
    """The subject is the last name in the prompt: words with capitals, the first word of the prompt only with others after it."""
    names = [found[0] for found in re.finditer(r"\w*[A-Z]\w*(?: \w*[A-Z]\w*)*", prompt) if found.start() or " " in found[0]]
    name = re.sub(r"^(The|A|An) ", "", names[-1]) if names else None
    return Wish(prompt, target, old, name, where=line)


def _about(subject: str, where: str, paraphrases: tuple[str, ...] = ()) -> tuple[Wish, ...]:
    prompts = [_sentence(p.format(subject)) for p in ABOUT]
    shown = prompts[0][:len(subject)]
    return tuple(Wish(p, subject=shown if shown in p else subject, where=where,
                      paraphrases=(*prompts[3:], *paraphrases) if i == 0 else ()) for i, p in enumerate(prompts[:3]))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _read_file(path: Path) -> Wishes:
    document = read_yaml(path)
    try:
        given = validate(_File, document.data, None)
    except ValidationError as error:
        raise config_error(error, document.lines) from None
    problems: list[Problem] = []
    wishes: list[Wish] = []
    for i, entry in enumerate(given.edits):
        here = where(("edits", i), document.lines) or str(path)
        try:
            wishes += _wishes(entry, here)
        except UserError as error:
            problems.append(Problem(error.what, error.where, error.do))
    if problems:
        raise ConfigError(problems)
    return Wishes(tuple(wishes), given.keep, given.editor, document.lines)


def _wishes(entry: _Entry, where: str) -> tuple[Wish, ...]:
    triple, pair = (entry.subject, entry.relation, entry.object), (entry.prompt, entry.target)
    forms = [entry.relation is not None or entry.object is not None, entry.prompt is not None or entry.target is not None,
             entry.forget is not None]
    complete = None not in triple if forms[0] else None not in pair if forms[1] else True
    if sum(forms) != 1 or not complete:
        raise UserError("an edit is either subject, relation and object, or prompt and target, or forget", where=where,
                        do='write {subject: France, relation: "The capital of {} is", object: Lyon}, '
                           '{prompt: "The capital of France is", target: Lyon} or {forget: "The capital of France is"}')
    if entry.relation is not None:
        assert entry.subject is not None
        templates = (entry.relation, *entry.paraphrases)
        if missing := [t for t in templates if "{}" not in t]:
            raise UserError(f"'{missing[0]}' has no place for the subject", where=where, do="write {} where the subject stands")
        prompt, *others = (t.replace("{}", entry.subject) for t in templates)
        return (Wish(prompt, entry.object, entry.old, entry.subject, tuple(others),
                     tuple(entry.relation.replace("{}", n) for n in entry.neighbours), where),)
    place = entry.prompt if entry.forget is None else entry.forget
    assert place is not None
    return (Wish(place, entry.target, entry.old, entry.subject, entry.paraphrases, entry.neighbours, where),)
