"""From examples to token sequences with flags, through a Hugging Face tokenizer and its chat template.

A token is `special` when it comes from the template, in template position: control tokens, role names and the line
breaks around them. A control token that a user wrote into a message is content, and so is a system prompt that the
template adds by default. Content is found by rendering the same dialogue with placeholders, so any template will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jinja2.exceptions import TemplateError

from ..errors import DataError
from ..interfaces.tokens import Example, TokenSequence

_MARK = "\ue0d1{}\ue0d2"  # private-use characters: no template or message contains them by chance
_TEMPLATE, _CONTENT, _ASSISTANT = 0, 1, 2


@dataclass(frozen=True)
class _Frame:
    """The fixed text around the contents of a dialogue: `pieces[i]` stands before content i; the last piece ends it."""

    pieces: tuple[str, ...]
    default: tuple[int, int] | None = None  # character span of a default system prompt within pieces[0]


class Encoder:
    """Tokenises examples for one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
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
        text = self._render([(m.role, m.content) for m in messages], example)
        frame = self._frame(tuple(m.role for m in messages), example.add_prompt, example.continue_last)
        labels = self._label(text, frame, example)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        kind = _kinds(labels, spans)
        flags = {"special": torch.from_numpy(kind == _TEMPLATE), "assistant": torch.from_numpy(kind == _ASSISTANT)}
        ids = torch.tensor(encoded["input_ids"], dtype=torch.long)
        return TokenSequence(ids, flags, offsets=torch.from_numpy(spans))

    def _render(self, turns: Sequence[tuple[str, str]], example: Example) -> str:
        try:
            return self._apply(turns, example.add_prompt, example.continue_last)
        except TemplateError as error:
            raise DataError(f"the chat template refuses this dialogue: {error}", where=example.origin,
                            do="check the order and names of its roles") from error

    def _apply(self, turns: Sequence[tuple[str, str]], add_prompt: bool, continue_last: bool) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_prompt,
                                                      continue_final_message=continue_last))

    def _read_frame(self, roles: tuple[str, ...], add_prompt: bool, continue_last: bool) -> _Frame:
        pieces = self._pieces(roles, add_prompt, continue_last)
        if roles[0] == "system":
            return _Frame(pieces)
        try:
            head, join, *_ = self._pieces(("system", *roles), add_prompt, continue_last)
        except TemplateError:  # templates without a system role have no default system prompt either
            return _Frame(pieces)
        first = pieces[0]
        if len(first) > len(head) + len(join) and first.startswith(head) and first.endswith(join):
            return _Frame(pieces, (len(head), len(first) - len(join)))
        return _Frame(pieces)

    def _pieces(self, roles: Sequence[str], add_prompt: bool, continue_last: bool) -> tuple[str, ...]:
        marks = [_MARK.format(i) for i in range(len(roles))]
        text = self._apply(list(zip(roles, marks, strict=True)), add_prompt, continue_last)
        pieces = []
        for mark in marks:
            piece, found, text = text.partition(mark)
            if not found:
                raise DataError("the chat template leaves out or reorders messages; content cannot be found in it",
                                do="use a template that shows every message once, in order")
            pieces.append(piece)
        return (*pieces, text)

    def _label(self, text: str, frame: _Frame, example: Example) -> np.ndarray[Any, np.dtype[np.int8]]:
        """Label of every character: template, content, or content of an assistant turn."""
        labels = np.zeros(len(text), dtype=np.int8)
        if frame.default:
            labels[slice(*frame.default)] = _CONTENT
        at = 0
        messages = example.messages or ()
        for index, message in enumerate(messages):
            at += len(frame.pieces[index])
            end = next((at + len(c) for c in (message.content, message.content.strip())
                        if text.startswith(c + frame.pieces[index + 1], at)), None)
            if end is None:  # the template rewrote the content: it reaches to the next fixed piece
                following = frame.pieces[index + 1]
                end = (len(text) - len(following) if index == len(messages) - 1 else text.find(following, at))
            if end < at or not text.startswith(frame.pieces[index], at - len(frame.pieces[index])):
                raise DataError("the chat template depends on what a message says; content cannot be found in it",
                                where=example.origin, do="use plain text for this example")
            labels[at:end] = _ASSISTANT if message.role == "assistant" else _CONTENT
            at = end
        return labels


def _kinds(labels: np.ndarray[Any, np.dtype[np.int8]],
           spans: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Kind of each token: the highest label among its characters (a token that holds any content is content)."""
    # tokenizers trim spaces from spans: let each token begin where the one before it ended
    before = np.concatenate([[0], np.maximum.accumulate(spans[:, 1])[:-1]]) if len(spans) else spans[:, 0]
    start, end = np.minimum(spans[:, 0], before), spans[:, 1]
    kinds = np.zeros(len(spans), dtype=np.int8)
    for label in (_CONTENT, _ASSISTANT):
        seen = np.concatenate([[0], np.cumsum(labels == label)])
        kinds[seen[end] > seen[start]] = label
    return kinds
