"""What every reporter must do."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

import reprbasis

from ...artifacts.store import save
from ...interfaces.evaluator import Context, FeatureCard, Figure, Findings, Measurement
from ...interfaces.reporter import Reporter, RunRecord, StepRecord
from .base import ComponentContract

HOSTILE = "</script><b onclick='x'>\"&'\u2028\u0000[/]{{DATA}}"


def findings() -> Findings:
    """Small findings with everything that can be awkward: NaN, no interval, no site, unknown names, hostile tokens."""
    card = FeatureCard(3, 0.01, 2.5, {"resid.0": 1.0},
                       [Context([HOSTILE, " a", "\n"], [0.0, 2.5, math.nan], 1, "resid.0", 0, [True, False, False])],
                       [(HOSTILE, 1.0)], [], ([0.0, 1.0, 2.0], [5, 1]), {"never_heard_of": math.nan})
    return Findings(
        [Measurement("ev", 0.9, 100, 0.8, 1.0, "global", "resid.0"),
         Measurement("ev", math.nan, 0, None, None, "mean", "resid.0"),
         Measurement("ev", 0.5, 100, 0.4, 0.6, "global", "all resid.*"), Measurement("never_heard_of", math.inf, 7)],
        [Figure("line", "Line", "", {"a": [1.0, math.nan], "b": [2.0, 3.0]}, [0, 1]),
         Figure("bar", HOSTILE, HOSTILE, {}),
         Figure("heatmap", "Heat", "", {"v": [[0.0, math.nan], [1.0, 0.5]]}, ["x", "y"], ["r", "s"]),
         Figure("histogram", "Counts", "", {"n": [1, 2]}, [0.0, 1.0, 2.0]),
         Figure("grid", "Words", "", {"a": [[[HOSTILE, 0.5, HOSTILE, True], ["", math.nan, "", False]]],
                                      "b": [[["x", 1.0, "y", False]] * 2]}, [HOSTILE, "y"], ["r"])],
        [card], [HOSTILE])


class ReporterContract(ComponentContract):
    """Conformance suite of kind `reporter`."""

    kind: ClassVar[str] = "reporter"

    @pytest.fixture
    def run(self, tmp_path: Path) -> RunRecord:
        """A run of two steps with findings on disk."""
        folder = tmp_path / "runs" / "law"
        steps = [StepRecord(name, f"tests/{name}", "ab" * 32, folder / f"{name}-abababababab", "findings", "done", 1.5,
                            {"x": [1]}) for name in ("first", "second")]
        for step in steps:
            save(findings(), step.folder)
        return RunRecord("law", folder, tuple(steps), {"use": "nothing"}, 0, "2026-01-01T00:00:00+00:00")

    def show(self, run: RunRecord) -> Path | None:
        """Tell a fresh reporter about a whole run."""
        reporter: Reporter[object] = self.create()  # type: ignore[type-var]
        reporter.run_started(replace(run, steps=tuple(replace(s, status="waiting") for s in run.steps)))
        for step in run.steps:
            reporter.step_started(step)
            reporter.step_ended(step)
        return reporter.run_ended(run, reprbasis.registry())

    def test_shows_a_run(self, run: RunRecord) -> None:
        """It must show NaN, missing intervals, unknown names and hostile tokens. If it fails, treat text as text."""
        written = self.show(run)
        assert written is None or (written.is_file() and run.folder in written.parents)

    def test_shows_an_empty_run(self, run: RunRecord) -> None:
        """A pipeline may have nothing to do. If it fails, do not take the first step for granted."""
        written = self.show(replace(run, steps=(), model={}, started=""))
        assert written is None or written.is_file()

    @pytest.mark.parametrize("status", ["failed", "interrupted", "waiting"])
    def test_shows_a_run_that_stopped(self, run: RunRecord, status: str) -> None:
        """It is told of failures too and must not hide them by one of its own. If it fails, look at `status` first."""
        stopped = replace(run.steps[0], status=status, error=f"it broke [/] {HOSTILE}", folder=run.folder / "nothing")
        written = self.show(replace(run, steps=(stopped, replace(run.steps[1], status="waiting"))))
        assert written is None or written.is_file()

    def test_shows_a_run_with_a_damaged_artifact(self, run: RunRecord) -> None:
        """A manifest that cannot be read is worth a line, not a crash. If it fails, catch `ArtifactError`."""
        (run.steps[0].folder / "manifest.json").write_text("{")
        written = self.show(run)
        assert written is None or written.is_file()

    def test_changes_nothing_in_the_artifacts(self, run: RunRecord) -> None:
        """Reporters only look. If it fails, write beside the artifacts, into the folder of the run."""
        def content() -> dict[str, bytes]:
            return {str(p): p.read_bytes() for s in run.steps for p in sorted(s.folder.rglob("*")) if p.is_file()}
        before = content()
        self.show(run)
        assert content() == before

    def test_progress(self) -> None:
        """Work may be nested, of unknown length, and may fail. If it fails, use try/finally in the context manager."""
        progress = self.create().progress()
        if progress is None:
            return
        with progress.task("outer [/]", total=2, unit="sites") as outer:
            def fail() -> None:
                with progress.task("inner") as inner:
                    inner.update(1, loss=math.nan, phase="[/]")
                    raise KeyError
            with pytest.raises(KeyError):
                fail()
            outer.update(2)
        with progress.task("once more", total=0) as task:
            task.update(0)
