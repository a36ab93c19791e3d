"""What a latent responds to, made to be looked at: text around a token, and the image of an image token.

Shapes: T tokens of a sequence, F frames (parts of images shown one after the other), S side of a picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ..interfaces.evaluator import Context, Picture
from ..runtime.activations import Activations, TokenTable
from ..runtime.basis import Basis
from ..sites import Site
from .png import data_uri


def runs(image: Tensor, grids: Tensor) -> Iterator[tuple[int, int, int, int]]:
    """(first token, tokens there, rows, columns) of each frame of a sequence; a frame that was cut has fewer tokens.

    Args:
        image: [T] bool, the flag.
        grids: [F, 2] rows and columns of each frame (`TokenSequence.extra["image_grid"]`).
    """
    places = image.nonzero().flatten().tolist()
    at = 0
    for rows, columns in grids.tolist():
        if at >= len(places):
            return
        yield places[at], min(rows * columns, len(places) - at), rows, columns
        at += rows * columns


def context(activations: Activations, basis: Basis, tokenizer: Any, at: int, site: Site, latent: int, *,
            window: int = 12) -> Context:
    """The surroundings of a training token and the latent's activation there; of an image token, the image besides.

    Args:
        activations: what the basis was read on.
        basis: whose latent.
        tokenizer: to spell tokens.
        at: row of `activations.table`.
        site: where the latent is read.
        latent: index.
        window: tokens shown on each side.
    """
    table = activations.table
    sequence = int(table.sequences[at])
    span = _span(table, at)
    starts = [0, *accumulate(activations.shards)]
    shard = next(i for i, start in enumerate(starts[1:]) if at < start)

    def codes(low: int, high: int) -> list[float]:
        x = activations.read(site, shard, slice(low - starts[shard], high - starts[shard]))
        return [round(float(v), 3) for v in basis.encode(site, x)[:, latent]]

    low, high = max(at - window, span.start), min(at + window + 1, span.stop)
    shown, values = torch.arange(low, high), torch.tensor(codes(low, high))
    picture = None
    if "image" in table.flags:
        picture = _picture(table, sequence, span, at, codes)
        kept = ~table.flags["image"][shown] | (shown == at)  # one sign stands for an image
        shown, values = shown[kept], values[kept]
    special = table.flags.get("special")
    return Context([tokenizer.decode([int(i)]) for i in table.ids[shown]], [round(float(v), 3) for v in values],
                   int((shown == at).nonzero()), str(site), sequence, [] if special is None else special[shown].tolist(), picture)


def distinct(activations: Activations, basis: Basis, tokenizer: Any, latent: int, ranked: Iterable[tuple[int, Site]], *,
             most: int, window: int = 12) -> list[Context]:
    """The first contexts of a ranking that differ: no two with the same tokens up to the peak, at most two of one sequence.

    Args:
        activations, basis, tokenizer, latent, window: see `context`.
        ranked: rows of `activations.table` and the site where the latent is read, best first.
        most: contexts to give.
    """
    table = activations.table
    chosen: list[Context] = []
    seen: set[tuple[int, ...]] = set()
    per_sequence: dict[int, int] = {}
    for at, site in ranked:
        if len(chosen) == most:
            break
        sequence = int(table.sequences[at])
        heard = tuple(table.shown[max(at - 5, _span(table, at).start):at + 1].tolist())
        if heard in seen or per_sequence.get(sequence, 0) >= 2:
            continue
        seen.add(heard)
        per_sequence[sequence] = per_sequence.get(sequence, 0) + 1
        chosen.append(context(activations, basis, tokenizer, at, site, latent, window=window))
    return chosen


def _span(table: TokenTable, at: int) -> slice:
    """Where the sequence of a token lies in its table."""
    after = int(torch.searchsorted(table.bounds, at, right=True))
    return slice(int(table.bounds[after - 1]), int(table.bounds[after]))


def _picture(table: TokenTable, sequence: int, span: slice, at: int, codes: Any) -> Picture | None:
    """The frame that a token belongs to, or None."""
    if "image_grid" not in table.extra or not bool(table.flags["image"][at]):
        return None
    grids = table.extra["image_grid"][table.owners["image_grid"] == sequence]
    for frame, (first, size, rows, columns) in enumerate(runs(table.flags["image"][span], grids)):
        begin = span.start + first
        places = (table.flags["image"][begin:span.stop].nonzero().flatten()[:size] + begin).tolist()
        if at not in places:
            continue
        shown = table.extra.get("thumbnails")
        small = None if shown is None else shown[table.owners["thumbnails"] == sequence][frame]
        values = dict(zip(range(begin, places[-1] + 1), codes(begin, places[-1] + 1), strict=True))
        return Picture("" if small is None else data_uri(small), rows, columns, [values[p] for p in places], places.index(at))
    return None
