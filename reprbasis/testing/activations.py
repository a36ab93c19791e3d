"""Activations made by hand, for tests of learners, bases and evaluators that need no model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..artifacts.store import write_tensors
from ..runtime.activations import Activations, SiteStats, TokenTable, shard_name
from ..sites import Site


def activations_of(values: Mapping[Site, Tensor], folder: Path, *, shard: int = 4096, sequence: int = 64) -> Activations:
    """Activations with the given rows at each site.

    Args:
        values: site -> [N, D], the same N everywhere; stored as float32.
        folder: where the shards go.
        shard: tokens in a shard (a multiple of `sequence`).
        sequence: tokens in a sequence; positions restart at 0 in each.
    """
    n = len(next(iter(values.values())))
    sizes = [min(shard, n - start) for start in range(0, n, shard)]
    for index, size in enumerate(sizes):
        rows = slice(index * shard, index * shard + size)
        write_tensors(folder / shard_name(index), {str(site): x[rows].float() for site, x in values.items()})
    steps = torch.arange(n)
    count = -(-n // sequence)
    ids = steps % 97
    ids[::sequence] = torch.arange(count) % 97  # sequences begin differently, so that none repeats another
    ids[1::sequence] = (torch.arange(len(ids[1::sequence])) // 97) % 97
    table = TokenTable(ids, steps % sequence, steps // sequence, {"special": steps % sequence == 0},
                       [f"example-{i}" for i in range(count)], torch.zeros(count, dtype=torch.bool))
    none = torch.zeros(0, dtype=torch.long)
    held = TokenTable(none, none, none, {"special": none.bool()}, table.keys, table.held_out)
    inner = {site: x[steps % sequence > 0].double() for site, x in values.items()}
    stats = SiteStats(int((steps % sequence > 0).sum()), {s: x.mean(0) for s, x in inner.items()},
                      {s: float(x.square().sum(1).mean()) for s, x in inner.items()})
    return Activations(tuple(values), folder, tuple(sizes), table, held, stats)
