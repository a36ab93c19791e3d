"""Controls that several evaluators share."""

from __future__ import annotations

from typing import Any

import torch

from ..interfaces.evaluator import EvaluationInputs
from ..runtime.basis import Basis
from ..runtime.fit import Preparation, RowSource, activation_stats


def untrained(inputs: EvaluationInputs) -> Basis:
    """The basis before any training: same sites, normaliser, learner, width and seed."""
    basis = inputs.basis
    training: dict[str, Any] = basis.details["training"]
    source = RowSource(inputs.activations, basis.sites, seed=training["seed"], repeats=training["repeats"])
    stats = activation_stats(source, Preparation(inputs.activations, basis.normaliser, training["norm_cap"]),
                             seed=training["seed"])
    dictionary = basis.learner.start(stats, torch.Generator().manual_seed(training["seed"]))
    return basis.with_dictionary(basis.learner.finish(dictionary, stats))
