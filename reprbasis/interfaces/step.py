"""Kind `step`: one node of a pipeline."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Problem
from .artifact import Artifact
from .base import C, Configured
from .model import ModelAdapter, ModelInfo
from .reporter import Progress, Silent

if TYPE_CHECKING:
    from ..registry import Registry


@dataclass(frozen=True)
class StepContext:
    """What a step may use.

    Args:
        registry: to build components named in the step's config (`registry.build(use)`).
        scratch: directory of this step's unfinished work; it survives interruption and is removed when the step is done.
        seed: of the pipeline.
        progress: where to report.
        load_model: gives the pipeline's model, loading it on first use.
    """

    registry: Registry
    scratch: Path
    seed: int
    load_model: Callable[[], ModelAdapter]
    progress: Progress = field(default_factory=Silent)

    @property
    def model(self) -> ModelAdapter:
        """The pipeline's model."""
        return self.load_model()


class Step(Configured[C]):
    """Turns artifacts into an artifact. The same inputs, config and seed give the same bytes."""

    @classmethod
    def check(cls, config: C, info: ModelInfo) -> list[Problem]:
        """What in `config` does not fit the model, found before anything runs; site selectors are checked for you."""
        return []

    @abstractmethod
    def run(self, context: StepContext, **inputs: Artifact) -> Artifact:
        """Do the work; `inputs` are the artifacts of the declared ports by name."""
