"""Which latents belong to the special tokens of the chat template.

FAST (Li et al. 2025, arXiv 2506.07691) takes, over many dialogues, the mean of each latent's largest activation at each special
token, and steers with the top. Special means in template position: `user` in a user's text does not count.

Shapes: N special tokens, D width, K latents, G pairs of dialogue and token.
"""

from dataclasses import dataclass

import torch

from reprbasis.errors import DataError

BLOCK = 1024


@dataclass(frozen=True)
class Ranking:
    """Mean of maxima of every latent.

    Args:
        scores: token id -> [K] mean over dialogues of the largest activation at that token.
        dialogues: token id -> dialogues it occurs in.
    """

    scores: dict
    dialogues: dict

    @property
    def overall(self):
        """[K] mean over the special tokens: each counts the same, however often it occurs."""
        return torch.stack(list(self.scores.values())).mean(0)

    def top(self, count):
        """Indices of the first latents, best first."""
        return self.overall.topk(min(count, len(self.overall))).indices.tolist()


def rank(basis, activations, site, *, dialogues=1000, first_position=False):
    """Rank latents on harvested activations; the model is not run.

    Args:
        basis: whose latents.
        activations: harvested with the flag `special`, at `site` among others.
        site: where the latents are read.
        dialogues: training dialogues at most.
        first_position: whether position 0 counts.

    Raises:
        DataError: no token is flagged `special`.
    """
    table = activations.table
    flagged = table.flags.get("special", torch.zeros(len(table), dtype=torch.bool)).clone()
    if not first_position:
        flagged &= table.positions > 0
    known = torch.unique(table.sequences)[:dialogues]
    flagged &= torch.isin(table.sequences, known)
    if not bool(flagged.any()):
        raise DataError("the activations hold no special token of a chat template",
                        do="harvest dialogues with a model that has a chat template")
    where = flagged.nonzero().flatten()
    pairs, group = torch.unique(torch.stack([table.ids[where], table.sequences[where]], 1), dim=0, return_inverse=True)
    largest = torch.zeros(len(pairs), basis.d_dict)
    start = done = 0
    for shard, size in enumerate(activations.shards):
        rows = where[(where >= start) & (where < start + size)] - start
        for part in torch.split(rows, BLOCK) if len(rows) else ():
            first = int(part[0])
            z = basis.encode(site, activations.read(site, shard, slice(first, int(part[-1]) + 1))[part - first].float()).cpu()
            to = group[done:done + len(part), None].expand(-1, basis.d_dict)
            largest.scatter_reduce_(0, to, z.float(), "amax")
            done += len(part)
        start += size
    scores = {int(i): largest[pairs[:, 0] == i].mean(0) for i in pairs[:, 0].unique()}
    return Ranking(scores, {i: int((pairs[:, 0] == i).sum()) for i in scores})
