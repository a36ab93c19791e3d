"""Declares the editors; imports no torch."""

from reprbasis import Component, hookimpl

from . import config

EDITORS = (
    ("erase", config.EraseConfig, "erase:Erase", {"affine-decoder"},
     "Keep attention and MLPs from writing along the directions of latents, or of the answers of a request"),
    ("ridge", config.RidgeConfig, "local:Ridge", set(),
     "Change what a few heads and MLPs write for the prompts given, and least for texts to keep"),
    ("fact", config.FactConfig, "local:Fact", set(),
     "Say something else about a subject: ridge on the values that heads take from it, its peers held"),
    ("null-space", config.NullSpaceConfig, "local:NullSpace", set(),
     "The same, inside the directions that texts to keep hardly use"),
    ("component-sgd", config.ComponentSGDConfig, "local:ComponentSGD", set(),
     "The same by gradient steps, inside one component"),
    ("feature-rows", config.FeatureRowsConfig, "rows:FeatureRows", {"affine-decoder"},
     "Take latents out of what MLP neurons write, in dictionary coordinates"),
    ("steer", config.SteerConfig, "activations:Steer", set(),
     "Add a vector at a site: latents taken away, or the way to what corrupted prompts give"),
    ("codebook", config.CodebookConfig, "activations:CodebookEditor", set(),
     "Push the answer where the stream comes near that of a fitted prompt"),
    ("routing", config.RoutingConfig, "routing:Routing", set(),
     "Make the heads that carry a preference look at the first token where the answer is given"),
    ("online", config.OnlineConfig, "online:Online", set(),
     "One edit after the other in one component by recursive least squares; each can be forgotten again"),
    ("withdraw", config.WithdrawConfig, "withdraw:Withdraw", set(),
     "Make every token of whole answers improbable, each by as much as it takes: least squares on one late MLP"),
    ("as-if", config.AsIfConfig, "withdraw:AsIf", set(),
     "Let MLPs write at the prompts what they write at the corrupted ones, as if a stranger were spoken of"),
)


@hookimpl
def reprbasis_register(register):
    """Offer the editors."""
    for name, options, factory, learner, summary in EDITORS:
        needs = {"model": {"weights"}} | ({"learner": learner} if learner else {})
        register(Component(kind="editor", name=name, config=options, factory=f"reprbasis_editors.{factory}", summary=summary,
                           requires=needs))
