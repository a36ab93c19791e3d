"""Kind `learner`: learn a dictionary from activations.

Shapes: N rows, D width of the activations, K latents.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic

import torch
from torch import Tensor, nn

from .base import C, Configured


class Dictionary(nn.Module, ABC):
    """Codes for activations. `d_in` is D, `d_dict` is K. All state that matters is in `state_dict()`."""

    d_in: int
    d_dict: int

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., K]."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """[..., K] -> [..., D]."""

    def directions(self) -> Tensor | None:
        """[K, D] decoder rows when `decode(z) = z @ directions + decode(0)`, else None."""
        return None

    def subset(self, latents: Tensor) -> Dictionary | None:
        """The dictionary of these latents [C] alone, if their codes do not depend on the other latents, else None."""
        return None

    def latent_axes(self) -> Mapping[str, int]:
        """Entries of the `state_dict()` that have an axis over latents, and which; the others do not depend on K."""
        return {}

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction decode(encode(x))."""
        return self.decode(self.encode(x))


@dataclass(frozen=True)
class Rows:
    """Activations of single tokens with everything known about them.

    Args:
        x: [N, D] normalised activations (per-site normaliser applied).
        site: [N] index into the basis's sites.
        token: [N] token id.
        position: [N] position within its own sequence.
        sequence: [N] index of the sequence.
        special: [N] bool, template and control tokens.
        weight: [N] weight of the row in the loss (below 1 for rows of huge norm, such as attention sinks).
    """

    x: Tensor
    site: Tensor
    token: Tensor
    position: Tensor
    sequence: Tensor
    special: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return int(self.x.shape[0])


@dataclass(frozen=True)
class StepInfo:
    """Where the training loop is.

    Args:
        step: from 0.
        total: number of steps.
        rows_seen: rows before this step.
        generator: the loop's own generator, saved in checkpoints; take all randomness from it.
        scratch: values to log that are not losses; the loop averages them between log lines (device tensors, no sync).
    """

    step: int
    total: int
    rows_seen: int
    generator: torch.Generator
    scratch: dict[str, Tensor] = field(default_factory=dict)

    @property
    def progress(self) -> float:
        """Share of the training done, in [0, 1)."""
        return self.step / max(self.total, 1)

    def log(self, name: str, value: Tensor) -> None:
        """Log a scalar tensor that is not a loss."""
        self.scratch[name] = value.detach()


@dataclass(frozen=True)
class ActivationStats:
    """What is known of the (normalised) activations before training.

    Args:
        d_in: D.
        sites: number of sites.
        mean: [D] mean over all sites, balanced.
        mean_square: mean of |x|^2 / D (1 after the default normaliser).
        variance: total variance, mean of |x - mean|^2.
        sample: [M, D] a balanced sample of rows, for data-dependent initialisation.
    """

    d_in: int
    sites: int
    mean: Tensor
    mean_square: float
    variance: float
    sample: Tensor


class DictionaryLearner(Configured[C], Generic[C]):
    """The maths of one kind of dictionary; the loop, data, schedules, checkpoints and logging are the core's `fit`.

    State that training needs beyond the parameters (counters, thresholds) lives in buffers of the dictionary, so that a
    checkpoint holds it.
    """

    @abstractmethod
    def start(self, stats: ActivationStats, generator: torch.Generator) -> Dictionary:
        """The training form, initialised; the same generator state gives the same dictionary."""

    @abstractmethod
    def loss(self, dictionary: Dictionary, rows: Rows, step: StepInfo) -> dict[str, Tensor]:
        """Named scalar terms; the loop adds them up and logs each. Weight rows by `rows.weight`.

        By convention log `l0` and `fvu` through `step.log`.
        """

    def before_step(self, dictionary: Dictionary, step: StepInfo) -> None:
        """After backward, before the optimiser: project gradients."""

    def after_step(self, dictionary: Dictionary, step: StepInfo) -> None:
        """After the optimiser: unit norms, clamped thresholds, annealing."""

    def param_groups(self, dictionary: Dictionary) -> list[dict[str, Any]]:
        """Groups as torch optimisers take them; `lr_factor` multiplies the loop's learning rate, `betas` override."""
        return [{"params": list(dictionary.parameters())}]

    def learning_rate(self, d_dict: int) -> float:
        """The learning rate this learner wants when the user gives none (Gao et al. 2024: 2e-4 / sqrt(K / 2^14))."""
        return float(2e-4 / (d_dict / 2**14) ** 0.5)

    def finish(self, dictionary: Dictionary, stats: ActivationStats) -> Dictionary:
        """Training form -> shipped form (may be the same object)."""
        return dictionary

    @abstractmethod
    def restore(self, d_in: int, tensors: Mapping[str, Tensor]) -> Dictionary:
        """The shipped form from its `state_dict()`; exact."""
