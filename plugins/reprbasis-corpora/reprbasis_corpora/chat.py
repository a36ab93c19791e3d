"""Corpus `chat`: dialogues as JSON lines, as they stand or answered by the model itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from reprbasis.errors import CapabilityError, DataError, near
from reprbasis.interfaces.corpus import Corpus, CorpusContext
from reprbasis.interfaces.model import Sampling
from reprbasis.interfaces.tokens import Example, Message
from reprbasis.runtime.generate import complete

from .config import ChatConfig
from .images import Images
from .reading import pick, read_text

PROMPTS = "prompts.jsonl"
"""The built-in prompt set, in this package's `data` folder."""

ROLES: Mapping[str, str] = {"system": "system", "user": "user", "human": "user",
                            "assistant": "assistant", "gpt": "assistant"}
SCHEMAS = ('write {"messages": [{"role": "user", "content": "..."}]}, '
           '{"conversations": [{"from": "human", "value": "..."}]}, {"prompt": "...", "response": "..."} '
           'or {"instruction": "...", "input": "...", "output": "..."}')


class ChatCorpus(Corpus[ChatConfig]):
    """Dialogues from a JSON-lines file or from the built-in prompt set."""

    def examples(self, *, seed: int = 0, context: CorpusContext | None = None) -> Iterator[Example]:
        """Dialogues in file order (or shuffled by `seed`); with `generate`, answered by `context.model`.

        Raises:
            DataError: the file is missing, a row cannot be used (with file and line), or no dialogue is left.
            CapabilityError: `generate` without a model.
        """
        config = self.config
        chosen = pick(self._select(self._read()), limit=config.limit, skip=config.skip, shuffle=config.shuffle,
                      seed=seed)
        if not config.generate:
            return iter(chosen)
        if context is None or context.model is None:
            raise CapabilityError("the corpus is to generate answers, but it was given no model",
                                  do="pass CorpusContext(model=...), or set generate: false")
        sampling = Sampling(config.max_new, config.temperature, config.top_p, seed)
        return complete(context.model, chosen, sampling, batch=config.batch, context=context)

    def _read(self) -> list[Example]:
        if self.config.path is None:
            name, text = PROMPTS, (files(__package__) / "data" / PROMPTS).read_text("utf-8")
        else:
            name, text = str(self.config.path), read_text(self.config.path)
        out: list[Example] = []
        seen: dict[str, str] = {}
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            folder = None if self.config.path is None else self.config.path.expanduser().parent
            example = parse(line, f"{name}:{number}", number, {**ROLES, **self.config.roles}, folder)
            if first := seen.get(example.key):
                raise DataError(f"the id '{example.key}' is already used at {first}", where=example.origin,
                                do="give every dialogue an id of its own, or none at all")
            seen[example.key] = f"{name}:{number}"
            out.append(example)
        if not out:
            raise DataError("there is no dialogue in the file", where=name, do=SCHEMAS)
        return out

    def _select(self, examples: list[Example]) -> list[Example]:
        if self.config.domains:
            known = {str(e.meta["domain"]) for e in examples if "domain" in e.meta}
            if strange := [d for d in self.config.domains if d not in known]:
                raise DataError(f"no dialogue has the domain '{strange[0]}'", where=str(self.config.path or PROMPTS),
                                do=near(strange[0], known) or "the rows have no 'domain': remove the filter")
            examples = [e for e in examples if e.meta.get("domain") in self.config.domains]
        if self.config.system is None:
            return examples
        system = Message("system", self.config.system)
        return [replace(e, messages=(system, *e.messages)) if e.messages and e.messages[0].role != "system" else e
                for e in examples]


def parse(line: str, where: str, number: int, roles: Mapping[str, str], folder: Path | None = None) -> Example:
    """Read one row; `key` is its `id`, or `row-NUMBER`; everything beside the dialogue becomes `meta`.

    Raises:
        DataError: it is not JSON, has none of the accepted forms, or a turn is unusable.
    """
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"the row is not JSON ({error.msg} at column {error.colno})", where=where,
                        do="write one JSON object on each line") from None
    if not isinstance(row, dict):
        raise DataError(f"the row is a JSON {type(row).__name__}, not an object", where=where, do=SCHEMAS)
    return dialogue(row, where, number, roles, folder)


def dialogue(row: Mapping[str, Any], where: str, number: int, roles: Mapping[str, str], folder: Path | None = None) -> Example:
    """The dialogue of a row that is already an object; see `parse`. Files of images lie in `folder`.

    Raises:
        DataError: it has none of the accepted forms, or a turn is unusable.
    """
    turns, used = _turns(row, where)
    images = Images(row, where, folder)
    messages = tuple(_message(role, content, f"{where} (turn {i})", roles, images)
                     for i, (role, content) in enumerate(turns, 1))
    images.end()
    if any(m.role == "system" for m in messages[1:]):
        raise DataError("a system message stands after another turn", where=where, do="put it first")
    if not any(m.role == "user" for m in messages):
        raise DataError("the dialogue has no user turn", where=where, do="add a turn of role 'user'")
    key = row.get("id", f"row-{number}")
    if not isinstance(key, str | int) or key == "":
        raise DataError(f"the id {key!r} is neither text nor a whole number", where=where, do="write a short text")
    meta = {k: v for k, v in row.items() if k not in {*used, "id", images.key}}
    return Example(messages=messages, key=str(key), origin=where, images=tuple(images.found), meta=meta)


def _turns(row: Mapping[str, Any], where: str) -> tuple[list[tuple[Any, Any]], set[str]]:
    """([(role, content)], keys of the row that were used)."""
    for name, role, content in (("messages", "role", "content"), ("conversations", "from", "value")):
        if name in row:
            turns = row[name]
            if not isinstance(turns, list) or not turns \
                    or not all(isinstance(t, dict) and {role, content} <= set(t) for t in turns):
                raise DataError(f"'{name}' must be a list of objects with '{role}' and '{content}'",
                                where=where, do=SCHEMAS)
            return [(t[role], t[content]) for t in turns], {name}
    for ask, extra, answer in (("prompt", None, "response"), ("instruction", "input", "output")):
        if ask in row:
            question = "\n\n".join(p for p in (row[ask], row.get(extra) if extra else None) if p) \
                if isinstance(row[ask], str) else row[ask]
            turns = [("user", question)] + ([("assistant", row[answer])] if row.get(answer) else [])
            return turns, {ask, answer} | ({extra} if extra else set())
    raise DataError(f"the row has none of the accepted forms (it has: {', '.join(row) or 'nothing'})",
                    where=where, do=SCHEMAS)


def _message(role: Any, content: Any, where: str, roles: Mapping[str, str], images: Images) -> Message:
    if not isinstance(role, str) or role not in roles:
        raise DataError(f"unknown role {role!r}", where=where,
                        do=f"{near(str(role), roles)}; or say what it means with roles: {{{role}: user}}")
    content, shown = images.read(content, where)
    if not isinstance(content, str):
        raise DataError(f"the content is a JSON {type(content).__name__}, not text", where=where, do="write the text")
    if not content.strip():
        raise DataError("the content is empty", where=where, do="fill it in or remove the turn")
    return Message(roles[role], content, shown)
