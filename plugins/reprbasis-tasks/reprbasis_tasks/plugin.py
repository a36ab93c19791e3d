"""Declares the tasks."""

from collections.abc import Callable

from reprbasis import Component, hookimpl

from . import config

_TASKS = {
    "sva": (config.AgreementConfig, "agreement:Agreement", "Subject-verb agreement: The friend near the cars -> is"),
    "ioi": (config.IndirectObjectConfig, "names:IndirectObject", "Indirect object: Mary and John ..., John gave it to -> Mary"),
    "pronoun": (config.PronounConfig, "names:Pronoun", "The pronoun of a name: So Mary is a great friend, isn't -> she"),
    "dict-key": (config.DictKeyConfig, "code:DictKey", "Python shell: a key of a dictionary gives its value or KeyError"),
    "list-index": (config.ListIndexConfig, "code:ListIndex", "Python shell: an index of a list gives its value or IndexError"),
    "induction": (config.InductionConfig, "induction:Induction", "A list of words whose beginning is said again goes on"),
    "greater-than": (config.GreaterThanConfig, "facts:GreaterThan", "From the year 1732 to the year 17 -> a later year"),
    "country-capital": (config.CapitalConfig, "facts:Capital", "The capital of France is the city of -> Paris"),
    "json": (config.JsonConfig, "published:Published", "Pairs from a file in the published clean/patch format"),
}


@hookimpl
def reprbasis_register(register: Callable[[Component], None]) -> None:
    """Offer the tasks."""
    for name, (options, place, summary) in _TASKS.items():
        register(Component(kind="task", name=name, config=options, factory=f"reprbasis_tasks.{place}", summary=summary,
                           provides={"contrast"}))
    register(Component(kind="corpus", name="prompts", config=config.PromptsConfig, factory="reprbasis_tasks.prompts:Prompts",
                       summary="The prompts of tasks as plain text, to harvest what they look like", provides={"needs-model"}))
