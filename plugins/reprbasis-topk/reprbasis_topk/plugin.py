"""Declares the learners `topk` and `batchtopk`; imports no torch."""

from reprbasis import Component, hookimpl

from .config import BatchTopKConfig, TopKConfig

PROVIDES = {"affine-decoder", "nonnegative-latents", "sparse-latents", "divisible-rows", "divisible-latents",
            "bfloat16-products"}


@hookimpl
def reprbasis_register(register):
    """Offer both learners."""
    register(Component(kind="learner", name="topk", config=TopKConfig,
                       factory="reprbasis_topk.learner:TopKLearner",
                       summary="Sparse dictionary that keeps the k largest codes of every row", provides=PROVIDES))
    register(Component(kind="learner", name="batchtopk", config=BatchTopKConfig,
                       factory="reprbasis_topk.learner:BatchTopKLearner",
                       summary="Sparse dictionary that keeps k codes per row on average and ships as thresholds",
                       provides=PROVIDES))
