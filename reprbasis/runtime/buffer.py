"""The mixing buffer: rows from many places, each served exactly once, in an order that one generator fixes.

A fixed storage of C rows is filled; a random half is served in batches; the freed slots are refilled in place; and so on, so
a row stays for a geometric number of refills (mean 2). When the source ends everything left is served. (Li et al. 2025,
arXiv 2506.07691, section on the mixing buffer.)

Cost per row: one scattered write when it enters and one gathered read when it leaves, nothing else. Each refill draws one
permutation of C integers, i.e. 2 integers per served row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Columns = dict[str, Tensor]
"""Parallel tensors with the same first dimension."""


class Source(Protocol):
    """Where rows come from: numbered chunks, so that a place in the stream is one integer."""

    def chunk(self, index: int) -> Columns | None:
        """Chunk `index` (any number of rows), or None beyond the end. The same index always gives the same rows."""


class MixingBuffer:
    """Serves batches of `batch` rows from `source`, mixed over `capacity` rows.

    Args:
        source: numbered chunks.
        capacity: rows held, C; at least 2 * batch.
        batch: rows served at a time; the last batch may be smaller.
        seed: fixes the order.
        pinned: serve batches in pinned memory, from where they go to a CUDA device while the next is made ready.
    """

    def __init__(self, source: Source, *, capacity: int, batch: int, seed: int, pinned: bool = False) -> None:
        if batch < 1 or capacity < 2 * batch:
            raise ValueError(f"capacity {capacity} must be at least twice the batch {batch}")
        self.source, self.capacity, self.batch, self.pinned = source, capacity, batch, pinned
        self.generator = torch.Generator().manual_seed(seed)
        self._store: Columns = {}
        self._order = torch.empty(0, dtype=torch.long)  # slots to serve now, in order
        self._held = torch.empty(0, dtype=torch.long)  # slots that stay for a later round
        self._at = 0  # how many of _order are served
        self._chunk, self._offset, self._ended = 0, 0, False  # cursor into the source

    def __iter__(self) -> Iterator[Columns]:
        while (rows := self.next()) is not None:
            yield rows

    def next(self) -> Columns | None:
        """The next batch, or None when everything was served."""
        parts: list[Tensor] = []
        missing = self.batch
        while missing:
            if self._at == len(self._order) and not self._refill(parts):
                break
            take = self._order[self._at:self._at + missing]
            self._at += len(take)
            missing -= len(take)
            parts.append(take)
        if not parts:
            return None
        slots = parts[0] if len(parts) == 1 else torch.cat(parts)
        return {name: _take(column, slots, self.pinned) for name, column in self._store.items()}

    def _refill(self, pending: list[Tensor]) -> bool:
        """Fill the free slots, then choose what is served next. Slots in `pending` are read only after this returns."""
        waiting = torch.cat([self._held, *pending]) if pending else self._held
        free = torch.ones(self.capacity, dtype=torch.bool)
        free[waiting] = False
        slots = torch.nonzero(free).flatten()
        filled = self._pull(slots)
        live = torch.cat([self._held, slots[:filled]])
        if len(live) == 0:
            return False
        live = live[torch.randperm(len(live), generator=self.generator)]
        serve = len(live) if self._ended else (len(live) + 1) // 2
        self._order, self._held, self._at = live[:serve], live[serve:], 0
        return True

    def _pull(self, slots: Tensor) -> int:
        done = 0
        while done < len(slots) and not self._ended:
            columns = self.source.chunk(self._chunk)
            if columns is None:
                self._ended = True
                break
            size = next(iter(columns.values())).shape[0]
            take = min(size - self._offset, len(slots) - done)
            for name, column in columns.items():
                if name not in self._store:
                    self._store[name] = torch.empty(self.capacity, *column.shape[1:], dtype=column.dtype)
                _cells(self._store[name])[slots[done:done + take].numpy()] = _cells(column[self._offset:self._offset + take])
            done += take
            self._offset += take
            if self._offset == size:
                self._chunk, self._offset = self._chunk + 1, 0
        return done

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on exactly as before, as tensors."""
        cursor = torch.tensor([self._at, self._chunk, self._offset, int(self._ended)])
        out = {"order": self._order, "held": self._held, "cursor": cursor, "generator": self.generator.get_state()}
        return out | {f"store/{k}": v for k, v in self._store.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a saved state (same source, capacity and batch)."""
        self._order, self._held = state["order"], state["held"]
        self._at, self._chunk, self._offset, ended = (int(v) for v in state["cursor"])
        self._ended = bool(ended)
        self.generator.set_state(state["generator"])
        self._store = {k.removeprefix("store/"): v.clone() for k, v in state.items() if k.startswith("store/")}


def _cells(column: Tensor) -> Any:
    """[n] numpy view of a column with each row as one opaque cell: numpy moves a cell by one memcpy, whatever its dtype.

    PyTorch's `index_copy_` takes two to three times as long for rows of a kilobyte.
    """
    flat = column.flatten(1) if column.ndim > 1 else column[:, None]
    raw = flat.contiguous().view(torch.uint8).numpy()
    return raw.view(f"V{raw.shape[1]}")[:, 0]


def _take(column: Tensor, slots: Tensor, pinned: bool) -> Tensor:
    """Rows of a column."""
    out = torch.empty(len(slots), *column.shape[1:], dtype=column.dtype, pin_memory=pinned)
    np.take(_cells(column), slots.numpy(), out=_cells(out), mode="clip")  # slots are in range; other modes make a copy
    return out
