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
        images: image inputs for vision models: paths, data URIs (`data:image/png;base64,...`) or uint8 arrays [H, W, 3].
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
            dialogues, `assistant` (content of assistant turns); `generated`, `thinking` (the part of `assistant` that was
            thought before the answer), `image` where they apply.
        sequence: index of the example in its stream; becomes `TokenBatch.sequences`.
        key: `Example.key`.
        offsets: [T, 2] character span of each token in the (templated) text, -1 where it has none; None if unknown.
        extra: further model inputs of this sequence, any number of entries each, [n, ...]; passed through to the adapter.
            Vision adapters put in `pixel_values`, and for reports `image_grid` [images, 2], the rows and columns that the
            image's tokens form, and `thumbnails` [images, S, S, 3] of uint8.
        contents: [T] int64 that tells apart what the ids alone do not (image tokens showing different images); None: the ids.
    """

    ids: Tensor
    flags: Mapping[str, Tensor] = field(default_factory=dict)
    sequence: int = 0
    key: str = ""
    offsets: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    contents: Tensor | None = None

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def cut(self, length: int) -> TokenSequence:
        """The first `length` tokens; `extra` stays whole."""
        if len(self) <= length:
            return self
        return replace(self, ids=self.ids[:length], flags={k: v[:length] for k, v in self.flags.items()},
                       offsets=None if self.offsets is None else self.offsets[:length],
                       contents=None if self.contents is None else self.contents[:length])


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
        extra: further model inputs: the entries of all sequences one after the other, row by row.
        owners: name of an extra -> [n, 2] batch row and segment of each of its entries.
        contents: [B, T] int64, see `TokenSequence.contents`; None: the ids.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    segments: Tensor
    sequences: Tensor
    flags: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    owners: Mapping[str, Tensor] = field(default_factory=dict)
    contents: Tensor | None = None

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

    def shown(self) -> Tensor:
        """[B, T] what each token shows: two rows with equal numbers hold the same prompt, images included."""
        return self.ids if self.contents is None else self.contents

    def last(self) -> Tensor:
        """[B] index of the last real token of each row."""
        steps = torch.arange(self.ids.shape[1], device=self.ids.device)
        return torch.where(self.mask, steps, -1).amax(dim=1)

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device."""
        def move(d: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {k: v.to(device) for k, v in d.items()}
        return TokenBatch(self.ids.to(device), self.mask.to(device), self.positions.to(device), self.segments.to(device),
                          self.sequences.to(device), move(self.flags), move(self.extra), move(self.owners),
                          None if self.contents is None else self.contents.to(device))

    def take(self, rows: Tensor) -> TokenBatch:
        """The batch made of these rows, [n] indices in any order, also several times the same."""
        extra, owners = {}, {}
        for name, owner in self.owners.items():
            found = [(owner[:, 0] == row).nonzero().flatten() for row in rows.tolist()]
            kept = torch.cat(found)
            place = torch.repeat_interleave(torch.tensor([len(f) for f in found], device=kept.device))
            extra[name], owners[name] = self.extra[name][kept], torch.stack([place, owner[kept, 1]], dim=1)
        return TokenBatch(self.ids[rows], self.mask[rows], self.positions[rows], self.segments[rows], self.sequences[rows],
                          {k: v[rows] for k, v in self.flags.items()}, extra, owners,
                          None if self.contents is None else self.contents[rows])

    @classmethod
    def pad(cls, sequences: Sequence[TokenSequence], *, pad_id: int = 0, side: Literal["left", "right"] = "right",
            length: int | None = None) -> TokenBatch:
        """One sequence a row, padded to the longest (or to `length`)."""
        return cls._lay([[s] for s in sequences], pad_id=pad_id, side=side, length=length)

    @classmethod
    def pack(cls, sequences: Sequence[TokenSequence], *, length: int, rows: int, pad_id: int = 0) -> Iterator[TokenBatch]:
        """Greedy first-fit packing, in order, into batches of at most `rows` rows of at most `length` tokens.

        Each sequence is forwarded as if alone. Sequences longer than `length` are cut to it.
        """
        table: list[list[TokenSequence]] = []
        free: list[int] = []
        for item in sequences:
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
        contents = ids.clone() if any(s.contents is not None for row in table for s in row) else None
        for b, row in enumerate(table):
            at = size[1] - sum(map(len, row)) if side == "left" else 0
            for index, s in enumerate(row):
                span = slice(at, at + len(s))
                ids[b, span], positions[b, span] = s.ids, torch.arange(len(s))
                segments[b, span], owners[b, span] = index, s.sequence
                if contents is not None:
                    contents[b, span] = s.ids if s.contents is None else s.contents
                for name, value in s.flags.items():
                    flags[name][b, span] = value
                at += len(s)
        placed = [(b, i, s) for b, row in enumerate(table) for i, s in enumerate(row)]
        extra, origin = {}, {}
        for name in sorted({name for *_, s in placed for name in s.extra}):
            held = [(b, i, s.extra[name]) for b, i, s in placed if name in s.extra]
            if len({(value.shape[1:], value.dtype) for *_, value in held}) > 1:
                raise DataError(f"sequences of one batch have '{name}' of different shapes",
                                do="batch sequences whose images are prepared to one size")
            extra[name] = torch.cat([value for *_, value in held])
            origin[name] = torch.tensor([(b, i) for b, i, value in held for _ in range(len(value))]).view(-1, 2)
        return cls(ids, segments != PAD_SEGMENT, positions, segments, owners, flags, extra, origin, contents)
