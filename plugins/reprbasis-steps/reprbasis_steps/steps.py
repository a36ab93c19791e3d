"""The steps: thin wrappers that connect configs to the runtime."""

from dataclasses import replace

from reprbasis.errors import Problem, SiteError, UserError
from reprbasis.interfaces.artifact import Artifact
from reprbasis.interfaces.evaluator import EvaluationInputs, Findings
from reprbasis.interfaces.model import ModelInfo
from reprbasis.interfaces.step import Step, StepContext
from reprbasis.runtime.activations import Activations
from reprbasis.runtime.basis import Basis
from reprbasis.runtime.device import usable
from reprbasis.runtime.fit import discard_checkpoint, fit
from reprbasis.runtime.harvest import harvest

from .config import EvaluateConfig, HarvestConfig, LearnConfig


class HarvestStep(Step[HarvestConfig]):
    """Run the model over a corpus and keep the activations of its sites."""

    def run(self, context: StepContext, **inputs: Artifact) -> Activations:
        """Takes perhaps `text`, earlier activations whose sequences are run again; gives activations."""
        text, chosen = inputs.get("text"), self.config.corpus
        options = {name: getattr(self.config, name) for name in type(self.config).model_fields if name != "corpus"}
        if text is not None:
            assert isinstance(text, Activations)
            return harvest(context.model, text, seed=context.seed, folder=context.scratch, progress=context.progress, **options)
        if chosen is None:
            raise UserError("harvest has no text to run", do="give a corpus, or from: {text: STEP}")
        found = harvest(context.model, context.registry.build(chosen), seed=context.seed, folder=context.scratch,
                        progress=context.progress, **options)
        return replace(found, origin={**found.origin, "corpus": chosen.dump()})


class LearnStep(Step[LearnConfig]):
    """Learn one dictionary over all sites of harvested activations."""

    @classmethod
    def check(cls, config: LearnConfig, info: ModelInfo) -> list[Problem]:
        """The chosen sites must have one width, the machine the device, and the learner must know the products."""
        found = []
        if config.products != "float32" and "bfloat16-products" not in config.learner.provides:
            told = f"the learner '{config.learner.name}' takes its products in float32 only"
            found.append(Problem(told, do="leave out `products`"))
        try:
            usable(config.device)
        except UserError as error:
            found.append(Problem(error.what, do=error.do))
        try:
            widths = {info.widths[s] for s in info.select(config.sites)}
        except SiteError:
            return found  # reported with the field itself
        if len(widths) > 1:
            told = ", ".join(map(str, sorted(widths)))
            found.append(Problem(f"the sites have different widths ({told}) and cannot share a dictionary",
                                 do="choose sites of one width"))
        return found

    def run(self, context: StepContext, **inputs: Artifact) -> Basis:
        """Takes `activations`; gives a basis."""
        activations = inputs["activations"]
        assert isinstance(activations, Activations)
        options = {name: getattr(self.config, name) for name in type(self.config).model_fields if name not in ("learner", "seed")}
        seed = context.seed if self.config.seed is None else self.config.seed
        basis = fit(context.registry.build(self.config.learner), activations, seed=seed, folder=context.scratch,
                    progress=context.progress, capabilities=self.config.learner.provides, **options)
        discard_checkpoint(context.scratch)
        return basis


class EvaluateStep(Step[EvaluateConfig]):
    """Measure a basis, each number beside its controls."""

    def run(self, context: StepContext, **inputs: Artifact) -> Findings:
        """Takes `basis`, `activations` and perhaps `test`, activations of further text; gives findings."""
        basis, activations, test = inputs["basis"], inputs["activations"], inputs.get("test")
        assert isinstance(basis, Basis)
        assert isinstance(activations, Activations)
        assert test is None or isinstance(test, Activations)
        view = EvaluationInputs(context.model, basis, activations, test, seed=context.seed, progress=context.progress)
        findings = Findings()
        for selection in self.config.evaluators:
            findings += context.registry.build(selection).evaluate(view)
        return findings
