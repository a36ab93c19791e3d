"""The parts of a forward through a Hugging Face decoder: visiting sites, temporary hooks, attention masks.

Shapes: B batch, T tokens, S tokens seen (those before and the T new ones), D residual width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ShapeError
from ..interfaces.model import Edit
from ..interfaces.tokens import TokenBatch
from ..sites import Site
from .hf_layout import Layout, part


class Visitor:
    """Applies the edits of one call and keeps the captured values in `seen`."""

    def __init__(self, batch: TokenBatch, capture: frozenset[Site], edits: Sequence[Edit]) -> None:
        self.batch, self.capture = batch, capture
        self.edits: dict[Site, list[Edit]] = {}
        for edit in edits:
            self.edits.setdefault(edit.site, []).append(edit)
        self.seen: dict[Site, Tensor] = {}
        self.masks: dict[Site, Tensor] = {}
        self.joins: dict[int, Tensor] = {}
        """What joins the stream [B, T, D] after a block, before its `resid` site is visited (deep visual features)."""

    def wants(self, sites: Collection[Site]) -> bool:
        """Whether one of the sites is captured or edited."""
        return any(site in self.capture or site in self.edits for site in sites)

    def __call__(self, site: Site, x: Tensor) -> Tensor:
        """The value [B, T, D] of a site after its edits.

        Raises:
            ShapeError: an edit returned another shape.
        """
        for edit in self.edits.get(site, ()):
            new = edit(x, self.batch)
            if new.shape != x.shape:
                raise ShapeError(f"an edit made {tuple(new.shape)} of {tuple(x.shape)}", where=str(site),
                                 do=f"let {type(edit).__name__} return the shape it is given")
            x = new.to(x.dtype)
        if site in self.capture:
            self.seen[site] = x
        return x

    @contextmanager
    def hooked(self, blocks: Sequence[nn.Module], layout: Layout, first: int, last: int) -> Iterator[None]:
        """Within it, modules of `attn_out` and `mlp_out` sites to visit in blocks `first` to `last - 1` call `self`."""
        paths = {"attn_out": layout.attn_write, "mlp_out": layout.mlp_write}
        handles = []
        try:
            for site in self.capture | self.edits.keys():
                if site.name in paths and site.layer is not None and first <= site.layer < last:
                    module = part(blocks[site.layer], paths[site.name])
                    handles.append(module.register_forward_hook(self._hook(site)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, site: Site) -> Callable[[nn.Module, Any, Any], Any]:
        def run(module: nn.Module, args: Any, out: Any) -> Any:
            return (self(site, out[0]), *out[1:]) if isinstance(out, tuple) else self(site, out)
        return run


@dataclass
class Past:
    """What the new tokens of a generation step attend to. `cache` is the model's own; positions and segments are [B, S].

    An adapter may keep further facts of each sequence in `state`, [B, ...], from one step to the next.
    """

    cache: Any
    positions: Tensor
    segments: Tensor
    state: dict[str, Tensor] = field(default_factory=dict)

    def extend(self, batch: TokenBatch) -> None:
        """Count the batch's tokens in."""
        self.positions = torch.cat([self.positions, batch.positions], dim=1)
        self.segments = torch.cat([self.segments, batch.segments], dim=1)

    def keep(self, rows: Tensor) -> None:
        """Drop all other sequences."""
        self.cache.batch_select_indices(rows)
        self.positions, self.segments = self.positions[rows], self.segments[rows]
        self.state = {name: value[rows] for name, value in self.state.items()}


def windows(text_config: Any, layers: int) -> list[int | None]:
    """Sliding-window length of each layer's attention; None where a layer sees everything before."""
    window: int | None = getattr(text_config, "sliding_window", None)
    kinds = getattr(text_config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def attention_mask(batch: TokenBatch, past: Past | None, window: int | None, dtype: torch.dtype, *,
                   explicit: bool) -> Tensor | None:
    """What is added to the attention scores, [B, 1, T, S]; None where the kernel's own causal order is right.

    A token sees the tokens of its own segment up to its own position. Padding is a segment of its own, so no row of the
    mask is empty.

    Args:
        batch: the new tokens.
        past: what they attend to when generating; `batch` alone by default.
        window: how many tokens back a token sees; None for all.
        dtype: of the scores.
        explicit: the attention kernel does not know causal order by itself.
    """
    size, device = batch.ids.shape[1], batch.ids.device
    positions, segments = (batch.positions, batch.segments) if past is None else (past.positions, past.segments)
    total = segments.shape[1]
    if window is None or total <= window:
        if size == 1 and bool((segments == 0).all()):
            return None
        if total == size and not explicit:
            # one sequence a row, from the first column on: no real token comes after padding, so none can see it
            ordered = batch.positions == torch.arange(size, device=device)
            if bool((ordered | ~batch.mask).all()):
                return None
    gap = batch.positions[:, :, None] - positions[:, None, :]
    allowed = (batch.segments[:, :, None] == segments[:, None, :]) & (gap >= 0)
    if window is not None:
        allowed &= gap < window
    mask = torch.zeros(allowed.shape, dtype=dtype, device=device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]
