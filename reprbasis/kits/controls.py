"""Controls that several evaluators share."""

from __future__ import annotations

from typing import Any

import torch

from ..interfaces.evaluator import EvaluationInputs
from ..runtime.basis import Basis
from ..runtime.fit import Preparation, RowSource, activation_stats


def training_settings(inputs: EvaluationInputs) -> dict[str, Any]:
    """How the basis was trained, so that a control can be trained likewise; an imported basis does not know, so it gets
    the defaults of `fit` and the seed of the evaluation.
    """
    defaults = {"normaliser": "affine", "norm_cap": 4.0, "repeats": False, "only": [], "batch": 4096, "products": "float32",
                "seed": inputs.seed}
    return {**defaults, **inputs.basis.details.get("training", {})}


def untrained(inputs: EvaluationInputs) -> Basis:
    """The basis before any training: same sites, normaliser, learner, width and seed; it starts on the CPU, as in `fit`."""
    basis, training = inputs.basis, training_settings(inputs)
    source = RowSource(inputs.activations, basis.sites, seed=training["seed"], repeats=training["repeats"],
                       only=training["only"])
    normaliser = basis.normaliser.to(torch.device("cpu"))
    stats = activation_stats(source, Preparation(inputs.activations, normaliser, training["norm_cap"]), seed=training["seed"])
    dictionary = basis.learner.start(stats, torch.Generator().manual_seed(training["seed"]))
    return basis.with_dictionary(basis.learner.finish(dictionary, stats).to(basis.device))
