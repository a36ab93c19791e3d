"""Declares the baselines; imports no torch."""

from reprbasis import Component, hookimpl

from . import config

_NEEDS = {"model": {"gradients"}}
_WEIGHTS = {"model": {"gradients", "weights"}}

BASELINES = (
    ("ga", config.TrainConfig, "losses:GradientAscent", _NEEDS, "Gradient ascent on the answers (full back-propagation)"),
    ("graddiff", config.GradDiffConfig, "losses:GradDiff", _NEEDS,
     "Gradient ascent on the answers, descent on texts to keep (full back-propagation)"),
    ("npo", config.NPOConfig, "losses:NPO", _NEEDS, "Negative preference optimisation (full back-propagation)"),
    ("simnpo", config.SimNPOConfig, "losses:SimNPO", _NEEDS, "The same without reference model (full back-propagation)"),
    ("finetune", config.LoRAConfig, "losses:FineTune", _NEEDS,
     "Fine-tuning on the wrong answers, of low rank or of the whole weights (full back-propagation)"),
    ("rmu", config.RMUConfig, "rmu:RMU", _WEIGHTS, "Steer a layer's stream to a random vector (truncated back-propagation)"),
    ("rome", config.RomeConfig, "locate:Rome", _WEIGHTS,
     "Rank-one edit of one MLP; its value comes from gradients of the logits (truncated back-propagation)"),
    ("memit", config.MemitConfig, "locate:Memit", _WEIGHTS,
     "Least squares over several MLPs; values from gradients of the logits (truncated back-propagation)"),
    ("alphaedit", config.AlphaEditConfig, "locate:AlphaEdit", _WEIGHTS,
     "The same inside the null space of texts to keep (truncated back-propagation)"),
)


@hookimpl
def reprbasis_register(register):
    """Offer nine baselines."""
    for name, options, place, needs, summary in BASELINES:
        register(Component(kind="editor", name=name, config=options, factory=f"reprbasis_baselines.{place}", summary=summary,
                           requires=needs))
