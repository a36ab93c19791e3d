"""From examples to token sequences with flags, through a Hugging Face tokenizer and its chat template.

A token is `special` when it comes from the template, in template position: control tokens, role names and the line
breaks around them. A control token that a user wrote into a message is content, and so is a system prompt that the
template adds by default. Content is found by rendering the same dialogue with placeholders, so any template will do.

An assistant message that begins with `<think>...</think>` has two contents, what is thought and what is answered. Templates
may leave out what was thought in earlier turns; the markers belong to the template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
import torch
from jinja2.exceptions import TemplateError

from ..errors import DataError
from ..interfaces.tokens import Example, Message, TokenSequence

_MARK = "\ue0d1{}\ue0d2"  # private-use characters: no template or message contains them by chance
_TEMPLATE, _CONTENT, _ASSISTANT, _THINKING = 0, 1, 2, 3


@dataclass(frozen=True)
class _Turn:
    """A message: `holes` are its contents (label, text), `around` the texts before, between and after them."""

    role: str
    around: tuple[str, ...]
    holes: tuple[tuple[int, str], ...]
    images: int = 0  # shown before the text

    def shape(self) -> _Turn:
        """The same for all messages that differ in their texts alone."""
        return replace(self, holes=tuple((label, "") for label, _ in self.holes))

    def fill(self, texts: Sequence[str]) -> str:
        """What the template is given as the message's content."""
        return self.around[0] + "".join(t + a for t, a in zip(texts, self.around[1:], strict=True))


@dataclass(frozen=True)
class _Frame:
    """The fixed text around the contents of a dialogue: `pieces[i]` stands before content i; the last piece ends it."""

    pieces: tuple[str, ...]
    kept: tuple[bool, ...]  # contents that the template shows
    default: tuple[int, int] | None = None  # character span of a default system prompt within pieces[0]


class Encoder:
    """Tokenises examples for one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer.
        thinking: tokens before and after what is thought; not looked for if the tokenizer lacks one.
        template: further variables for the chat template.
        parts: give the template each content as a list of parts, images before the text, as templates of vision models
            expect; otherwise a message with images is refused.

    Attributes:
        marks: ids of the two thinking tokens, or None.
    """

    def __init__(self, tokenizer: Any, *, thinking: tuple[str, str] | None = None,
                 template: Mapping[str, Any] | None = None, parts: bool = False) -> None:
        self.tokenizer, self.template, self.parts = tokenizer, dict(template or {}), parts
        self.marks: tuple[int, int] | None = None
        if thinking is not None and {*thinking} <= tokenizer.get_vocab().keys():
            self.marks = (tokenizer.convert_tokens_to_ids(thinking[0]), tokenizer.convert_tokens_to_ids(thinking[1]))
            begin, end = map(re.escape, thinking)
            self._thought = re.compile(rf"\s*{begin}(?P<thought>.*?)({end}(?P<answer>.*))?\Z", re.DOTALL)
        self._thinking = thinking
        self._frame = lru_cache(maxsize=256)(self._read_frame)

    def encode(self, example: Example, *, sequence: int, max_tokens: int | None) -> TokenSequence:
        """One example. Raises `DataError` when it gives no tokens or needs a chat template that is missing."""
        found = self._plain(example) if example.messages is None else self._chat(example)
        if len(found) == 0:
            raise DataError(f"example '{example.key}' gives no tokens", where=example.origin,
                            do="leave out empty examples")
        found = replace(found, sequence=sequence, key=example.key)
        return found if max_tokens is None else found.cut(max_tokens)

    def _plain(self, example: Example) -> TokenSequence:
        text, bos = example.text or "", self.tokenizer.bos_token
        add = not (bos and text.startswith(bos))
        encoded = self.tokenizer(text, add_special_tokens=add, return_special_tokens_mask=True,
                                 return_offsets_mapping=self.tokenizer.is_fast)
        special = torch.tensor(encoded["special_tokens_mask"], dtype=torch.bool)
        offsets = None
        if (spans := encoded.get("offset_mapping")) is not None:
            offsets = torch.tensor(spans, dtype=torch.long).reshape(-1, 2)
            special &= (offsets == 0).all(dim=1)  # put around the text; a control token written in it has a real span
            offsets[special] = -1
        return TokenSequence(torch.tensor(encoded["input_ids"], dtype=torch.long),
                             {"special": special, "assistant": torch.zeros_like(special)}, offsets=offsets)

    def _chat(self, example: Example) -> TokenSequence:
        if not self.tokenizer.chat_template:
            raise DataError("the tokenizer has no chat template", where=example.origin,
                            do="use plain text, or an instruct checkpoint")
        if not self.tokenizer.is_fast:
            raise DataError("this tokenizer gives no character offsets, so content and template cannot be told apart",
                            do="use a checkpoint with a tokenizer.json")
        messages = example.messages or ()
        if not messages:
            raise DataError("a dialogue has no messages", where=example.origin)
        if example.add_prompt and example.continue_last:
            raise DataError("an example cannot both continue its last message and open a new turn",
                            where=example.origin, do="set either add_prompt or continue_last")
        turns = [self._turn(m) for m in messages]
        if not self.parts and any(t.images for t in turns):
            raise DataError("this model reads no images", where=example.origin,
                            do="use a vision-language model: `reprbasis plugins` shows what is installed")
        text = self._render([(t, t.fill([text for _, text in t.holes])) for t in turns], example)
        frame = self._frame(tuple(t.shape() for t in turns), example.add_prompt, example.continue_last)
        labels = self._label(text, frame, [hole for t in turns for hole in t.holes], example)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        kind = _kinds(labels, spans)
        flags = {"special": torch.from_numpy(kind == _TEMPLATE), "assistant": torch.from_numpy(kind >= _ASSISTANT)}
        if self.marks is not None:
            flags["thinking"] = torch.from_numpy(kind == _THINKING)
        ids = torch.tensor(encoded["input_ids"], dtype=torch.long)
        return TokenSequence(ids, flags, offsets=torch.from_numpy(spans))

    def _turn(self, message: Message) -> _Turn:
        return replace(self._words(message), images=len(message.images))

    def _words(self, message: Message) -> _Turn:
        label = _ASSISTANT if message.role == "assistant" else _CONTENT
        found = self._thought.match(message.content) if self.marks and label == _ASSISTANT else None
        if found is None or self._thinking is None:
            return _Turn(message.role, ("", ""), ((label, message.content),))
        (begin, end), thought, answer = self._thinking, found["thought"].strip(), found["answer"]
        if answer is None:  # still thinking
            return _Turn(message.role, (f"{begin}\n", ""), ((_THINKING, thought),))
        answer = answer.lstrip("\n")
        if not thought:
            return _Turn(message.role, (f"{begin}\n\n{end}\n\n", ""), ((label, answer),))
        return _Turn(message.role, (f"{begin}\n", f"\n{end}\n\n", ""), ((_THINKING, thought), (label, answer)))

    def _render(self, turns: Sequence[tuple[_Turn, str]], example: Example) -> str:
        try:
            return self._apply(turns, example.add_prompt, example.continue_last)
        except (TemplateError, ValueError) as error:  # ValueError: the last message to be continued is not shown
            raise DataError(f"the chat template refuses this dialogue: {error}", where=example.origin,
                            do="check the order and names of its roles") from error

    def _apply(self, turns: Sequence[tuple[_Turn, str]], add_prompt: bool, continue_last: bool) -> str:
        messages: list[dict[str, Any]] = []
        for turn, text in turns:
            parts = [*[{"type": "image"}] * turn.images, {"type": "text", "text": text}]
            messages.append({"role": turn.role, "content": parts if self.parts else text})
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_prompt,
                                                      continue_final_message=continue_last, **self.template))

    def _read_frame(self, turns: tuple[_Turn, ...], add_prompt: bool, continue_last: bool) -> _Frame:
        pieces, kept = self._pieces(turns, add_prompt, continue_last)
        if turns[0].role == "system":
            return _Frame(pieces, kept)
        system = _Turn("system", ("", ""), ((_CONTENT, ""),))
        try:
            (head, join, *_), _ = self._pieces((system, *turns), add_prompt, continue_last)
        except TemplateError:  # templates without a system role have no default system prompt either
            return _Frame(pieces, kept)
        first = pieces[0]
        if len(first) > len(head) + len(join) and first.startswith(head) and first.endswith(join):
            return _Frame(pieces, kept, (len(head), len(first) - len(join)))
        return _Frame(pieces, kept)

    def _pieces(self, turns: Sequence[_Turn], add_prompt: bool,
                continue_last: bool) -> tuple[tuple[str, ...], tuple[bool, ...]]:
        marks = iter(map(_MARK.format, count()))
        marked = [(t, [next(marks) for _ in t.holes]) for t in turns]
        text = self._apply([(t, t.fill(own)) for t, own in marked], add_prompt, continue_last)
        pieces, kept = [], []
        for turn, own in marked:
            for (label, _), mark in zip(turn.holes, own, strict=True):
                kept.append(mark in text)
                if not kept[-1] and label == _THINKING:
                    continue
                piece, found, text = text.partition(mark)
                if not found:
                    raise DataError("the chat template leaves out or reorders messages; content cannot be found in it",
                                    do="use a template that shows every message once, in order")
                pieces.append(piece)
        return (*pieces, text), tuple(kept)

    def _label(self, text: str, frame: _Frame, holes: Sequence[tuple[int, str]],
               example: Example) -> np.ndarray[Any, np.dtype[np.int8]]:
        """Label of every character: template, content, or content of an assistant turn."""
        labels = np.zeros(len(text), dtype=np.int8)
        if frame.default:
            labels[slice(*frame.default)] = _CONTENT
        at = 0
        for index, (label, content) in enumerate(hole for hole, kept in zip(holes, frame.kept, strict=True) if kept):
            at += len(frame.pieces[index])
            following = frame.pieces[index + 1]
            end = next((at + len(c) for c in (content, content.strip()) if text.startswith(c + following, at)), None)
            if end is None:  # the template rewrote the content: it reaches to the next fixed piece
                end = len(text) - len(following) if index == len(frame.pieces) - 2 else text.find(following, at)
            if end < at or not text.startswith(frame.pieces[index], at - len(frame.pieces[index])):
                raise DataError("the chat template depends on what a message says; content cannot be found in it",
                                where=example.origin, do="use plain text for this example")
            labels[at:end] = label
            at = end
        return labels


def _kinds(labels: np.ndarray[Any, np.dtype[np.int8]],
           spans: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Kind of each token: the highest label among its characters (a token that holds any content is content)."""
    # tokenizers trim spaces from spans: let each token begin where the one before it ended
    before = np.concatenate([[0], np.maximum.accumulate(spans[:, 1])[:-1]]) if len(spans) else spans[:, 0]
    start, end = np.minimum(spans[:, 0], before), spans[:, 1]
    kinds = np.zeros(len(spans), dtype=np.int8)
    for label in (_CONTENT, _ASSISTANT, _THINKING):
        seen = np.concatenate([[0], np.cumsum(labels == label)])
        kinds[seen[end] > seen[start]] = label
    return kinds
