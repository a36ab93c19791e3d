"""Declares the model `lvlm` and the corpus `scenes`."""

from reprbasis import Component, hookimpl

from .config import LvlmConfig, ScenesConfig


@hookimpl
def reprbasis_register(register):
    """Offer them."""
    register(Component(
        kind="model", name="lvlm", config=LvlmConfig, factory="reprbasis_lvlm.model:LvlmAdapter",
        summary="Vision-language models: LLaVA, Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Idefics3, SmolVLM",
        provides={"gradients", "generate", "chat", "weights", "vision"}))
    register(Component(
        kind="corpus", name="scenes", config=ScenesConfig, factory="reprbasis_lvlm.corpus:ScenesCorpus",
        summary="Synthetic images of coloured shapes, with questions, answers and the truth about every object"))
