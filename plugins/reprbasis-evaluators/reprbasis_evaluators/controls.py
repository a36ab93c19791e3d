"""Controls that several measurements share."""

from collections.abc import Sequence
from typing import Any

import torch

from reprbasis.interfaces.evaluator import EvaluationInputs, Measurement
from reprbasis.runtime.basis import Basis
from reprbasis.runtime.fit import DENSE, Preparation, RowSource, activation_stats


def untrained(inputs: EvaluationInputs) -> Basis:
    """The basis before any training: same sites, normaliser, learner, width and seed."""
    basis = inputs.basis
    training: dict[str, Any] = basis.details["training"]
    source = RowSource(inputs.activations, basis.sites, seed=training["seed"], repeats=training["repeats"])
    stats = activation_stats(source, Preparation(inputs.activations, basis.normaliser, training["norm_cap"]),
                             seed=training["seed"])
    dictionary = basis.learner.start(stats, torch.Generator().manual_seed(training["seed"]))
    return basis.with_dictionary(basis.learner.finish(dictionary, stats))


def density_alarm(basis: Basis, rows: Sequence[Measurement]) -> list[str]:
    """A warning in words where the code is not sparse: it reconstructs well and explains nothing."""
    dense = [m for m in rows if m.name == "l0" and m.condition == "global" and m.value > DENSE * basis.d_dict]
    return [f"DENSITY ALARM: L0 is above {DENSE:.0%} of the {basis.d_dict} latents at {len(dense)} sites "
            f"(worst: {max(dense, key=lambda m: m.value).site}). Reconstruction figures there mean little."] if dense else []
