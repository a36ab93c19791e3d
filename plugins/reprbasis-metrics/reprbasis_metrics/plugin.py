"""Declares the metrics; imports no torch."""

from reprbasis import Component, hookimpl

from .config import MetricConfig

METRICS = {
    "ce": ("CrossEntropy", "Mean next-token cross-entropy of each sequence, nats"),
    "kl": ("KLDivergence", "Mean KL divergence from the unchanged model, nats"),
    "logit-diff": ("LogitDifference", "Logit of the answer minus logit of the wrong answer, at the last token"),
    "probability": ("Probability", "Probability of the answers at the last token"),
    "accuracy": ("Accuracy", "Whether an answer is the most likely next token (0 or 1, no gradient)"),
    "forced-choice": ("ForcedChoice", "Whether the answer beats the wrong answer (0 or 1, no gradient)"),
}


@hookimpl
def reprbasis_register(register):
    """Offer every metric."""
    for name, (cls, summary) in METRICS.items():
        register(Component(kind="metric", name=name, config=MetricConfig, factory=f"reprbasis_metrics.metrics:{cls}",
                           summary=summary))
