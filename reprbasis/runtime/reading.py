"""What every site of a model reads as, token by token, through any lenses.

Shapes: T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..interfaces.evaluator import Figure
from ..interfaces.lens import Lens
from ..interfaces.model import ModelAdapter
from ..interfaces.tokens import TokenBatch, TokenSequence
from ..sites import Site

Cell = tuple[tuple[str, float], ...]
"""The likeliest tokens of one site at one position, with their probabilities, likeliest first."""


@dataclass(frozen=True)
class Reading:
    """What was read.

    Args:
        tokens: the text, one string a position; image tokens as `row:column`.
        positions: of these within the sequence.
        sites: in execution order.
        cells: lens -> for each site, for each position, the likeliest tokens.
        said: what the model itself says next at each position.
    """

    tokens: Sequence[str]
    positions: Sequence[int]
    sites: Sequence[Site]
    cells: Mapping[str, Sequence[Sequence[Cell]]]
    said: Sequence[Cell]

    def figure(self, title: str = "What every layer reads as") -> Figure:
        """A grid for reporters: the last site on top, the text from left to right, one series a lens."""
        def shown(cell: Cell, at: int) -> list[Any]:
            best, chance = cell[0]
            hit = best == self.said[at][0][0]
            return [best, chance, "\n".join(f"{p:6.1%}  {visible(t)}" for t, p in cell), hit]

        rows = {lens: [[shown(c, at) for at, c in enumerate(row)] for row in reversed(found)]
                for lens, found in self.cells.items()}
        return Figure("grid", title,
                      "Each cell is the likeliest next token when that site's vector is read through the lens; the darker, the "
                      "likelier. Underlined: what the model says in the end. Point at a cell for the next candidates.",
                      rows, [visible(t) for t in self.tokens], [str(s) for s in reversed(self.sites)], "text", "site")


def visible(token: str) -> str:
    """A token with its line breaks and tabs to be seen; an empty one as `∅`."""
    return token.replace("\n", "⏎").replace("\t", "⇥") or "∅"


@torch.no_grad()
def read_text(model: ModelAdapter[Any], sequence: TokenSequence, lenses: Mapping[str, Lens[Any]], sites: Sequence[Site], *,
              top: int = 5, positions: Sequence[int] | None = None) -> Reading:
    """Run one sequence and read sites at its positions.

    Args:
        model: the network.
        sequence: tokens, with images if the model sees.
        lenses: name -> lens; each must be able to read every site.
        sites: what is read.
        top: candidates kept in a cell.
        positions: which; negative ones count from the end; None: all.

    Cost: one forward, and 2 D V FLOPs for each lens, site and position.
    """
    batch = TokenBatch.pad([sequence], pad_id=model.pad_id).to(model.device)
    result = model.forward(batch, capture=sites)
    assert result.logits is not None
    where = list(range(len(sequence))) if positions is None else sorted({p % len(sequence) for p in positions})
    cells = {name: [_cells(model, lens.read(model, result.sites[site][0, where], site), top) for site in sites]
             for name, lens in lenses.items()}
    return Reading([labels(model, sequence)[p] for p in where], where, sites, cells, _cells(model, result.logits[0, where], top))


def labels(model: ModelAdapter[Any], sequence: TokenSequence) -> list[str]:
    """[T] each token as text; those of an image by the row and column they show, where that is known."""
    names = [str(model.tokenizer.decode([i])) for i in sequence.ids.tolist()]
    image, grids = sequence.flags.get("image"), sequence.extra.get("image_grid")
    if image is None or grids is None:
        return names
    places = [f"▦{r}:{c}" for rows, columns in grids.tolist() for r in range(rows) for c in range(columns)]
    for at, place in zip(torch.nonzero(image).flatten().tolist(), places, strict=False):
        names[at] = place
    return names


def _cells(model: ModelAdapter[Any], logits: Tensor, top: int) -> list[Cell]:
    """[n, V] -> n cells."""
    chance, ids = logits.float().softmax(-1).topk(top, dim=-1)
    decode = model.tokenizer.decode
    return [tuple((str(decode([i])), round(p, 4)) for i, p in zip(row, ps, strict=True))
            for row, ps in zip(ids.tolist(), chance.tolist(), strict=True)]
