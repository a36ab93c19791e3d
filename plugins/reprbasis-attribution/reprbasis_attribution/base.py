"""What all scorers share: the loop over batches, places, baselines, the mean over examples.

Shapes: B batch, T tokens, D width, K latents, P places (see `reprbasis.kits.nodes`).
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from reprbasis.errors import DataError, UserError
from reprbasis.interfaces.metric import Metric
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import AttributionScorer, ContrastBatch, ScoreTable
from reprbasis.kits.nodes import Nodes, Places, State, baseline_of
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .config import NodesConfig

C = TypeVar("C", bound=NodesConfig)


@dataclass(frozen=True)
class Part:
    """What one batch says about one site.

    Args:
        site: which.
        values: [P, K + 1] scores, summed over examples.
        effect: how much the metric falls, summed over examples, when all nodes of the site take their baseline; None if unknown.
    """

    site: Site
    values: Tensor
    effect: float | None = None


class Total:
    """Sums over batches."""

    def __init__(self, places: Places, basis: Basis, device: torch.device) -> None:
        self.values = {s: torch.zeros(len(places), basis.d_dict + 1, dtype=torch.float64, device=device) for s in basis.sites}
        self.effects: dict[Site, float] = {}
        self.clean, self.n = 0.0, 0

    def add(self, nodes: Nodes, metric: Metric[Any], parts: Iterable[Part]) -> None:
        """One batch more."""
        for part in parts:
            self.values[part.site] += part.values
            if part.effect is not None:
                self.effects[part.site] = self.effects.get(part.site, 0.0) + part.effect
        self.clean += float(nodes.measure(metric).sum())
        self.n += nodes.n

    def completeness(self) -> dict[str, dict[str, float]]:
        """For each site whose effect is known: sum of its scores, effect of replacing it whole, and their difference."""
        return {str(s): compared(float(self.values[s].sum()) / self.n, effect / self.n) for s, effect in self.effects.items()}


class NodeScorer(AttributionScorer[C]):
    """A scorer that goes batch by batch and site by site."""

    differentiates = True
    """Whether it needs the metric's gradient."""

    @abstractmethod
    def parts(self, nodes: Nodes, metric: Metric[Any], places: Places) -> Iterator[Part]:
        """Scores of one batch, site by site."""

    def score(self, model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch], metric: Metric[Any]) -> ScoreTable:
        """Mean over all examples of the scores of each node.

        Returns:
            Nodes [K + 1] (`index: shared`) or [P, K + 1]; `details` names the rows, the mean metric of the clean runs, and
            where the scorer knows it the completeness of each site: the sum of its scores against the true effect of its
            replacement.

        Raises:
            DataError: there are no batches, or they lack a corrupted side or roles that the options ask for.
            UserError: the metric has no gradient and the scorer needs it.
        """
        checked(self.full_name, batches, metric, differentiates=self.differentiates)
        places = Places.of(self.config.index, batches)
        total = Total(places, basis, model.device)
        for nodes in self.runs(model, basis, batches, metric):
            total.add(nodes, metric, self.parts(nodes, metric, places))
        return table(self, basis, places, total, metric)

    def runs(self, model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch],
             metric: Metric[Any]) -> Iterator[Nodes]:
        """The clean run of each batch, one at a time."""
        baseline = baseline_of(self.config.baseline, model, basis, batches, places=self.config.mean_over)
        return (Nodes.of(model, basis, item, baseline, metric=metric, protect=self.config.protect) for item in batches)


def checked(name: str, batches: Sequence[ContrastBatch], metric: Metric[Any], *, differentiates: bool) -> None:
    """Complain about what cannot be scored."""
    if not batches:
        raise DataError(f"{name} got no batches", do="use rb.batches(model, task), or a split with more pairs")
    if differentiates and not metric.differentiable:
        raise UserError(f"{name} needs a gradient, and {metric.full_name or type(metric).__name__} has none",
                        do="use a metric such as logit-diff, or the scorer patching")


def compared(total: float, effect: float) -> dict[str, float]:
    """A sum of scores beside the effect it should equal."""
    return {"sum": total, "effect": effect, "residual": total - effect}


def table(scorer: NodeScorer[Any], basis: Basis, places: Places, total: Total, metric: Metric[Any],
          details: Mapping[str, Any] | None = None) -> ScoreTable:
    """Means over the examples, as an artifact."""
    kind = basis.normaliser.mean.dtype
    nodes = {s: ((v[0] if places.kind == "shared" else v) / total.n).to(kind).cpu() for s, v in total.values.items()}
    about = {"scorer": scorer.full_name, "options": scorer.config.model_dump(mode="json"),
             "metric": metric.full_name or type(metric).__name__, "index": places.kind, "rows": list(places.names),
             "n": total.n, "clean": total.clean / total.n, "completeness": total.completeness()}
    return ScoreTable(nodes, details={**about, **(details or {})})


def spread(nodes: Nodes, places: Places, latents: Tensor, error: Tensor) -> Tensor:
    """Sum over the tokens and rows of each place: [B, T, K] and [B, T] -> [P, K + 1]."""
    return torch.cat([places.total(latents, nodes.item), places.total(error[..., None], nodes.item)], dim=-1)


def moves(state: State) -> tuple[Tensor, Tensor]:
    """How far each node lies above its baseline: latents [B, T, K], error [B, T, D]."""
    return state.codes - state.base_codes, state.error - state.base_error
