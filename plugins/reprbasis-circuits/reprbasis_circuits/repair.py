"""Local search on hard masks: what continuous sparsification leaves behind once soft masks are made hard.

A soft chain of nodes works while each link is half on; made hard, one link may be missing, and then no other link is of use. And
not every node that helped a soft mask is needed in a hard one. For a price c the search starts from the best of several masks and
goes down

    J(mask) = task loss(mask) + c size(mask)

by adding, dropping or swapping nodes. Every move that is made lowers J over all prompts, and the end is never worse than any
start, nor than no circuit at all; it is a mask that no move that was tried improves, or what there is after so many rounds.

Moves of a round are ranked to first order, tried on a part of the prompts (another part in every round), and the best are judged
on all: the most promising nodes alone; the best 2, 4, 8, ... of them, and of the ranking, together; where none of these helps,
swaps. Nodes to drop are ranked by derivatives of the task loss at the mask; nodes to add by these and by those half
way from the mask to all nodes, since at the mask itself a link of a broken chain may have none.

Shapes: M masks, N nodes, S starts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

FINAL = 3  # moves of a round that are judged on all prompts


@dataclass(frozen=True)
class Problem:
    """What is minimised.

    Args:
        loss: (masks [M, N] bool, part or None for all prompts) -> task loss [M].
        slope: (mask [N] in [0, 1], part) -> its derivative [N].
        parts: number of parts the prompts come in.
        tries: nodes to add, and nodes to drop, that a round tries alone.
        rounds: most rounds.
    """

    loss: Callable[[Tensor, int | None], Tensor]
    slope: Callable[[Tensor, int], Tensor]
    parts: int
    tries: int = 6
    rounds: int = 12


@dataclass
class Repaired:
    """Where a search ended.

    Args:
        mask: [N] bool.
        loss: its task loss.
        objective: J where it started, and after every move.
        moves: number of nodes that each move added and dropped.
    """

    mask: Tensor
    loss: float
    objective: list[float]
    moves: list[tuple[int, int]] = field(default_factory=list)


def repair(problem: Problem, starts: Tensor, losses: Tensor, price: float) -> Repaired:
    """The best of `starts` and of what local search reaches from the best that is not empty.

    Cost: a round takes two forwards and backwards and about 4 `tries` + 3 log2(size) forwards of a part of the prompts, and
    `FINAL` forwards of all. It ends when two rounds, on two parts, found no move.

    Args:
        problem: the task.
        starts: [S, N] bool.
        losses: [S] their task losses.
        price: c.
    """
    paid = losses + price * starts.sum(1)
    best = int(paid.argmin())
    first = int(torch.where(starts.any(1), paid, torch.inf).argmin())
    found, still = Repaired(starts[first].clone(), float(losses[first]), [float(paid[first])]), 0
    for number in range(problem.rounds):
        still = 0 if _move(problem, found, price, number % problem.parts) else still + 1
        if still == min(problem.parts, 2):
            break
    if found.objective[-1] > float(paid[best]):
        return Repaired(starts[best].clone(), float(losses[best]), [float(paid[best])])
    return found


def _move(problem: Problem, found: Repaired, price: float, part: int) -> bool:
    """Make the best move that is found; False if none lowers the objective."""
    mask = found.mask

    def paid(masks: Tensor) -> Tensor:
        return problem.loss(masks, part) + price * masks.sum(1)

    def accepted(masks: Tensor, values: Tensor) -> bool:
        promising = values.argsort()[:FINAL]
        some = masks[promising[values[promising] < here]]
        if not len(some):
            return False
        losses = problem.loss(some, None)
        now = losses + price * some.sum(1)
        best = int(now.argmin())
        if float(now[best]) >= found.objective[-1]:
            return False
        found.moves.append((int((some[best] & ~mask).sum()), int((mask & ~some[best]).sum())))
        found.mask, found.loss = some[best], float(losses[best])
        found.objective.append(float(now[best]))
        return True

    drops, *adds = _ranked(problem, mask, part)
    most = max(len(drops), problem.tries)
    either = torch.stack([order[:problem.tries] for order in adds], 1).flatten().tolist()
    single = [*drops[:problem.tries, None], *drops.new_tensor(list(dict.fromkeys(either))[:problem.tries])[:, None]]
    groups = [order[:size] for order in (drops, *adds) for size in _powers(min(len(order), most))]
    tried = _flipped(mask, [drops[:0], *single, *groups])
    values = paid(tried)
    here, alone = float(values[0]), values[1:len(single) + 1]
    order = alone.argsort().tolist()
    helping = [single[i] for i in order if float(alone[i]) < here]
    off, on = ([single[i] for i in order if bool(mask[single[i]]) == side] for side in (True, False))
    joint = _flipped(mask, [torch.cat(some[:size]) for some in (helping, off, on)
                            for size in {*_powers(len(some)), len(some)} if size > 1])
    if accepted(torch.cat([tried[1:], joint]), torch.cat([values[1:], paid(joint)])):
        return True
    width = max(2, math.isqrt(2 * problem.tries))
    swaps = _flipped(mask, [torch.cat([a, b]) for a in off[:width] for b in on[:width]])
    return accepted(swaps, paid(swaps))


def _ranked(problem: Problem, mask: Tensor, part: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes that are on; nodes that are off by their derivatives here, and half-way; the most promising to flip first."""
    at, half = problem.slope(mask.float(), part), problem.slope(0.5 + 0.5 * mask, part)
    on, off = mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
    return on[at[on].argsort(descending=True)], off[at[off].argsort(stable=True)], off[half[off].argsort(stable=True)]


def _flipped(mask: Tensor, sets: Sequence[Tensor]) -> Tensor:
    """[len(sets), N]: the mask with each set of nodes on the other side."""
    out = mask.repeat(len(sets), 1)
    for row, nodes in zip(out, sets, strict=True):
        row[nodes] = ~row[nodes]
    return out


def _powers(size: int) -> list[int]:
    """2, 4, 8, ... up to `size`."""
    return [2 ** k for k in range(1, size.bit_length())]
