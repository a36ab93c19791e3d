"""Declares the evaluators; imports no torch."""

from reprbasis import Component, hookimpl

from .config import EntropyConfig, ICLConfig


@hookimpl
def reprbasis_register(register):
    """Offer entropy and icl-entropy."""
    register(Component(
        kind="evaluator", name="entropy", config=EntropyConfig, factory="reprbasis_entropy.layers:EntropyEvaluator",
        summary="Entropy of the codes at every site, with L0, FVU, dense and dead latents, beside two controls"))
    register(Component(
        kind="evaluator", name="icl-entropy", config=ICLConfig, factory="reprbasis_entropy.icl:ICLEvaluator",
        summary="Entropy of the codes over prompts with more and more demonstrations: varied, fixed, and with shuffled answers"))
