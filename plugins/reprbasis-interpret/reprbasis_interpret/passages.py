"""Passages of text and where latents are active in them.

Shapes: N tokens read, W passages of w tokens, D width, K latents.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from reprbasis.errors import DataError
from reprbasis.interfaces.judge import Passage
from reprbasis.kits.heldout import HeldOut

BLOCK = 1024


@dataclass(frozen=True)
class Text:
    """Tokens, cut into passages of one length.

    Args:
        ids: [W, w]; sequences: [W] the sequence of each passage.
        place: [W, w] row of each token in the values.
        values: site -> [N, D].
    """

    ids: Tensor
    sequences: Tensor
    place: Tensor
    values: dict

    def passage(self, index, marked, decode):
        """One passage with these places marked."""
        ids = self.ids[index].tolist()
        return Passage(tuple(decode(i) for i in ids), tuple(ids), tuple(marked))


def held_out(inputs, sites, *, tokens, window):
    """Run the model on text that nothing was trained on; tokens that repeat the beginning of a training sequence are left out."""
    held = HeldOut.run(inputs, sites, tokens=tokens, sequence_tokens=tokens)
    return _cut(held.ids, held.group, held.body, {s: x.float() for s, x in held.rows.items()}, window)


def trained_on(inputs, sites, *, tokens, window):
    """The activations as they were harvested, without repeated beginnings."""
    acts, parts, base = inputs.activations, {s: [] for s in sites}, 0
    for shard, size in enumerate(acts.shards):
        rows = slice(0, min(size, tokens - base))
        for site in sites:
            parts[site].append(acts.read(site, shard, rows).float())
        base += rows.stop
        if base == tokens:
            break
    table = acts.table
    kept = ~table.repeats[:base] & (table.positions[:base] > 0)
    return _cut(table.ids[:base], table.sequences[:base], kept, {s: torch.cat(p) for s, p in parts.items()}, window)


def _cut(ids, owners, kept, values, window):
    """Whole passages of consecutive kept tokens, within one sequence."""
    places = []
    for sequence in owners.unique().tolist():
        where = ((owners == sequence) & kept).nonzero().flatten()
        places += [p for p in torch.split(where, window) if len(p) == window]
    if not places:
        raise DataError(f"no sequence has {window} tokens of its own", do="use a smaller window, more tokens or longer texts")
    place = torch.stack(places)
    return Text(ids[place], owners[place[:, 0]], place, values)


def activity(basis, site, x):
    """[N, K] how active each latent is: the size of its code; of a bit that is mostly 1, whether it is 0 (the rarer side)."""
    z = torch.cat([basis.encode(site, part).float().cpu() for part in torch.split(x, BLOCK)])
    if "binary-latents" in basis.capabilities:
        z = torch.where(z.mean(0) > 0.5, 1 - z, z)
    return z.abs()
