"""The laws of evaluators: numbers with n and controls, the same every time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import reprbasis
from reprbasis.artifacts.manifest import canonical
from reprbasis.interfaces.evaluator import EvaluationInputs, Findings

from ..toys import toy_activations, toy_model, trained_basis
from .base import ComponentContract


class EvaluatorContract(ComponentContract):
    """Suite of kind `evaluator`: a linear model, its activations on random words, and a dictionary trained for a moment.

        class TestReconstruction(EvaluatorContract):
            name, config = "reconstruction", {"tokens": 64}

    There are two layers of width 8, 12 latents and about 500 training tokens.
    """

    kind = "evaluator"
    inputs: EvaluationInputs

    @pytest.fixture(autouse=True, scope="class")
    def _prepare(self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
        model = toy_model()
        activations = toy_activations(model, tmp_path_factory.mktemp("activations"))
        cls: Any = request.cls
        cls.inputs = EvaluationInputs(model, trained_basis(activations), activations, seed=1)

    def evaluate(self, **changes: Any) -> Findings:
        """What is found, with some inputs changed."""
        found: Findings = self.create().evaluate(replace(self.inputs, **changes))
        return found

    def test_every_number_is_finite_and_has_its_n(self) -> None:
        """Name, finite value, n of 1 or more, low <= value <= high where there is an interval."""
        found = self.evaluate().measurements
        assert found
        for m in found:
            assert m.name, m
            assert m.n >= 1, m
            assert math.isfinite(m.value), m
            assert (m.low is None) == (m.high is None), m
            if m.low is not None and m.high is not None:
                assert m.low - 1e-9 <= m.value <= m.high + 1e-9, m

    def test_every_number_stands_beside_a_control(self) -> None:
        """There is a control, and every name measured is measured under two conditions at least somewhere.

        If it fails, measure the same for `inputs.basis` before training, for the mean, or for another null, and say which in
        `condition`.
        """
        found = self.evaluate().measurements
        assert len({m.condition for m in found}) >= 2, f"only the condition {found[0].condition!r}: there is no control"
        alone = {m.name for m in found} - {m.name for m in found if any(
            o.name == m.name and o.condition != m.condition for o in found)}
        assert not alone, f"without a control: {sorted(alone)}"

    def test_no_number_is_given_twice(self) -> None:
        """Name, condition and site identify a measurement. If it fails, `Findings.get` could not tell them apart."""
        keys = [(m.name, m.condition, m.site) for m in self.evaluate().measurements]
        assert len(keys) == len(set(keys))

    def test_evaluation_is_deterministic(self) -> None:
        """The same inputs and seed give the same findings to the last bit. If it fails, seed every draw by `inputs.seed`."""
        one, two = self.evaluate(), self.evaluate()
        assert canonical(one.facts()) == canonical(two.facts())
        assert one.values.keys() == two.values.keys()
        assert all(torch.equal(v, two.values[k]) for k, v in one.values.items())

    def test_nothing_is_changed(self) -> None:
        """Neither the weights of the model nor the basis are touched."""
        before = [p.clone() for p in (*self.inputs.model.parameters().values(), *self.inputs.basis.tensors().values())]
        self.evaluate()
        after = (*self.inputs.model.parameters().values(), *self.inputs.basis.tensors().values())
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    def test_figures_can_be_drawn(self) -> None:
        """Titles, captions, and as many values as there are places along x (histograms: one fewer than edges)."""
        for figure in self.evaluate().figures:
            assert figure.title.strip()
            assert len(figure.caption.split()) > 3, figure.title
            for name, values in figure.series.items():
                if figure.kind in ("heatmap", "grid"):
                    assert [len(row) for row in values] == [len(figure.x)] * len(figure.y), name
                else:
                    assert len(values) == len(figure.x) - (figure.kind == "histogram"), (figure.title, name)

    def test_cards_are_sound(self) -> None:
        """Contexts have one value a token, their peak is inside, and come highest first; shares over sites add up to 1."""
        for card in self.evaluate().features:
            assert 0 < card.rate <= 1, card.latent
            assert abs(sum(card.sites.values()) - 1) < 0.05, card.latent
            peaks = [c.values[c.peak] for c in card.contexts]
            assert peaks == sorted(peaks, reverse=True), card.latent
            assert all(len(c.tokens) == len(c.values) for c in card.contexts), card.latent

    def test_findings_survive_saving(self, tmp_path: Path) -> None:
        """Saved and loaded they are the same. If it fails, put Python numbers, not tensors, into measurements and figures."""
        found = self.evaluate()
        loaded = reprbasis.load(reprbasis.save(found, tmp_path / "findings"))
        assert isinstance(loaded, Findings)
        assert canonical(loaded.facts()) == canonical(found.facts())
