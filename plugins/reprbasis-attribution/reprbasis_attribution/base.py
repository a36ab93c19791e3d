"""What all scorers share: the loop over batches, places, baselines, the mean over examples.

Shapes: B batch, T tokens, D width, K latents, P places (see `reprbasis.kits.nodes`).
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from reprbasis.errors import DataError, UserError
from reprbasis.interfaces.metric import Metric
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import AttributionScorer, ContrastBatch, ScoreTable
from reprbasis.kits.nodes import Baseline, Nodes, Places, State, baseline_of
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
        baseline = baseline_of(self.config.baseline, model, basis, batches, places=self.config.mean_over)
        totals = {s: torch.zeros(len(places), basis.d_dict + 1, dtype=torch.float64, device=model.device) for s in basis.sites}
        effects: dict[Site, float] = {}
        clean, n = 0.0, 0
        for item in batches:
            nodes = self.nodes(model, basis, item, baseline, metric)
            for part in self.parts(nodes, metric, places):
                totals[part.site] += part.values
                if part.effect is not None:
                    effects[part.site] = effects.get(part.site, 0.0) + part.effect
            clean += float(nodes.measure(metric).sum())
            n += nodes.n
        return table(self, basis, places, {s: v / n for s, v in totals.items()}, metric,
                     {"n": n, "clean": clean / n, "completeness": completeness(totals, effects, n)})

    def nodes(self, model: ModelAdapter[Any], basis: Basis, item: ContrastBatch, baseline: Baseline,
              metric: Metric[Any]) -> Nodes:
        """The clean run of a batch."""
        return Nodes.of(model, basis, item, baseline, metric=metric, protect=self.config.protect)


def checked(name: str, batches: Sequence[ContrastBatch], metric: Metric[Any], *, differentiates: bool) -> None:
    """Complain about what cannot be scored."""
    if not batches:
        raise DataError(f"{name} got no batches", do="use rb.batches(model, task), or a split with more pairs")
    if differentiates and not metric.differentiable:
        raise UserError(f"{name} needs a gradient, and {metric.full_name or type(metric).__name__} has none",
                        do="use a metric such as logit-diff, or the scorer patching")


def completeness(totals: dict[Site, Tensor], effects: dict[Site, float], n: int) -> dict[str, dict[str, float]]:
    """For each site whose effect is known: sum of its scores, effect of replacing it whole, and their difference."""
    out = {}
    for site, effect in effects.items():
        total = float(totals[site].sum()) / n
        out[str(site)] = {"sum": total, "effect": effect / n, "residual": total - effect / n}
    return out


def table(scorer: NodeScorer[Any], basis: Basis, places: Places, values: dict[Site, Tensor], metric: Metric[Any],
          details: dict[str, Any]) -> ScoreTable:
    """The scores as an artifact."""
    kind = basis.normaliser.mean.dtype
    nodes = {s: (v[0] if places.kind == "shared" else v).to(kind).cpu() for s, v in values.items()}
    about = {"scorer": scorer.full_name, "options": scorer.config.model_dump(mode="json"),
             "metric": metric.full_name or type(metric).__name__, "index": places.kind, "rows": list(places.names)}
    return ScoreTable(nodes, details={**about, **details})


def spread(nodes: Nodes, places: Places, latents: Tensor, error: Tensor) -> Tensor:
    """Sum over the tokens and rows of each place: [B, T, K] and [B, T] -> [P, K + 1]."""
    return torch.cat([places.total(latents, nodes.item), places.total(error[..., None], nodes.item)], dim=-1)


def moves(state: State) -> tuple[Tensor, Tensor]:
    """How far each node lies above its baseline: latents [B, T, K], error [B, T, D]."""
    return state.codes - state.base_codes, state.error - state.base_error
