"""Continuous sparsification (Savarese, Silva & Maire 2020): learn a 0/1 mask by gradient descent.

A node's mask is sigmoid(beta s) with one logit s; beta grows geometrically, so that the soft mask hardens while it is learned.
With a price c for a node the loss is

    task loss(mask) + c sum(mask)

and the final mask is s > 0. Where the task loss is linear and every node helps, exactly the nodes whose effect exceeds c stay.

Shapes: M costs, N nodes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """Progress r of every step (temperature `beta ** r`) and learning rate.

    A price that rises slowly from 0 was tried and left out: nodes first move up, and the cold end comes before all are back.

    Args:
        progress: r by step; 0 first.
        beta: base of the temperature.
        lr: of Adam.
        patience: steps without a change after which to stop, once the temperature is above 50; None: never.
    """

    progress: tuple[float, ...]
    beta: float = 200.0
    lr: float = 0.05
    patience: int | None = 20

    @classmethod
    def own(cls, steps: int, *, beta: float = 200.0, lr: float | None = None, patience: int | None = 20) -> Self:
        """Progress from 0 to exactly 1. A node of no use moves down by lr a step: at 3 / steps, the default, it leaves after a
        third of them, however many there are. Faster, nodes leave while masks are soft and few prompts were seen.
        """
        progress = tuple(i / max(steps - 1, 1) for i in range(steps))
        return cls(progress, beta, lr or 3 / steps, patience)

    @classmethod
    def ssc(cls, span: float, *, beta: float = 200.0, lr: float = 0.05) -> Self:
        """The published code: r = 1.1 i / span up to the first i >= 1.1 span, so that the temperature ends far above `beta`."""
        last = math.ceil(1.1 * span)
        return cls(tuple(1.1 * i / span for i in range(last + 1)), beta, lr, None)

    def temperature(self, step: int) -> float:
        """Beta at a step."""
        return float(self.beta ** self.progress[step])


@dataclass(frozen=True)
class Learned:
    """What came out.

    Args:
        logits: [M, N]; on where positive.
        steps: steps done.
        history: at some steps: step, temperature, mean task loss and mean size over costs.
    """

    logits: Tensor
    steps: int
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def kept(self) -> Tensor:
        """[M, N] bool."""
        return self.logits > 0


def sparsify(task: Callable[[int, Tensor], Tensor], nodes: int, costs: Sequence[float], schedule: Schedule, *,
             noise: float = 0.01, seed: int = 0, dtype: torch.dtype = torch.float32, device: torch.device | None = None,
             tell: Callable[[int, float, float], None] | None = None) -> Learned:
    """Learn one mask for each cost; they share nothing but the prompts of a step, so each is what it would be alone.

    Args:
        task: (step, soft mask [M, N]) -> task loss [M], differentiable.
        nodes: N.
        costs: M prices.
        schedule: temperatures and learning rate.
        noise: spread of the initial logits around 1 (the same for every cost).
        seed: of the noise.
        dtype, device: of the logits.
        tell: called with step, mean task loss and mean size.
    """
    generator = torch.Generator().manual_seed(seed)
    start = 1 + noise * torch.randn(nodes, generator=generator, dtype=dtype)
    logits = start.to(device or torch.device("cpu")).repeat(len(costs), 1).requires_grad_()
    price = torch.tensor(costs, dtype=dtype, device=logits.device)
    optimiser = torch.optim.Adam([logits], lr=schedule.lr)
    total, kept, still = len(schedule.progress), logits.detach() > 0, 0
    history: list[dict[str, float]] = []
    done = 0
    for step in range(total):
        beta = schedule.temperature(step)
        mask = torch.sigmoid(beta * logits)
        loss = task(step, mask)
        optimiser.zero_grad(set_to_none=True)
        (loss + price * mask.sum(1)).sum().backward()
        optimiser.step()
        done = step + 1
        now = logits.detach() > 0
        still = still + 1 if bool((now == kept).all()) else 0
        kept = now
        if step % max(1, total // 25) == 0 or done == total:
            row = {"step": float(step), "beta": beta, "loss": float(loss.detach().mean()),
                   "nodes": float(kept.sum()) / len(costs)}
            history.append(row)
            if tell:
                tell(done, row["loss"], row["nodes"])
        if schedule.patience is not None and still >= schedule.patience and beta > 50:
            break
    return Learned(logits.detach(), done, history)
