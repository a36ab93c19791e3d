"""Declares the codecs; imports no torch."""

from reprbasis import Component, hookimpl

from .config import DictionaryLearningConfig, LlamascopiumConfig, SAELensConfig, SparsifyConfig


@hookimpl
def reprbasis_register(register):
    """Offer one codec for each format."""
    for name, config, factory, summary in (
            ("saelens", SAELensConfig, "saelens:SAELens", "SAELens v6 checkpoints: standard, jumprelu, topk, gated"),
            ("dictionary-learning", DictionaryLearningConfig, "dictionary_learning:DictionaryLearning",
             "dictionary_learning checkpoints of all its classes, with the weights as safetensors"),
            ("sparsify", SparsifyConfig, "sparsify:Sparsify", "sparsify (EleutherAI) TopK checkpoints"),
            ("llamascopium", LlamascopiumConfig, "llamascopium:Llamascopium",
             "llamascopium (OpenMOSS) checkpoints: relu, jumprelu, topk")):
        register(Component(kind="codec", name=name, config=config, factory=f"reprbasis_codecs.{factory}", summary=summary))
