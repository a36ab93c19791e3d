"""The laws of scorers, proven on a linear model, where a gradient equals an intervention.

Shapes: K latents.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch

import reprbasis
from reprbasis.interfaces.scorer import ContrastBatch, ScoreTable
from reprbasis.runtime.basis import Basis

from ..toys import LinearModel, contrast_batches, interventions, margin, toy_basis, toy_model
from .base import ComponentContract


class ScorerContract(ComponentContract):
    """Suite of kind `scorer`. A score is how much the mean metric of the clean runs falls when a node takes its baseline.

        class TestGradients(ScorerContract):
            name, config, baseline = "ig", {"steps": 4}, "corrupt"

    Attributes:
        baseline: what a node is set to: its value in the corrupted run, or zero.
        rtol: largest error, relative to the largest score.
    """

    kind = "scorer"
    baseline: ClassVar[Literal["corrupt", "zero"]] = "corrupt"
    rtol: ClassVar[float] = 1e-4

    def world(self, width: int | None) -> tuple[LinearModel, Basis, list[ContrastBatch]]:
        """A linear model, a linear basis of `width` latents at every site, and two batches of different sizes."""
        model = toy_model()
        return model, toy_basis(model, width=width), contrast_batches(model)

    def score(self, width: int | None = 5) -> tuple[ScoreTable, ScoreTable]:
        """What the scorer finds, and the truth by intervention."""
        model, basis, batches = self.world(width)
        found = self.create().score(model, basis, batches, margin())
        return found, interventions(model, basis, batches, margin(), baseline=self.baseline)

    def test_table_covers_every_site(self) -> None:
        """Every site of the basis gets K + 1 finite scores; the last is the error node. If it fails: a site is skipped."""
        found, truth = self.score()
        assert set(found.nodes) == set(truth.nodes)
        for site, value in found.nodes.items():
            assert value.ndim in (1, 2), (site, tuple(value.shape))
            assert value.shape[-1] == truth.nodes[site].shape[0], (site, tuple(value.shape))
            assert bool(value.isfinite().all()), site
        for (a, b), edges in found.edges.items():
            assert edges.is_sparse, (a, b)
            assert edges.shape == (truth.nodes[a].shape[0], truth.nodes[b].shape[0]), (a, b)

    @pytest.mark.parametrize("width", [None, 5], ids=["lossless", "lossy"])
    def test_exact_on_a_linear_model(self, width: int | None) -> None:
        """Each score equals the effect of the intervention.

        If it fails, look at the sign, the mean over examples, padding, the normaliser's scale, and at gradients that stop
        at the reconstruction error.
        """
        found, truth = self.score(width)
        for site, expected in truth.nodes.items():
            scores = found.nodes[site] if found.nodes[site].ndim == 1 else found.nodes[site].sum(0)
            worst = float((scores - expected).abs().max())
            assert worst <= self.rtol * max(float(expected.abs().max()), 1e-2), (str(site), scores, expected)

    def test_scores_are_complete(self) -> None:
        """The scores of a site add up to the effect of replacing it whole. If it fails, the error node is left out."""
        found, truth = self.score()
        for site, value in found.nodes.items():
            whole = truth.details["sites"][str(site)]
            assert abs(float(value.sum()) - whole) <= 10 * self.rtol * max(abs(whole), 1.0), site

    def test_batches_are_weighted_by_their_examples(self) -> None:
        """One batch or several, the mean is over examples. If it fails, batch means are averaged."""
        model, basis, [first, second] = self.world(5)
        one, two, both = (self.create().score(model, basis, b, margin()) for b in ([first], [second], [first, second]))
        n, m = len(first.clean.ids), len(second.clean.ids)
        for site, value in both.nodes.items():
            a, b, c = (t if t.ndim == 1 else t.sum(0) for t in (one.nodes[site], two.nodes[site], value))
            assert torch.allclose(c, (n * a + m * b) / (n + m), atol=10 * self.rtol), site

    def test_scoring_is_deterministic_and_leaves_the_model(self) -> None:
        """Twice the same scores, and no weight is touched or left requiring gradients."""
        model, basis, batches = self.world(5)
        kept = {name: p.clone() for name, p in model.parameters().items()}
        one, two = (self.create().score(model, basis, batches, margin()) for _ in range(2))
        assert all(torch.equal(one.nodes[s], two.nodes[s]) for s in one.nodes)
        assert all(torch.equal(p, kept[name]) and not p.requires_grad for name, p in model.parameters().items())

    def test_scores_are_detached_and_survive_saving(self, tmp_path: Path) -> None:
        """Scores are plain numbers: saved and loaded they are the same. If it fails, detach them; JSON values in details."""
        found, _ = self.score()
        loaded = reprbasis.load(reprbasis.save(found, tmp_path / "scores"))
        assert isinstance(loaded, ScoreTable)
        assert all(torch.equal(loaded.nodes[s], v) and not v.requires_grad for s, v in found.nodes.items())
        assert loaded.facts() == found.facts()
        assert loaded.edges.keys() == found.edges.keys()
