"""Declares the model `lvlm`, the corpus `scenes` and the evaluator `concepts`."""

from reprbasis import Component, hookimpl

from .config import ConceptsConfig, LvlmConfig, ScenesConfig


@hookimpl
def reprbasis_register(register):
    """Offer all three."""
    register(Component(
        kind="model", name="lvlm", config=LvlmConfig, factory="reprbasis_lvlm.model:LvlmAdapter",
        summary="Vision-language models: LLaVA, Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Idefics3, SmolVLM",
        provides={"gradients", "generate", "chat", "weights", "vision"}))
    register(Component(
        kind="corpus", name="scenes", config=ScenesConfig, factory="reprbasis_lvlm.corpus:ScenesCorpus",
        summary="Synthetic images of coloured shapes, with questions, answers and the truth about every object"))
    register(Component(
        kind="evaluator", name="concepts", config=ConceptsConfig, factory="reprbasis_lvlm.concepts:Concepts",
        summary="Latents that mean a concept in images and in words: AUROC beside random directions and shuffled labels"))
