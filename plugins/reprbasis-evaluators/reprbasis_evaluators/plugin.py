"""Declares the evaluators; imports no torch."""

from reprbasis import Component, hookimpl

from .config import AtlasConfig, FastConfig, ReconstructionConfig


@hookimpl
def reprbasis_register(register):
    """Offer reconstruction, fast and atlas."""
    register(Component(
        kind="evaluator", name="reconstruction", config=ReconstructionConfig,
        factory="reprbasis_evaluators.reconstruction:Reconstruction",
        summary="L0, FVU, explained variance, alive latents, CE and KL per site, beside their controls"))
    register(Component(
        kind="evaluator", name="fast", config=FastConfig, factory="reprbasis_evaluators.fast:Fast",
        summary="Errors of whole dialogues and of template tokens, by dialogue and by token, with and without position 0"))
    register(Component(
        kind="evaluator", name="atlas", config=AtlasConfig, factory="reprbasis_evaluators.atlas:Atlas",
        requires={"learner": {"affine-decoder", "nonnegative-latents"}, "model": {"weights"}},
        summary="Where every latent lives over depth, and what it responds to: browsable feature cards"))
