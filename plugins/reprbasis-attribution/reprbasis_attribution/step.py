"""Step `attribute`: from a basis and a task to scores."""

from dataclasses import replace

from reprbasis.interfaces.artifact import Artifact
from reprbasis.interfaces.scorer import ScoreTable
from reprbasis.interfaces.step import Step, StepContext
from reprbasis.runtime.basis import Basis
from reprbasis.runtime.batches import batches

from .config import AttributeConfig


class AttributeStep(Step[AttributeConfig]):
    """Score the nodes of a basis on a task, with any scorer."""

    def run(self, context: StepContext, **inputs: Artifact) -> ScoreTable:
        """Takes `basis`; gives scores, whose details say which prompts they rest on."""
        basis, config = inputs["basis"], self.config
        assert isinstance(basis, Basis)
        build = context.registry.build
        found = batches(context.model, build(config.task), split=config.split, n=config.prompts, batch=config.batch,
                        seed=context.seed, keep=config.keep)
        table = build(config.scorer).score(context.model, basis.at(config.sites), found, build(config.metric))
        about = {"task": config.task.dump(), "split": config.split, "seed": context.seed, "keep": config.keep,
                 "seen": found.seen, "kept": found.kept}
        return replace(table, details={**table.details, **about})
