"""Text and tokens on their way into a model.

Shapes: B batch rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import DataError

PAD_SEGMENT = -1


@dataclass(frozen=True)
class Message:
    """One turn of a dialogue. `role` is `system`, `user` or `assistant`; `images` are indices into `Example.images`."""

    role: str
    content: str
    images: tuple[int, ...] = ()


@dataclass(frozen=True)
class Example:
    """One item of a corpus or task: either plain `text` or a dialogue of `messages`.

    Args:
        text: plain text, tokenised as it stands.
        messages: a dialogue, put through the model's chat template.
        key: stable identifier within its corpus; splits and resumption go by it.
        origin: `file:line` for error messages.
        continue_last: leave the last assistant message open, so that a continuation carries on from it.
        add_prompt: end with the template's opening of an assistant turn (to generate an answer).
        images: raw image inputs (paths or arrays), for vision models.
        meta: anything else (domain, labels), JSON values.
    """

    text: str | None = None
    messages: tuple[Message, ...] | None = None
    key: str = ""
    origin: str | None = None
    continue_last: bool = False
    add_prompt: bool = False
    images: tuple[Any, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.text is None) == (self.messages is None):
            raise DataError("an example needs either text or messages", where=self.origin,
                            do='write {"text": "..."} or {"messages": [{"role": "user", "content": "..."}]}')


@dataclass(frozen=True)
class TokenSequence:
    """One tokenised example, unpadded.

    Args:
        ids: [T] token ids.
        flags: name -> [T] bool. Adapters set `special` (template and control tokens, in template position) and, for
            dialogues, `assistant`; `generated`, `thinking`, `image` where they apply.
        sequence: index of the example in its stream; becomes `TokenBatch.sequences`.
        key: `Example.key`.
        offsets: [T, 2] character span of each token in the (templated) text, -1 where it has none; None if unknown.
        extra: further model inputs of this sequence (pixel values), passed through to the adapter.
    """

    ids: Tensor
    flags: Mapping[str, Tensor] = field(default_factory=dict)
    sequence: int = 0
    key: str = ""
    offsets: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def cut(self, length: int) -> TokenSequence:
        """The first `length` tokens."""
        if len(self) <= length:
            return self
        return replace(self, ids=self.ids[:length], flags={k: v[:length] for k, v in self.flags.items()},
                       offsets=None if self.offsets is None else self.offsets[:length])


@dataclass(frozen=True)
class TokenBatch:
    """Rows of tokens for one forward. A row holds one sequence (padded) or several (packed).

    Packed sequences never see each other: attention is block-diagonal over `segments`, and `positions` restart at 0.

    Args:
        ids: [B, T] token ids.
        mask: [B, T] bool, True on real tokens.
        positions: [B, T] position of each token within its own sequence.
        segments: [B, T] index of the sequence within the row, `PAD_SEGMENT` (-1) on padding.
        sequences: [B, T] index of the sequence in its stream, -1 on padding.
        flags: name -> [B, T] bool; see `TokenSequence.flags`.
        extra: further model inputs.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    segments: Tensor
    sequences: Tensor
    flags: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return int(self.ids.shape[0]), int(self.ids.shape[1])

    @property
    def packed(self) -> bool:
        """Whether some row holds more than one sequence."""
        return bool((self.segments > 0).any())

    def flag(self, name: str) -> Tensor:
        """[B, T] bool: that flag, all False when the batch does not carry it."""
        found = self.flags.get(name)
        return torch.zeros_like(self.mask) if found is None else found

    def last(self) -> Tensor:
        """[B] index of the last real token of each row."""
        steps = torch.arange(self.ids.shape[1], device=self.ids.device)
        return torch.where(self.mask, steps, -1).amax(dim=1)

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device."""
        def move(d: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {k: v.to(device) for k, v in d.items()}
        return TokenBatch(self.ids.to(device), self.mask.to(device), self.positions.to(device), self.segments.to(device),
                          self.sequences.to(device), move(self.flags), move(self.extra))

    @classmethod
    def pad(cls, sequences: Sequence[TokenSequence], *, pad_id: int = 0, side: Literal["left", "right"] = "right",
            length: int | None = None) -> TokenBatch:
        """One sequence a row, padded to the longest (or to `length`)."""
        return cls._lay([[s] for s in sequences], pad_id=pad_id, side=side, length=length)

    @classmethod
    def pack(cls, sequences: Sequence[TokenSequence], *, length: int, rows: int, pad_id: int = 0) -> Iterator[TokenBatch]:
        """Greedy first-fit packing, in order, into batches of at most `rows` rows of at most `length` tokens.

        Each sequence is forwarded as if alone. Sequences longer than `length` are cut to it.

        Raises:
            DataError: a sequence carries `extra` inputs, which cannot be packed.
        """
        table: list[list[TokenSequence]] = []
        free: list[int] = []
        for item in sequences:
            if item.extra:
                raise DataError(f"sequence '{item.key}' has extra inputs ({', '.join(item.extra)}), which cannot be packed",
                                do="use one sequence a row (TokenBatch.pad)")
            item = item.cut(length)
            slot = next((i for i, room in enumerate(free) if room >= len(item)), None)
            if slot is None:
                if len(table) == rows:
                    yield cls._lay(table, pad_id=pad_id)
                    table, free = [], []
                table.append([])
                free.append(length)
                slot = len(table) - 1
            table[slot].append(item)
            free[slot] -= len(item)
        if table:
            yield cls._lay(table, pad_id=pad_id)

    @classmethod
    def _lay(cls, table: Sequence[Sequence[TokenSequence]], *, pad_id: int, side: str = "right",
             length: int | None = None) -> TokenBatch:
        wide = max((sum(map(len, row)) for row in table), default=0)
        if wide == 0:
            raise DataError("there are no tokens to batch", do="check that the examples are not empty")
        size = (len(table), max(wide, length or 0))
        ids = torch.full(size, pad_id, dtype=torch.long)
        positions, segments = torch.zeros(size, dtype=torch.long), torch.full(size, PAD_SEGMENT, dtype=torch.long)
        owners = torch.full(size, -1, dtype=torch.long)
        names = {name for row in table for s in row for name in s.flags}
        flags = {name: torch.zeros(size, dtype=torch.bool) for name in sorted(names)}
        for b, row in enumerate(table):
            at = size[1] - sum(map(len, row)) if side == "left" else 0
            for index, s in enumerate(row):
                span = slice(at, at + len(s))
                ids[b, span], positions[b, span] = s.ids, torch.arange(len(s))
                segments[b, span], owners[b, span] = index, s.sequence
                for name, value in s.flags.items():
                    flags[name][b, span] = value
                at += len(s)
        extras = [s.extra for row in table for s in row if s.extra]
        extra = {k: torch.cat([e[k] for e in extras]) for k in extras[0]} if extras else {}
        return cls(ids, segments != PAD_SEGMENT, positions, segments, owners, flags, extra)
