"""Reporter `graphs`: writes every graph of a run beside its artifacts, as a page, as SVG and as JSON."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reprbasis.artifacts.manifest import read_manifest, write_bytes
from reprbasis.errors import ArtifactError
from reprbasis.interfaces.graph import Graph
from reprbasis.interfaces.reporter import Reporter, RunRecord

from .config import GraphsConfig
from .html import page
from .neuronpedia import text
from .svg import svg

if TYPE_CHECKING:
    from reprbasis.registry import Registry

log = logging.getLogger(__name__)


class GraphsReporter(Reporter[GraphsConfig]):
    """Writes `runs/NAME/STEP.html`, `STEP.svg` and `STEP.json` for every step that made a graph."""

    def run_ended(self, run: RunRecord, registry: Registry) -> Path | None:
        """Write the files; returns the page (or the first file) of the last graph.

        Raises:
            StorageError: one cannot be written.
        """
        shown: Path | None = None
        for step in run.steps:
            if step.artifact != Graph.type or step.status not in ("done", "reused"):
                continue
            try:
                graph = Graph.of(read_manifest(step.folder).facts)
            except ArtifactError as error:
                log.warning("the graph of step %s cannot be drawn: %s", step.name, error)
                continue
            paths = [run.folder / f"{step.name}.{ending}" for ending in self.config.formats]
            for path, ending in zip(paths, self.config.formats, strict=True):
                write_bytes(path, self.written(graph, ending, name=f"{run.name}-{step.name}", model=run.model).encode())
            shown = paths[0]
        return shown

    def written(self, graph: Graph, ending: str, *, name: str = "", model: Any = None) -> str:
        """One graph as text in one of the formats."""
        if ending == "html":
            return page(graph, edges=self.config.edges)
        if ending == "svg":
            return svg(graph, edges=self.config.edges)
        scan = self.config.scan or str((model or {}).get("checkpoint", ""))
        return text(graph, name=name, scan=scan, source_set=self.config.source_set)
