"""Declares the model, and what goes with it: a corpus, a task, an evaluator, an editor and a step about synthetic scenes."""

from reprbasis import Component, Port, hookimpl

from .config import ConceptsConfig, LvlmConfig, ProjectorConfig, ScenesConfig, SeeAsConfig, VisualQuestionConfig


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
    register(Component(
        kind="editor", name="projector", config=ProjectorConfig, factory="reprbasis_lvlm.projector:Projector",
        summary="See one thing as another: the projector shows of clean images what it shows of their patch images",
        requires={"model": {"vision"}}))
    register(Component(
        kind="step", name="see-as", config=SeeAsConfig, factory="reprbasis_lvlm.see_as:SeeAs",
        summary="See red as blue, by several editors: how often it works on held-out objects, and what else changes",
        inputs=(Port("basis", "basis"),), output="findings", needs_model=True, requires={"model": {"vision"}}))
