"""Declares the corpora `chat` and `text`."""

from collections.abc import Callable

from reprbasis import Component, hookimpl

from .config import ChatConfig, TextConfig


@hookimpl
def reprbasis_register(register: Callable[[Component], None]) -> None:
    """Offer both corpora."""
    register(Component(kind="corpus", name="chat", config=ChatConfig, factory="reprbasis_corpora.chat:ChatCorpus",
                       summary="Dialogues as JSON lines, as they stand or answered by the model itself",
                       provides={"needs-model"}))
    register(Component(kind="corpus", name="text", config=TextConfig, factory="reprbasis_corpora.text:TextCorpus",
                       summary="Plain text files: one example a file, a paragraph or a line"))
