"""Declares the editors; imports no torch."""

from reprbasis import Component, hookimpl

from .config import EraseConfig, NullSpaceConfig, OnlineConfig, RidgeConfig, RoutingConfig

EDITORS = (
    ("erase", EraseConfig, "erase:Erase", {"affine-decoder"},
     "Keep attention and MLPs from writing along the directions of latents, or of the answers of a request"),
    ("ridge", RidgeConfig, "local:Ridge", set(),
     "Change what a few heads and MLPs write for the prompts given, and least for texts to keep"),
    ("null-space", NullSpaceConfig, "local:NullSpace", set(),
     "The same, inside the directions that texts to keep hardly use"),
    ("routing", RoutingConfig, "routing:Routing", set(),
     "Make the heads that carry a preference look at the first token where the answer is given"),
    ("online", OnlineConfig, "online:Online", set(),
     "One edit after the other in one component by recursive least squares; each can be forgotten again"),
)


@hookimpl
def reprbasis_register(register):
    """Offer the editors."""
    for name, config, factory, learner, summary in EDITORS:
        needs = {"model": {"weights"}} | ({"learner": learner} if learner else {})
        register(Component(kind="editor", name=name, config=config, factory=f"reprbasis_editors.{factory}", summary=summary,
                           requires=needs))
