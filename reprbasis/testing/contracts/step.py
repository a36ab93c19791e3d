"""The laws of steps: the declared output, the same bytes every time, nothing else touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import reprbasis
from reprbasis.artifacts.manifest import canonical, read_manifest
from reprbasis.artifacts.store import artifact_class
from reprbasis.component import Component
from reprbasis.errors import Problem
from reprbasis.interfaces.aligner import Alignment
from reprbasis.interfaces.artifact import Artifact
from reprbasis.interfaces.editor import EditPlan
from reprbasis.interfaces.evaluator import Findings, Measurement
from reprbasis.interfaces.finder import Circuit
from reprbasis.interfaces.lens import LensFit
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.step import StepContext

from ..toys import contrast_batches, interventions, margin, toy_activations, toy_model, toy_registry, trained_basis
from .base import ComponentContract


class StepContract(ComponentContract):
    """Suite of kind `step`. Inputs are toys of the declared types; `toy-words`, `toy-dictionary` can be used in the config.

        class TestLearn(StepContract):
            name, config = "learn", {"learner": {"use": "toy-dictionary", "width": 12}, "rows": 512, "batch": 64}

    Override `artifacts` if the step needs other inputs.
    """

    kind = "step"
    world: Mapping[str, Artifact]
    model: ModelAdapter

    @pytest.fixture(autouse=True, scope="class")
    def _prepare(self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls: Any = request.cls
        toy_registry()
        cls.model = toy_model()
        cls.world = self.artifacts(cls.model, tmp_path_factory.mktemp("inputs"))

    def artifacts(self, model: ModelAdapter, folder: Path) -> Mapping[str, Artifact]:
        """One artifact of each type."""
        activations = toy_activations(model, folder / "activations")
        basis = trained_basis(activations)
        scores = interventions(model, basis, contrast_batches(model), margin())
        masks = {s: v.abs() > v.abs().median() for s, v in scores.nodes.items()}
        one = torch.eye(basis.d_in)
        return {"activations": activations, "basis": basis, "scores": scores, "circuit": Circuit(masks, scores),
                "findings": Findings([Measurement("answer", 42.0, 1)]), "lens-fit": LensFit({"matrix": one}),
                "edit-plan": EditPlan({"embed": torch.zeros_like(model.parameters()["embed"])}),
                "alignment": Alignment(one, one.clone(), torch.zeros(len(one)), torch.zeros(len(one)))}

    @property
    def component(self) -> Component:
        """The declaration."""
        return self.registered.component

    def inputs(self, *, optional: bool = True) -> dict[str, Artifact]:
        """An artifact for each port."""
        return {p.name: self.world[p.type] for p in self.component.inputs if optional or not p.optional}

    def context(self, scratch: Path) -> StepContext:
        """What the step may use; the model only if it says that it needs it."""
        def refuse() -> ModelAdapter:
            raise AssertionError("the step loads the model, but its declaration lacks needs_model=True")

        scratch.mkdir(parents=True)
        load = (lambda: self.model) if self.component.needs_model else refuse
        return StepContext(toy_registry(), scratch, 0, load)

    def run(self, folder: Path, *, optional: bool = True, **changes: Any) -> Artifact:
        """Run the step in `folder/scratch`."""
        context = replace(self.context(folder / "scratch"), **changes)
        out: Artifact = self.create().run(context, **self.inputs(optional=optional))
        return out

    def test_output_is_what_was_declared(self, tmp_path: Path) -> None:
        """The artifact is of the declared type. If it fails, mend `output=` or what `run` returns."""
        assert self.component.output is not None
        out = self.run(tmp_path)
        assert out.type == self.component.output
        assert isinstance(out, artifact_class(self.component.output))

    def test_same_inputs_same_bytes(self, tmp_path: Path) -> None:
        """Two runs in fresh folders write the same files and facts: a fingerprint stands for the result.

        If it fails, seed by `context.seed`, and keep times, paths and dates out of the artifact.
        """
        manifests = [read_manifest(reprbasis.save(self.run(tmp_path / n), tmp_path / n / "out")) for n in ("one", "two")]
        assert canonical(manifests[0].facts) == canonical(manifests[1].facts)
        assert manifests[0].files == manifests[1].files

    def test_output_survives_saving(self, tmp_path: Path) -> None:
        """Saved and loaded it has the same facts and tensors."""
        out = self.run(tmp_path)
        loaded = reprbasis.load(reprbasis.save(out, tmp_path / "out"), toy_registry())
        assert canonical(loaded.facts()) == canonical(out.facts())
        assert loaded.tensors().keys() == out.tensors().keys()
        assert all(torch.equal(v.cpu(), loaded.tensors()[k]) for k, v in out.tensors().items())

    def test_inputs_and_model_are_left_alone(self, tmp_path: Path) -> None:
        """Artifacts are shared between steps. If it fails, work on copies."""
        def state() -> list[torch.Tensor]:
            given = [t for a in self.inputs().values() for _, t in sorted(a.tensors().items())]
            return [t.detach().clone() for t in (*given, *self.model.parameters().values())]

        before = state()
        self.run(tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))

    def test_optional_inputs_are_optional(self, tmp_path: Path) -> None:
        """Without its optional inputs it runs as well. If it fails, use `inputs.get(name)` or make the port required."""
        if not any(p.optional for p in self.component.inputs):
            pytest.skip("no optional input")
        assert self.run(tmp_path, optional=False).type == self.component.output

    def test_check_gives_problems(self) -> None:
        """`check` looks at the config and the model's facts alone, and answers with a list; here it finds nothing."""
        found = reprbasis.registry().load(self.kind, self.name).check(self.make_config(), self.model.info)
        assert isinstance(found, list)
        assert all(isinstance(p, Problem) for p in found)
        assert found == [], [p.render() for p in found]
