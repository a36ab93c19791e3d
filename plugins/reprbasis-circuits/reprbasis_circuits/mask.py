"""Finder `mask`: continuous sparsification of node masks.

The published procedure for circuits of spaced residual dictionaries runs the whole model twice a step, once for the target,
for every latent, one price at a time. Here the target is computed once, runs start at the first site, only latents that are
active on these prompts take part, nothing but the masks has a gradient, only the answers' rows of the unembedding are used, and
several prices are learned in one batch.

Shapes: M costs, B prompts, N nodes, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reprbasis.errors import CapabilityError, NumericsError
from reprbasis.interfaces.finder import Circuit, CircuitFinder
from reprbasis.interfaces.metric import Metric
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch, ScoreTable
from reprbasis.kits.circuits import Runner
from reprbasis.runtime.basis import Basis

from .config import MaskConfig
from .nodes import Nodes, circuit, prepare, split
from .repair import Problem, Repaired, repair
from .sparsify import Schedule, sparsify

PART = 8  # prompts that moves are first tried on
ROWS = 64  # of a forward without derivatives


class MaskFinder(CircuitFinder[MaskConfig]):
    """Learns which nodes stay, at a price for each."""

    def find(self, model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch], metric: Metric[Any], *,
             scores: ScoreTable | None = None) -> Circuit:
        """The circuit at the price `cost`.

        Raises:
            CapabilityError: the metric or the model has no gradients.
        """
        return self.search(model, basis, batches, metric, [self.config.cost])[0]

    def family(self, model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch], metric: Metric[Any], *,
               scores: ScoreTable | None = None) -> list[Circuit]:
        """The circuits at all `costs`, found together; smallest first."""
        return sorted(self.search(model, basis, batches, metric, self.config.costs), key=Circuit.size)

    def search(self, model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch], metric: Metric[Any],
               costs: Sequence[float]) -> list[Circuit]:
        """One circuit for each of `costs`, in their order."""
        if not metric.differentiable:
            raise CapabilityError(f"the metric {metric.full_name or metric!r} has no gradient", do="use logit-diff")
        config = self.config
        ssc = config.parity == "ssc"
        whole = config.loss in ("ce", "kl")
        size = min(max(1, config.rows // len(costs)), max(len(item.clean.ids) for item in batches))
        runner = prepare(config, model, basis, split(batches, size), metric, whole=whole,
                         latents="all" if config.candidates == "all" else "active")
        nodes = Nodes.of(runner, candidates=config.candidates)
        task = _Task(runner, nodes, config)
        if ssc:
            schedule = Schedule.ssc(config.steps / 1.1, beta=config.beta, lr=config.lr or 0.05)
        else:
            schedule = Schedule.own(config.steps, beta=config.beta, lr=config.lr, patience=config.patience)
        nothing = torch.zeros(1, len(nodes), dtype=torch.bool, device=model.device)
        unit = float(task.hard(nothing)) if config.unit == "share" else 1.0
        paid = [c * unit / (len(runner.setup.sites) if ssc else 1) for c in costs]
        learned = sparsify(task, len(nodes), paid, schedule, noise=0.0 if ssc else config.noise, seed=config.seed,
                           dtype=runner.dtype, device=model.device)
        if not bool(learned.logits.isfinite().all()):
            raise NumericsError("mask logits are not finite", do="look at the metric on these prompts; try a smaller lr")
        repaired = self._repaired(task, learned.kept, paid)
        found = []
        for cost, price, done in zip(costs, paid, repaired, strict=True):
            details = {"finder": "mask", "cost": cost, "cost_per_node": price, "steps": learned.steps, "loss": config.loss,
                       "target": config.target, "beta": [1.0, schedule.temperature(learned.steps - 1)], "lr": schedule.lr,
                       "seed": config.seed, "prompts_per_step": size, "inner": config.inner,
                       "candidates": len(nodes), "parity": config.parity,
                       "history": learned.history, "objective": done.objective, "moves": done.moves}
            found.append(circuit(runner, nodes, done.mask, details))
            if config.cleanup is not None:
                found[-1] = _cleaned(runner, nodes, done.mask, config.cleanup, found[-1])
        return found

    def _repaired(self, task: "_Task", kept: Tensor, paid: Sequence[float]) -> list[Repaired]:
        """The masks [M, N] after local search, the lowest price first: each starts from all that were learned or found before."""
        losses = task.hard(kept)
        if not self.config.repair or self.config.parity is not None:
            return [Repaired(mask, float(loss), [float(loss + price * mask.sum())])
                    for mask, loss, price in zip(kept, losses, paid, strict=True)]
        starts = torch.cat([kept, torch.zeros_like(kept[:1])])
        losses = torch.cat([losses, task.hard(starts[-1:])])
        problem = Problem(task.hard, task.slope, len(task.parts), self.config.tries, self.config.repair)
        found: dict[int, Repaired] = {}
        for i in sorted(range(len(paid)), key=lambda i: paid[i]):
            found[i] = repair(problem, starts, losses, paid[i])
            starts, losses = torch.cat([starts, found[i].mask[None]]), torch.cat([losses, losses.new_tensor([found[i].loss])])
        return [found[i] for i in range(len(paid))]


class _Task:
    """Task loss [M] of soft masks [M, N] at a step.

    With `inner` above 1 the model runs at every `inner`-th step only; until the next run each prompt's metric is extrapolated to
    first order in the mask, from that run's derivatives.
    """

    def __init__(self, runner: Runner, nodes: Nodes, config: MaskConfig) -> None:
        self.runner, self.nodes, self.inner = runner, nodes, config.inner
        self.loss = _LOSSES[config.loss]
        runs = math.ceil((config.steps + 2) / config.inner)
        self.order = order(len(runner.prompts), runs, config.seed, shuffle=config.parity is None)
        self.references = [(p.model.to(runner.dtype), _last(p.logits, p.item)) for p in runner.prompts]
        self.parts = _parts([len(p.model) for p in runner.prompts])
        if config.target == "basis":
            everything = runner.full(latents=True, errors=True)
            with torch.no_grad():
                made = [runner.run(i, everything) for i in range(len(runner.prompts))]
            self.references = [(value[0], logits[0]) for value, logits in made]

    def __call__(self, step: int, mask: Tensor) -> Tensor:
        index = self.order[step // self.inner]
        if self.inner == 1:
            return self._loss(index, *self.runner.run(index, self.nodes.dense(mask), grad=True))
        if step % self.inner == 0:
            self.anchor = self._expand(index, mask.detach())
        value, slope, start = self.anchor
        now = value + torch.einsum("mbn,mn->mb", slope, mask - start)
        return self._loss(index, now, now[..., None])

    def hard(self, masks: Tensor, part: int | None = None) -> Tensor:
        """Task loss [M] of masks [M, N], mean over the prompts of a part or all."""
        total, count = masks.new_zeros(len(masks), dtype=self.runner.dtype), 0
        for index in range(len(self.runner.prompts)) if part is None else self.parts[part]:
            size = len(self.runner.prompts[index].model)
            for first in range(0, len(masks), max(1, ROWS // size)):
                some = slice(first, first + max(1, ROWS // size))
                made = self.runner.run(index, self.nodes.dense(masks[some].to(self.runner.dtype)))
                total[some] += self._loss(index, *made) * size
            count += size
        return total / count

    def slope(self, mask: Tensor, part: int) -> Tensor:
        """Derivative [N] of the task loss at a mask [N], summed over the prompts of a part."""
        leaf = mask.to(self.runner.dtype).requires_grad_()
        for index in self.parts[part]:
            value, logits = self.runner.run(index, self.nodes.dense(leaf[None]), grad=True)
            (self._loss(index, value, logits)[0] * len(self.runner.prompts[index].model)).backward()
        assert leaf.grad is not None
        return leaf.grad

    def _loss(self, index: int, value: Tensor, logits: Tensor) -> Tensor:
        return self.loss(value, logits, *self.references[index], self.runner.prompts[index].item)

    def _expand(self, index: int, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Metric [M, B], its derivative for each prompt [M, B, N], and the mask [M, N] they belong to."""
        size = len(self.runner.prompts[index].model)
        leaf = mask.repeat_interleave(size, dim=0).requires_grad_()
        value, _ = self.runner.run(index, self.nodes.dense(leaf), grad=True, each=True)
        [slope] = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), slope.view(len(mask), size, -1), mask


def _parts(sizes: Sequence[int]) -> list[list[int]]:
    """Batches in parts of about `PART` prompts."""
    out: list[list[int]] = []
    for index, size in enumerate(sizes):
        if not out or sum(sizes[i] for i in out[-1]) + size > PART:
            out.append([])
        out[-1].append(index)
    return out


def order(batches: int, steps: int, seed: int, *, shuffle: bool = True) -> list[int]:
    """Which batch at which step: every batch once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    out: list[int] = []
    while len(out) < steps:
        out += torch.randperm(batches, generator=generator).tolist() if shuffle else range(batches)
    return out[:steps]


def _last(logits: Tensor, item: ContrastBatch) -> Tensor:
    """[B, V] logits after the last token."""
    return logits[:, 0] if logits.shape[1] == 1 else logits[torch.arange(len(logits)), item.clean.last()]


def _absolute(value: Tensor, logits: Tensor, target: Tensor, reference: Tensor, item: ContrastBatch) -> Tensor:
    return (value - target).abs().mean(1)


def _absolute_batch(value: Tensor, logits: Tensor, target: Tensor, reference: Tensor, item: ContrastBatch) -> Tensor:
    return (value - target).mean(1).abs()


def _square(value: Tensor, logits: Tensor, target: Tensor, reference: Tensor, item: ContrastBatch) -> Tensor:
    return (value - target).square().mean(1)


def _cross_entropy(value: Tensor, logits: Tensor, target: Tensor, reference: Tensor, item: ContrastBatch) -> Tensor:
    answer = item.targets.answer
    assert answer is not None
    spread = logits.log_softmax(-1).gather(-1, answer.clamp_min(0).expand(len(logits), -1, -1))
    return -spread.masked_fill(answer < 0, -torch.inf).logsumexp(-1).mean(1)


def _divergence(value: Tensor, logits: Tensor, target: Tensor, reference: Tensor, item: ContrastBatch) -> Tensor:
    wanted = reference.log_softmax(-1).to(logits.dtype)
    return (wanted.exp() * (wanted - logits.log_softmax(-1))).sum(-1).mean(1)


_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, ContrastBatch], Tensor]] = {
    "abs": _absolute, "abs-batch": _absolute_batch, "square": _square, "ce": _cross_entropy, "kl": _divergence}


def _cleaned(runner: Runner, nodes: Nodes, kept: Tensor, share: float, found: Circuit) -> Circuit:
    """Drop nodes that hardly matter one by one, then take back the dropped node whose return helps most."""
    def mean(masks: Tensor) -> Tensor:
        return runner.values(nodes.dense(masks.to(runner.dtype))).mean(1)

    empty = torch.zeros_like(kept)
    whole, nothing = float(runner.model_values.mean()), float(mean(empty[None])[0])
    most = share * abs(whole - nothing)
    on = kept.nonzero()[:, 0]
    if not len(on):
        return found
    without = kept.repeat(len(on), 1)
    without[torch.arange(len(on)), on] = False
    change = (mean(without) - mean(kept[None])).abs()
    dropped = on[change < most]
    left = kept.clone()
    left[dropped] = False
    if len(dropped):
        back = left.repeat(len(dropped) + 1, 1)
        back[torch.arange(len(dropped)), dropped] = True
        best = int((mean(back) - float(mean(kept[None])[0])).abs().argmin())  # the last row takes nothing back
        left = back[best]
    cleaned = circuit(runner, nodes, left, {k: v for k, v in found.details.items() if k not in ("setup", "n")})
    return replace(cleaned, details={**cleaned.details, "size_before_cleanup": found.size()})
