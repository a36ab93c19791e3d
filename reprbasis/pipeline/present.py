"""Show findings that no pipeline made: hand them to a reporter as if a run had."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts.manifest import storage
from ..interfaces.reporter import RunRecord, StepRecord

if TYPE_CHECKING:
    from ..interfaces.evaluator import Findings
    from ..interfaces.reporter import Reporter
    from ..registry import Registry


def present(found: Mapping[str, Findings], folder: Path, reporter: Reporter[Any], registry: Registry, *, name: str,
            model: Mapping[str, Any] | None = None, config: Mapping[str, Any] | None = None, seed: int = 0,
            writer: str = "reprbasis", seconds: float = 0.0) -> Path | None:
    """Have a reporter write a page about findings.

    Args:
        found: heading -> findings; each is shown as a step of a run.
        folder: where the page goes.
        reporter: `html`, say; it decides how the file is called.
        registry: where components come from.
        name: title of the page.
        model: facts on the model, JSON values.
        config: what was asked for, JSON values; shown with every step.
        seed: that was used.
        writer: what made the findings, for example `reprbasis align`.
        seconds: it took; told with the first step.

    Returns:
        The file, if the reporter wrote one.
    """
    from ..artifacts.store import save

    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as kept:
        steps = []
        for number, (heading, findings) in enumerate(found.items()):
            place = save(findings, Path(kept) / str(number), writer={"component": writer})
            took = 0.0 if number else seconds
            steps.append(StepRecord(heading, writer, "", place, findings.type, "done", took, config, made=took))
        started = datetime.now(UTC).isoformat(timespec="seconds")
        return reporter.run_ended(RunRecord(name, folder, steps, dict(model or {}), seed, started), registry)
