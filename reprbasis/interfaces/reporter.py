"""Kind `reporter`: show a run while it goes on, and after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .base import C, Configured

if TYPE_CHECKING:
    from ..registry import Registry


class Task(Protocol):
    """A piece of work whose progress is shown."""

    def update(self, done: float, **figures: float | str) -> None:
        """Work done so far, in the task's unit, and figures worth a look (loss, L0)."""


class Progress(Protocol):
    """Where long work reports to. Library code never prints."""

    def task(self, name: str, total: float | None = None, unit: str = "it") -> Any:
        """A context manager that gives a `Task`; `total` None means unknown."""


class _SilentTask:
    def update(self, done: float, **figures: float | str) -> None:
        """Show nothing."""


class Silent:
    """A `Progress` that shows nothing."""

    @contextmanager
    def task(self, name: str, total: float | None = None, unit: str = "it") -> Iterator[Task]:
        """A task that shows nothing."""
        yield _SilentTask()


@dataclass(frozen=True)
class StepRecord:
    """What is known of one step of a run.

    Args:
        name: its name in the pipeline file.
        component: full component name.
        fingerprint: hex digest of everything that went in.
        folder: where its artifact lies.
        artifact: type of the artifact.
        status: `done`, `reused`, `failed`, `interrupted` or `waiting`.
        seconds: time it took (0 when reused).
        config: its config after defaults, JSON values.
        error: message, when it failed or was interrupted.
        made: time its artifact took to make, also when it is reused (0 where that is not known).
    """

    name: str
    component: str
    fingerprint: str
    folder: Path
    artifact: str
    status: str
    seconds: float = 0.0
    config: Mapping[str, Any] | None = None
    error: str | None = None
    made: float = 0.0


@dataclass(frozen=True)
class RunRecord:
    """A finished (or stopped) run: what reporters render.

    Args:
        name: of the pipeline.
        folder: `runs/NAME`.
        model: facts on the model (JSON values).
        steps: in execution order.
        seed: of the pipeline.
        source: path of the pipeline file, if any.
        started: ISO time.
        overrides: what was changed on the command line (`steps.basis.rows=1000`).
    """

    name: str
    folder: Path
    steps: Sequence[StepRecord]
    model: Mapping[str, Any]
    seed: int
    started: str
    source: str | None = None
    overrides: Sequence[str] = ()


class Reporter(Configured[C]):
    """Receives what happens. Every method has a default that does nothing; a reporter overrides what it shows."""

    def progress(self) -> Progress | None:
        """A live progress display, or None if this reporter has none."""
        return None

    def run_started(self, run: RunRecord) -> None:
        """Planning is done; `run.steps` are waiting or reused."""

    def step_started(self, step: StepRecord) -> None:
        """A step begins."""

    def step_ended(self, step: StepRecord) -> None:
        """A step is done, reused, failed or interrupted."""

    def run_ended(self, run: RunRecord, registry: Registry) -> Path | None:
        """The run is over; returns the file written, if any. Artifacts are read with `reprbasis.load(step.folder)`."""
        return None
