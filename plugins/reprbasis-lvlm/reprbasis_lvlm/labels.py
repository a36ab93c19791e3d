"""The truth about tokens: which image tokens show a labelled object, and which words name one.

Shapes: n tokens of a group, L labels of the group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reprbasis.interfaces.tokens import TokenSequence
from reprbasis.kits.contexts import runs


@dataclass(frozen=True)
class Labelled:
    """Tokens of one kind (image tokens or words) that have exactly one label of a group.

    Args:
        sequence: [n] which of the sequences given.
        token: [n] which of its tokens.
        label: [n] index of the label.
        unit: [n] objects or words: tokens that must keep one label when labels are shuffled.
    """

    sequence: Tensor
    token: Tensor
    label: Tensor
    unit: Tensor

    def __len__(self) -> int:
        return len(self.label)


def patches(sequences: Sequence[TokenSequence], regions: Mapping[str, Sequence[Mapping[str, Any]]], labels: Sequence[str],
            share: float) -> Labelled:
    """Image tokens of which at least `share` is covered by the box of an object with one of the labels.

    Args:
        sequences: with flag `image` and extra `image_grid`.
        regions: example key -> objects: `labels`, `box` (left, top, right, bottom as shares of the image), `image`.
        labels: a group, for example all colours; an object has at most one of them.
        share: of the token's area.
    """
    found: list[tuple[int, int, int, int]] = []
    unit = 0
    for index, sequence in enumerate(sequences):
        if "image_grid" not in sequence.extra:
            continue
        frames = list(runs(sequence.flags["image"], sequence.extra["image_grid"]))
        for region in regions.get(sequence.key, ()):
            named = [labels.index(name) for name in region["labels"] if name in labels]
            if not named or region["image"] >= len(frames):
                continue
            first, size, rows, columns = frames[region["image"]]
            cover = coverage(region["box"], rows, columns).flatten()[:size]
            found += [(index, first + int(cell), named[0], unit) for cell in (cover >= share).nonzero().flatten()]
            unit += 1
    return _labelled(found)


def words(sequences: Sequence[TokenSequence], spelled: Sequence[str], labels: Sequence[str]) -> Labelled:
    """Tokens outside images and templates that spell one of the labels, with or without a space before.

    Args:
        sequences: tokens.
        spelled: [V] text of every token id.
        labels: a group.
    """
    index_of = {token: labels.index(text.strip()) for token, text in enumerate(spelled) if text.strip() in labels}
    found: list[tuple[int, int, int, int]] = []
    for index, sequence in enumerate(sequences):
        hidden = sequence.flags["special"] | sequence.flags.get("image", torch.zeros_like(sequence.flags["special"]))
        found += [(index, at, index_of[token], len(found) + i) for i, (at, token) in enumerate(
            (at, token) for at, token in enumerate(sequence.ids.tolist()) if token in index_of and not hidden[at])]
    return _labelled(found)


def _labelled(found: list[tuple[int, int, int, int]]) -> Labelled:
    table = torch.tensor(found, dtype=torch.long).view(-1, 4)
    return Labelled(table[:, 0], table[:, 1], table[:, 2], table[:, 3])


def coverage(box: Sequence[float], rows: int, columns: int) -> Tensor:
    """[rows, columns] share of each cell that lies in a box."""
    def along(low: float, high: float, cells: int) -> Tensor:
        edge = torch.arange(cells, dtype=torch.float64)
        return (torch.clamp(edge + 1, max=high * cells) - torch.clamp(edge, min=low * cells)).clamp_min(0)

    return along(box[1], box[3], rows)[:, None] * along(box[0], box[2], columns)
