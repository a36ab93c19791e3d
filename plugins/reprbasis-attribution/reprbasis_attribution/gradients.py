"""Scorers `attribution` and `ig`: gradients at the clean values, or along the path to the baseline.

Shapes: B batch, T tokens, D width, K latents, N points of the path.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from reprbasis.interfaces.metric import Metric
from reprbasis.interfaces.model import Edit, ForwardResult
from reprbasis.kits.nodes import Nodes, Places, State, pull

from .base import NodeScorer, Part, moves, spread
from .config import NodesConfig, PathConfig, Rule


class GradientScorer(NodeScorer[NodesConfig]):
    """Attribution patching (Nanda 2023; Syed et al. 2023; with error nodes Marks et al. 2024):

        score(node) = dm/dz (z - z_base)          error node: dm/dx . (e - e_base)

    at the clean values, where dm/dx is the gradient of the unchanged model at the site and dm/dz = D^T dm/dx. It is the first
    order of what patching measures, for all nodes at once, exact where the model is linear and blind where it is saturated.

    Cost of a batch: forwards: 1 with gradients + 1 clean + 1 corrupted; backwards: 1; 2 B T K D FLOPs a site for the pull-back.
    """

    def parts(self, nodes: Nodes, metric: Metric[Any], places: Places) -> Iterator[Part]:
        """From one backward through the whole model."""
        for site, gradient in gradients(nodes, metric).items():
            state = nodes.state(site)
            yield Part(site, scores(nodes, places, state, pull(nodes.basis, site, gradient, state.codes), gradient))


class PathScorer(NodeScorer[PathConfig]):
    """Integrated gradients (Sundararajan et al. 2017) along the straight path of all nodes of a site from clean to baseline:

        score(node) = (z - z_base) sum_i w_i dm/dz at z_i = z + a_i (z_base - z), the error moving along

    Everything after the site is recomputed, everything before it stays. The scores of a site add up to the effect of replacing
    it whole; how much is missing at N points is in `details["completeness"]`, always.

    Cost of a batch with S sites: forwards: 2 + S (N + 1), backwards: S N, each from its site to the end (half the model on
    average for sites spread evenly).
    """

    def parts(self, nodes: Nodes, metric: Metric[Any], places: Places) -> Iterator[Part]:
        """One path for each site."""
        at, weights = points(self.config.rule, self.config.steps)
        for site in nodes.basis.sites:
            state = nodes.state(site)
            latents, error, end = along(nodes, metric, state, at, weights, rows=self.config.rows)
            effect = float((nodes.measure(metric) - end).sum())
            yield Part(site, scores(nodes, places, state, latents, error), effect)


def gradients(nodes: Nodes, metric: Metric[Any]) -> dict[Any, Tensor]:
    """Gradient of the summed metric with respect to the value of every site in the clean run, [B, T, D] each."""
    sites = nodes.basis.sites
    result = nodes.run([], grad=True, capture=sites)
    values = [result[s] for s in sites]
    found = torch.autograd.grad(nodes.measure(metric, result).sum(), values, allow_unused=True)
    return {s: torch.zeros_like(x) if g is None else g for s, x, g in zip(sites, values, found, strict=True)}


def scores(nodes: Nodes, places: Places, state: State, latents: Tensor, error: Tensor) -> Tensor:
    """Gradients [B, T, K] and [B, T, D] times how far nodes lie above their baseline, summed by place: [P, K + 1]."""
    z, e = moves(state)
    return spread(nodes, places, latents * z, (error.to(e.dtype) * e).sum(-1))


def along(nodes: Nodes, metric: Metric[Any], state: State, at: Tensor, weights: Tensor, *, rows: int,
          edits: Sequence[Edit] = (), within: ForwardResult | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean gradients on the path of one site from its clean value (0) to its baseline (1).

    Args:
        nodes: the batch.
        metric: to differentiate.
        state: of the site.
        at: [N] points; weights: [N].
        rows: prompts times points in one forward.
        edits: of later sites.
        within: the run the path starts from, if another than the clean one.

    Returns:
        Gradient for codes [B, T, K], gradient for the site's value [B, T, D], the metric at the end of the path [B].
    """
    basis, site = nodes.basis, state.site
    affine = basis.dictionary.directions() is not None
    latents, value = torch.zeros_like(state.codes), torch.zeros_like(state.error)
    for index in torch.arange(len(at)).split(max(1, rows // nodes.n)):
        codes, error = state.at((1 - at[index])[:, None, None, None])
        x = nodes.value(site, codes, error).flatten(0, 1).requires_grad_()
        result = nodes.resume(site, x, edits=edits, grad=True, within=within)
        [gradient] = torch.autograd.grad(nodes.measure(metric, result).sum(), x)
        gradient = gradient.view(len(index), *state.x.shape) * weights[index].to(gradient)[:, None, None, None]
        value += gradient.sum(0)
        if not affine:
            latents += pull(basis, site, gradient, codes).sum(0)
    if affine:
        latents = pull(basis, site, value, state.codes)
    with torch.no_grad():
        end = nodes.resume(site, nodes.value(site, state.base_codes, state.base_error), edits=edits, within=within)
        return latents, value, nodes.measure(metric, end)[0]


def points(rule: Rule, steps: int) -> tuple[Tensor, Tensor]:
    """Points in [0, 1] and weights that add up to 1, [N] each in float64."""
    at = torch.arange(steps, dtype=torch.float64)
    weights = torch.full((steps,), 1 / steps, dtype=torch.float64)
    if rule == "gauss":
        x, w = numpy.polynomial.legendre.leggauss(steps)
        return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)
    if rule == "trapezoid":
        weights = torch.full((steps + 1,), 1 / steps, dtype=torch.float64)
        weights[[0, -1]] /= 2
        return torch.linspace(0, 1, steps + 1, dtype=torch.float64), weights
    return (at + {"midpoint": 0.5, "left": 0.0, "right": 1.0}[rule]) / steps, weights
