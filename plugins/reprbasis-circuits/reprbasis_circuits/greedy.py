"""Finder `greedy`: start with every node; in each round drop those that matter least in the circuit that is left.

Growing a circuit node by node fails on chains, where no node helps without the others. Dropping does not: what a node does is
always looked at while the rest of the circuit is there. Large circuits lose a share of their nodes at a time, those with the
smallest derivative of the mean metric; small ones the single node whose removal, tried exactly, opens the smallest gap to the
unchanged model.

Shapes: M masks, N nodes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from reprbasis.errors import CapabilityError
from reprbasis.interfaces.finder import Circuit, CircuitFinder
from reprbasis.interfaces.metric import Metric
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch, ScoreTable
from reprbasis.kits.circuits import Runner
from reprbasis.runtime.basis import Basis

from .config import GreedyConfig
from .nodes import Nodes, circuit, first, prepare


class GreedyFinder(CircuitFinder[GreedyConfig]):
    """Shrinks a circuit."""

    def find(self, model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch], metric: Metric[Any], *,
             scores: ScoreTable | None = None) -> Circuit:
        """The circuit of `nodes` nodes.

        Raises:
            CapabilityError: the metric has no gradient.
        """
        return self._shrink(model, basis, batches, metric, [self.config.nodes])[0]

    def family(self, model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch], metric: Metric[Any], *,
               scores: ScoreTable | None = None) -> list[Circuit]:
        """What was left at each of `sizes`; each contains the smaller ones."""
        return self._shrink(model, basis, batches, metric, sorted(self.config.sizes))

    def _shrink(self, model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch], metric: Metric[Any],
                sizes: Sequence[int]) -> list[Circuit]:
        if not metric.differentiable:
            raise CapabilityError(f"the metric {metric.full_name or metric!r} has no gradient", do="use logit-diff")
        runner = prepare(self.config, model, basis, first(batches, self.config.prompts), metric)
        nodes = Nodes.of(runner)
        details = {"finder": "greedy", "drop": self.config.drop, "exact": self.config.exact, "candidates": len(nodes)}
        left = dict(zip(sorted(sizes, reverse=True), self._stages(runner, nodes, sizes), strict=True))
        return [circuit(runner, nodes, left[size] > 0, details) for size in sizes]

    def _stages(self, runner: Runner, nodes: Nodes, sizes: Sequence[int]) -> Iterator[Tensor]:
        """The mask [N] at each size, largest first."""
        kept = torch.ones(len(nodes), dtype=runner.dtype, device=runner.model.device)
        for size in sorted(sizes, reverse=True):
            while (now := int(kept.sum())) > size:
                on = kept.nonzero()[:, 0]
                if now > self.config.exact:
                    target = max(size, self.config.exact, int(now * (1 - self.config.drop)))
                    effect = _slope(runner, nodes, kept)[on].abs()
                    kept[on[effect.argsort()[:now - max(target, size)]]] = 0
                else:
                    without = kept.repeat(now, 1)
                    without[torch.arange(now), on] = 0
                    kept[on[int(_gap(runner, nodes, without).argmin())]] = 0
            yield kept.clone()


def _gap(runner: Runner, nodes: Nodes, masks: Tensor) -> Tensor:
    """[M] mean |F(mask) - F(model)| over the prompts."""
    return (runner.values(nodes.dense(masks)) - runner.model_values).abs().mean(1)


def _slope(runner: Runner, nodes: Nodes, mask: Tensor) -> Tensor:
    """[N] derivative of the mean metric with respect to the mask."""
    leaf = mask.clone()[None].requires_grad_()
    for index in range(len(runner.prompts)):
        value, _ = runner.run(index, nodes.dense(leaf), grad=True)
        (value.sum() / runner.n).backward()
    assert leaf.grad is not None
    return leaf.grad[0]
