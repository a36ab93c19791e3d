"""Plan and run a pipeline: fingerprints, reuse, resumption.

Layout of `runs/NAME`::

    STEP-FINGERPRINT/    one artifact per step; the folder exists only when it is complete
    .work/STEP-FINGERPRINT/  unfinished work of a step; a later run goes on from it
    run.json             what was run, for `reprbasis show` and reporters
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ..artifacts import manifest as manifests
from ..config import Selection
from ..errors import ArtifactError, ConfigError, Problem, ReprBasisError, UserError, near
from ..interfaces.reporter import Progress, Reporter, RunRecord, Silent, StepRecord
from . import facts, wiring
from .spec import PipelineSpec

if TYPE_CHECKING:
    from ..interfaces.artifact import Artifact
    from ..interfaces.model import ModelInfo
    from ..registry import Registry
    from ..runtime.distributed import Ranks

log = logging.getLogger(__name__)
ALL_STEPS = "*"


def plan(spec: PipelineSpec, registry: Registry, *, runs: Path = Path("runs"), until: str | None = None,
         force: Collection[str] = ()) -> list[StepRecord]:
    """What a run would do: every step in order, with its fingerprint and whether it would be reused. Loads no weights.

    Args:
        spec: the pipeline.
        registry: where components come from.
        runs: directory of all runs.
        until: leave out steps that this one does not need.
        force: steps to run even if their artifact exists (`*`: all).

    Raises:
        ConfigError: the pipeline does not fit together or does not fit the model; all problems together.
        UserError: `until` or `force` names no step.
    """
    return _plan(spec, registry, runs, until, force)[0]


def run(spec: PipelineSpec, registry: Registry, *, runs: Path = Path("runs"), until: str | None = None,
        force: Collection[str] = (), reporters: Sequence[Reporter[Any]] | None = None) -> RunRecord:
    """Run a pipeline; finished steps are reused, interrupted ones resumed.

    Args:
        spec, registry, runs, until, force: see `plan`.
        reporters: who shows it (default: those the pipeline names).

    Under torchrun every process calls this. Steps that can (capability `parallel`) use all of them; the first process does the
    others, and it alone writes artifacts and reports.

    Raises:
        ReprBasisError: what a step raised, after the record was written and the reporters were told.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # torchrun
        from ..runtime.distributed import together

        with together() as ranks:
            return _run(spec, registry, runs, until, force, reporters, ranks)
    return _run(spec, registry, runs, until, force, reporters, None)


def _run(spec: PipelineSpec, registry: Registry, runs: Path, until: str | None, force: Collection[str],
         reporters: Sequence[Reporter[Any]] | None, ranks: Ranks | None) -> RunRecord:
    first = ranks is None or ranks.rank == 0
    if not first:
        reporters = []
    elif reporters is None:
        reporters = [registry.build(s) for s in spec.report]
    records, info = _plan(spec, registry, runs, until, force)
    folder = runs / spec.name
    model = {} if info is None or spec.model is None else {**spec.model.dump(), "family": info.family, "revision": info.revision,
                                                           "n_layers": info.n_layers, "d_model": info.d_model}
    record = RunRecord(spec.name, folder, tuple(records), model, spec.seed, datetime.now(UTC).isoformat(timespec="seconds"),
                       str(spec.source) if spec.source else None, spec.overrides)
    with manifests.storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder) if first else nullcontext():
        work = _Work(spec, registry, reporters, record, ranks)
        for reporter in reporters:
            reporter.run_started(record)
        try:
            for index in range(len(records)):
                work.step(index)
        finally:
            work.write()
            for reporter in reporters:
                if path := reporter.run_ended(work.record, registry):
                    log.info("%s: %s", reporter.full_name, path)
    return work.record


def read_record(folder: Path) -> RunRecord:
    """The record of a run, from `run.json` in its folder.

    Raises:
        ArtifactError: there is none.
    """
    path = folder / "run.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        steps = [StepRecord(**{**s, "folder": folder / s["folder"]}) for s in raw.pop("steps")]
        return RunRecord(steps=steps, folder=folder, **raw)
    except FileNotFoundError:
        raise ArtifactError("no run is recorded here", where=str(folder), do="give a folder such as runs/NAME") from None
    except (ValueError, KeyError, TypeError) as e:
        raise ArtifactError(f"the record of the run is damaged ({e})", where=str(path), do="run the pipeline again") from e


def fingerprint(spec: PipelineSpec, name: str, registry: Registry, info: ModelInfo | None, inputs: Mapping[str, str]) -> str:
    """SHA-256 over everything that decides the bytes of a step's artifact.

    Component and version (and those of every component in its config), config after defaults, content of every file the
    config names, fingerprints of the inputs, model config and weights (also of further models in its config), seed.
    """
    step = spec.steps[name].selection
    found = registry.component("step", step.name)
    used = [step, *step.nested()]
    model = None
    if found.component.needs_model and spec.model is not None:
        used.append(spec.model)
        model = {"config": spec.model.dump(), "revision": info.revision if info else None}
    versions = {f"{s.kind}:{s.name}": registry.component(s.kind, s.name).version for s in used}
    others = [registry.load("model", s.name).describe(s.config).revision for s in step.nested() if s.kind == "model"]
    return manifests.fingerprint({"format": manifests.FORMAT, "config": step.dump(), "versions": versions, "inputs": dict(inputs),
                                  "files": dict(_files(step.config)), "model": model, "seed": spec.seed,
                                  **({"models": others} if others else {})})


def _files(value: Any) -> Iterator[tuple[str, str]]:
    """Hash of every file that a config names by a `Path`."""
    if isinstance(value, Path):
        if value.is_file():
            yield str(value), manifests.hash_file(value).sha256
        elif value.is_dir():
            yield from ((str(p), manifests.hash_file(p).sha256) for p in sorted(value.rglob("*")) if p.is_file())
    elif isinstance(value, Selection):
        yield from _files(value.config)
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _files(getattr(value, name))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _files(item)


def _plan(spec: PipelineSpec, registry: Registry, runs: Path, until: str | None,
          force: Collection[str]) -> tuple[list[StepRecord], ModelInfo | None]:
    for name in [until, *force]:
        if name not in (None, ALL_STEPS) and name not in spec.steps:
            raise UserError(f"the pipeline has no step '{name}'", do=near(str(name), spec.steps))
    order = wiring.check(spec, registry)
    info = facts.check(spec, registry)
    if until is not None:
        wanted = wiring.ancestors(spec, until) | {until}
        order = [name for name in order if name in wanted]
    prints: dict[str, str] = {}
    records = []
    for name in order:
        step = spec.steps[name]
        prints[name] = fingerprint(spec, name, registry, info, {port: prints[source] for port, source in step.inputs.items()})
        folder = runs / spec.name / f"{name}-{prints[name][:12]}"
        forced = ALL_STEPS in force or name in force
        reused = (folder / manifests.NAME).is_file() and not forced
        output = registry.component("step", step.selection.name).component.output
        assert output is not None  # declared steps have one
        records.append(StepRecord(name, step.selection.name, prints[name], folder, output, "reused" if reused else "waiting",
                                  config=step.selection.dump(), made=_made(folder) if reused else 0.0))
    return records, info


def _made(folder: Path) -> float:
    """Seconds that making an artifact took, whichever pipeline made it; 0 where its manifest does not tell."""
    try:
        return manifests.read_manifest(folder).seconds
    except ArtifactError:
        return 0.0  # said when the artifact is loaded; a run that does not need it goes on


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one process may work on a run at a time."""
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError("another process is working on this run", where=str(folder),
                            do="wait for it, or give the pipeline another name (--set name=...)") from None
        yield


@dataclass
class _Work:
    """A run in progress."""

    spec: PipelineSpec
    registry: Registry
    reporters: Sequence[Reporter[Any]]
    record: RunRecord
    ranks: Ranks | None = None

    def __post_init__(self) -> None:
        self.artifacts: dict[str, Artifact] = {}
        self.model: Any = None
        shown = [p for p in (r.progress() for r in self.reporters) if p is not None]
        self.progress: Progress = shown[0] if shown else Silent()

    def load_model(self) -> Any:
        if self.model is None:
            if self.spec.model is None:
                raise ConfigError([Problem("the pipeline has no model, and a step asks for one", do="add `model: {use: ...}`")])
            log.info("loading the model %s", self.spec.model.name)
            with self.progress.task("load the model"):  # a first use converts or downloads
                self.model = self.registry.build(self.spec.model)
        return self.model

    def artifact(self, name: str) -> Artifact:
        """The artifact of an earlier step: still in memory, or loaded and verified."""
        from ..artifacts.store import load

        if name not in self.artifacts:
            record = next(s for s in self.record.steps if s.name == name)
            self.artifacts[name] = load(record.folder, self.registry)
        return self.artifacts[name]

    def step(self, index: int) -> None:
        from ..artifacts.store import attached, save
        from ..interfaces.step import StepContext

        record = self.record.steps[index]
        step = self.spec.steps[record.name]
        for reporter in self.reporters:
            reporter.step_started(record)
        if record.status == "reused":
            self.update(index, record)
            return
        began = time.monotonic()
        found = self.registry.component("step", record.component)
        try:
            with self.turn("parallel" in found.component.provides) as mine:
                if mine:
                    inputs = {port: self.artifact(source) for port, source in step.inputs.items()}
                    if found.component.needs_model and inputs:
                        inputs = {port: given.to(self.load_model().device) for port, given in inputs.items()}
                    scratch = self.record.folder / ".work" / record.folder.name
                    with manifests.storage(scratch):
                        scratch.mkdir(parents=True, exist_ok=True)
                    context = StepContext(self.registry, scratch, self.spec.seed, self.load_model, self.progress)
                    made = self.registry.build(step.selection).run(context, **inputs)
                seconds = time.monotonic() - began
                if self.first:
                    made_from = {s.name: s.fingerprint for s in self.record.steps}
                    prints = {port: made_from[source] for port, source in step.inputs.items()}
                    save(made, record.folder, fingerprint=record.fingerprint, overwrite=True, inputs=prints,
                         writer={"component": found.full_name, "version": found.version}, seconds=seconds)
                    self.artifacts[record.name] = attached(made, record.folder, self.registry)
            if self.first:
                shutil.rmtree(scratch, ignore_errors=True)
        except BaseException as error:
            message = str(error) if isinstance(error, ReprBasisError) else f"{type(error).__name__}: {error}"
            status = "failed"
            if isinstance(error, KeyboardInterrupt):
                status, message = "interrupted", "the same command resumes"
            self.update(index, replace(record, status=status, seconds=time.monotonic() - began, error=message))
            raise
        self.update(index, replace(record, status="done", seconds=seconds, made=seconds))

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.ranks is None or self.ranks.rank == 0

    @contextmanager
    def turn(self, parallel: bool) -> Iterator[bool]:
        """Whether this process takes part in a step; at the end all wait until it is done."""
        if self.ranks is None:
            yield True
            return
        from ..runtime.distributed import apart

        with nullcontext() if parallel else apart():
            yield parallel or self.first
        self.ranks.barrier()

    def update(self, index: int, record: StepRecord) -> None:
        steps = list(self.record.steps)
        steps[index] = record
        self.record = replace(self.record, steps=tuple(steps))
        for reporter in self.reporters:
            reporter.step_ended(record)
        self.write()

    def write(self) -> None:
        if not self.first:
            return
        raw = asdict(self.record)
        del raw["folder"]
        for step in raw["steps"]:
            step["folder"] = step["folder"].name
        manifests.write_json(self.record.folder / "run.json", raw)
