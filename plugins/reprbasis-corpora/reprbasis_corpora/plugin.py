"""Declares the corpora `chat`, `hub`, `mix` and `text`."""

from collections.abc import Callable

from reprbasis import Component, hookimpl

from .config import ChatConfig, HubConfig, MixConfig, TextConfig


@hookimpl
def reprbasis_register(register: Callable[[Component], None]) -> None:
    """Offer the corpora."""
    register(Component(kind="corpus", name="chat", config=ChatConfig, factory="reprbasis_corpora.chat:ChatCorpus",
                       summary="Dialogues as JSON lines, as they stand or answered by the model itself",
                       provides={"needs-model"}))
    register(Component(kind="corpus", name="hub", config=HubConfig, factory="reprbasis_corpora.hub:HubCorpus",
                       summary="Chat data sets of the Hugging Face hub by name, streamed, or the same rows from local files"))
    register(Component(kind="corpus", name="mix", config=MixConfig, factory="reprbasis_corpora.mix:MixCorpus",
                       summary="Several corpora in fixed proportions, without dialogues that repeat 20 words of another",
                       provides={"needs-model"}))
    register(Component(kind="corpus", name="text", config=TextConfig, factory="reprbasis_corpora.text:TextCorpus",
                       summary="Plain text files: one example a file, a paragraph or a line"))
