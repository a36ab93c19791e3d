"""Declares the model `lvlm`, the corpus `scenes`, the task `visual-question` and the evaluator `concepts`."""

from reprbasis import Component, hookimpl

from .config import ConceptsConfig, LvlmConfig, ScenesConfig, VisualQuestionConfig


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
    register(Component(
        kind="task", name="visual-question", config=VisualQuestionConfig, factory="reprbasis_lvlm.visual_question:VisualQuestion",
        summary="A question about an image and about the same image with one thing changed: red square, blue square",
        provides={"contrast"}, requires={"model": {"vision", "chat"}}))
    register(Component(
        kind="evaluator", name="concepts", config=ConceptsConfig, factory="reprbasis_lvlm.concepts:Concepts",
        summary="Latents that mean a concept in images and in words: AUROC beside random directions and shuffled labels"))
