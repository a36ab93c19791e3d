"""Step `lens`: fit a lens and keep what it learned."""

from reprbasis.errors import Problem, SiteError
from reprbasis.interfaces.artifact import Artifact
from reprbasis.interfaces.lens import LensFit
from reprbasis.interfaces.model import ModelInfo
from reprbasis.interfaces.step import Step, StepContext
from reprbasis.runtime.activations import Activations

from .config import LensStepConfig


class LensStep(Step[LensStepConfig]):
    """Fit a lens to harvested activations."""

    @classmethod
    def check(cls, config: LensStepConfig, info: ModelInfo) -> list[Problem]:
        """Only sites as wide as the stream can be read."""
        try:
            odd = [s for s in info.select(config.sites) if info.widths.get(s) != info.d_model]
        except SiteError:
            return []  # reported with the field itself
        return [Problem(f"'{odd[0]}' is not as wide as the stream", do="leave it out of sites")] if odd else []

    def run(self, context: StepContext, **inputs: Artifact) -> LensFit:
        """Takes `activations`; gives what the lens learned, and in the details which lens it was."""
        activations = inputs["activations"]
        assert isinstance(activations, Activations)
        sites = activations.select(self.config.sites)
        lens = context.registry.build(self.config.lens)
        found = lens.fit(context.model, activations, sites, seed=context.seed, progress=context.progress)
        known = {"lens": self.config.lens.dump(), "sites": [str(s) for s in sites]}
        return LensFit(found.values, {**known, **found.details})
