"""Declares the evaluator and the judges; imports no torch."""

from reprbasis import Component, hookimpl

from .config import InterpretConfig, LexicalConfig, LocalConfig, OpenAIConfig, SemanticConfig


@hookimpl
def reprbasis_register(register):
    """Offer interpret and the judges lexical, semantic, local and openai."""
    register(Component(
        kind="evaluator", name="interpret", config=InterpretConfig, factory="reprbasis_interpret.evaluator:Interpret",
        summary="Share of latents whose activity a judge predicts on held-out text: detection, fuzzing, ComSem, beside controls"))
    register(Component(
        kind="judge", name="lexical", config=LexicalConfig, factory="reprbasis_interpret.lexical:Lexical",
        summary="Clues in the spelling of a token and of the token before it, weighed by naive Bayes"))
    register(Component(
        kind="judge", name="semantic", config=SemanticConfig, factory="reprbasis_interpret.semantic:Semantic",
        requires={"model": {"weights"}}, summary="Nearness of a token's embedding to those of the marked tokens"))
    register(Component(
        kind="judge", name="local", config=LocalConfig, factory="reprbasis_interpret.local:Local",
        requires={"model": {"generate", "chat"}},
        summary="A model on this machine names what passages share, and answers yes or no"))
    register(Component(
        kind="judge", name="openai", config=OpenAIConfig, factory="reprbasis_interpret.openai:OpenAI",
        summary="Any server with an OpenAI-compatible chat interface: cached, in parallel, with retries and a budget"))
