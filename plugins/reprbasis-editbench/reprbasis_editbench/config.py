"""Options of the steps and of the corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from reprbasis import ComponentConfig, Selection, Use

Benchmark = Literal["ioi", "greater-than", "sva", "pronoun", "capitals"]


class AskedConfig(ComponentConfig):
    """What is asked for: a benchmark, a task or a request, one of the three."""

    benchmark: Benchmark | None = None
    """A preference that is to be forgotten, or `capitals`; with held-out words and wordings, neighbours and texts."""
    task: Annotated[Selection, Use("task")] | None = None
    """A task whose preference is to be forgotten: fitted on its `train` words, measured on those of `test`."""
    request: str | None = None
    """`the capital of X is now Y`, `PROMPT -> TARGET`, `forget that X is Y`, `forget X`, or a YAML file of such wishes."""
    texts: Annotated[Selection, Use("corpus")] | None = None
    """With `request`: the first 24 texts of a corpus, every second to be kept, the others measured; null: built-in ones."""
    case: int = Field(0, ge=0)
    """Which edit of the benchmark `capitals`."""
    n: int = Field(16, ge=1)
    """Prompts of each held-out kind; of a preference twice as many are fitted."""

    @model_validator(mode="after")
    def _one(self) -> AskedConfig:
        if sum(x is not None for x in (self.benchmark, self.task, self.request)) != 1:
            raise ValueError("give one of benchmark, task and request")
        if self.texts is not None and self.request is None:
            raise ValueError("texts go with a request; benchmarks and tasks have their own")
        return self


class EditConfig(AskedConfig):
    """Options of `edit`."""

    editor: Annotated[Selection, Use("editor")]
    """What makes the plan."""


class EditScoreConfig(AskedConfig):
    """Options of `edit-score`; the first five as given to `edit`."""

    control: bool = True
    """Whether a random edit of the same size is measured too."""
    bits: tuple[Annotated[int, Field(ge=2, le=16)], ...] = (8, 4)
    """The edited model is measured again with its matrices rounded to so many bits."""
    relearn: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 4)
    """It is measured again after so many steps of SGD on a quarter of the fitted prompts (full back-propagation)."""
    relearn_rate: float = Field(1e-4, gt=0)
    """Length of such a step relative to the weights."""
    residue: bool = True
    """Whether the stream after every block is read through the final norm and the unembedding."""


class UnlearningConfig(ComponentConfig):
    """Options of `unlearning`."""

    dataset: str
    """`tofu`, `muse-news`, `muse-books`, `wmdp-bio`, `wmdp-chem`, `wmdp-cyber`."""
    subset: str | None = None
    """Part of the data set, for example `forget10_perturbed`; null: its usual one."""
    split: str | None = None
    """Split of the subset; null: its usual one."""
    path: Path | None = None
    """JSON lines or JSON with the rows, instead of the hub."""
    revision: str | None = None
    """Commit or tag on the hub."""
    limit: int | None = Field(None, ge=1)
    """Rows at most."""
