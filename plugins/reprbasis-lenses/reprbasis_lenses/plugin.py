"""Declares the lenses, the step and the evaluators; imports no torch."""

from reprbasis import Component, Port, hookimpl

from .config import (
    ContrastiveConfig,
    LensesConfig,
    LensStepConfig,
    LogitConfig,
    RidgeConfig,
    TunedConfig,
    UnembeddingConfig,
)


@hookimpl
def reprbasis_register(register):
    """Offer four lenses, the step that fits one, the comparison of lenses, and the test of the unembedding hypothesis."""
    for name, config, factory, summary in (
            ("logit", LogitConfig, "LogitLens", "Every site read as if it were the last one"),
            ("contrastive", ContrastiveConfig, "ContrastiveLens", "What sets a vector apart from its site's mean"),
            ("ridge", RidgeConfig, "RidgeLens", "Each site moved to the last one by least squares, in closed form"),
            ("tuned", TunedConfig, "TunedLens", "Each site moved to the last one by a map trained towards the prediction")):
        register(Component(kind="lens", name=name, config=config, factory=f"reprbasis_lenses.lenses:{factory}", summary=summary,
                           requires={"model": {"weights"}}))
    register(Component(
        kind="step", name="lens", config=LensStepConfig, factory="reprbasis_lenses.step:LensStep",
        summary="Fit a lens to harvested activations", inputs=(Port("activations", "activations"),), output="lens-fit",
        needs_model=True, requires={"model": {"weights"}}))
    register(Component(
        kind="evaluator", name="lenses", config=LensesConfig, factory="reprbasis_lenses.evaluator:Lenses",
        summary="How well lenses read every site on held-out text: KL, cross-entropy and agreement, beside controls",
        requires={"model": {"weights"}}))
    register(Component(
        kind="evaluator", name="unembedding", config=UnembeddingConfig, factory="reprbasis_lenses.unembedding:UnembeddingTest",
        summary="Does the unembedding shape the stream? Readability, concentration, sufficiency and atoms, beside their nulls",
        requires={"model": {"weights"}}))
