"""Reporter `html`: one self-contained page. The data are embedded as JSON; the page's own script draws them."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reprbasis.artifacts.manifest import write_bytes
from reprbasis.interfaces.reporter import Reporter, RunRecord
from reprbasis.kits.pages import embed, escape, fill

from .config import HtmlConfig
from .findings import Saved, saved

if TYPE_CHECKING:
    from reprbasis.registry import Registry

SCRIPTS = ("core.js", "charts.js", "report.js", "features.js")
FOUND = ("measurements", "figures", "features", "notes")


class HtmlReporter(Reporter[HtmlConfig]):
    """Writes `runs/NAME/report.html` when the run is over, however it ended."""

    def run_ended(self, run: RunRecord, registry: Registry) -> Path:
        """Write the page.

        Raises:
            StorageError: it cannot be written.
        """
        path = run.folder / self.config.file
        write_bytes(path, page(collect(run)).encode())
        return path


def page(data: Mapping[str, Any]) -> str:
    """The page with these data in it."""
    source = files(__package__) / "page"

    def read(name: str) -> str:
        return (source / name).read_text("utf-8")

    parts = {"TITLE": escape(str(data["run"]["name"])), "STYLE": read("report.css"),
             "SCRIPT": "\n".join(map(read, SCRIPTS)), "DATA": embed(data)}
    return fill(read("template.html"), parts)


def collect(run: RunRecord) -> dict[str, Any]:
    """Everything that the page shows, as JSON values."""
    steps = saved(run)
    return {
        "run": {"name": run.name, "started": run.started, "seed": run.seed, "model": dict(run.model),
                "source": Path(run.source).name if run.source else None, "versions": _versions(steps)},
        "steps": [_step(s) for s in steps],
        "curves": [{"step": s.step.name, "history": s.rows("history")} for s in steps if s.rows("history")],
        "findings": [{"step": s.step.name, **{k: s.rows(k) for k in FOUND}} for s in steps if any(map(s.rows, FOUND))],
    }


def _step(saved: Saved) -> dict[str, Any]:
    step = saved.step
    writer = dict(saved.manifest.writer) if saved.manifest else {}
    return {"name": step.name, "component": writer.get("component", step.component),
            "version": writer.get("version", ""),
            "status": step.status, "seconds": step.seconds, "made": step.made,
            "error": step.error or saved.problem, "config": step.config,
            "fingerprint": step.fingerprint, "folder": step.folder.name, "artifact": step.artifact,
            "facts": {k: _short(v) for k, v in saved.facts.items() if k not in ("history", *FOUND)},
            "bytes": sum(f.bytes for f in saved.manifest.files.values()) if saved.manifest else 0}


def _short(value: Any, most: int = 200) -> Any:
    """Facts for the page: long lists and tables are replaced by their size."""
    if isinstance(value, Mapping):
        return {str(k): _short(v) for k, v in value.items()} if len(value) <= most else f"{len(value)} entries"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_short(v) for v in value] if len(value) <= most else f"{len(value)} entries"
    return value


def _versions(steps: Sequence[Saved]) -> dict[str, str]:
    out = {"python": platform.python_version()}
    writers = [str(s.manifest.writer.get("component", "")).partition("/")[0] for s in steps if s.manifest]
    for name in dict.fromkeys(["reprbasis", *filter(None, writers), "torch", "transformers"]):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "not installed"
    return out
