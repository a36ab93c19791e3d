"""What the steps of a run saved, as plain values, without loading a tensor.

Reporters show what is in a manifest's facts: measurements, figures and features wherever there are some, a training
history wherever there is one. Nothing here knows which step or evaluator wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from reprbasis.artifacts.manifest import Manifest, read_manifest
from reprbasis.errors import ArtifactError
from reprbasis.interfaces.reporter import RunRecord, StepRecord

_SITE = re.compile(r"^[a-z][a-z0-9_.]*?(\.\d+)?$")
TOGETHER = "several at once"
"""Family of measurements whose `site` is not one site, such as `all resid.*`."""


@dataclass(frozen=True)
class Saved:
    """One step and what it left.

    Args:
        step: its record.
        manifest: of its artifact; None when there is none or it cannot be read.
        problem: why the manifest could not be read.
    """

    step: StepRecord
    manifest: Manifest | None = None
    problem: str | None = None

    @property
    def facts(self) -> Mapping[str, Any]:
        """The artifact's facts, empty without one."""
        return self.manifest.facts if self.manifest else {}

    def rows(self, name: str) -> list[Any]:
        """The list of that name in the facts, empty when there is none."""
        found = self.facts.get(name)
        return list(found) if isinstance(found, list | tuple) else []


def saved(run: RunRecord) -> list[Saved]:
    """What every step left, in execution order; a damaged manifest is named, not raised."""
    out = []
    for step in run.steps:
        if step.status not in ("done", "reused"):
            out.append(Saved(step))
            continue
        try:
            out.append(Saved(step, read_manifest(step.folder)))
        except ArtifactError as error:
            out.append(Saved(step, problem=str(error)))
    return out


def family(site: str | None) -> str:
    """`resid` for `resid.14`, `TOGETHER` for selections of several sites, '' for None."""
    if site is None:
        return ""
    return re.sub(r"\.\d+$", "", site) if _SITE.match(site) else TOGETHER


@dataclass
class Cell:
    """Measurements of one name and condition within a group of sites."""

    values: list[float] = field(default_factory=list)
    low: float | None = None
    high: float | None = None

    @property
    def middle(self) -> float:
        """Median over the sites."""
        return median(self.values)


Summary = dict[str, dict[tuple[str, int], dict[str, Cell]]]


def summary(measurements: Iterable[Mapping[str, Any]]) -> Summary:
    """Name -> (group of sites, number of sites) -> condition -> cell.

    Sites of one family form a group; `several at once` and measurements without a site stand for themselves.
    """
    table: dict[str, dict[str, dict[str, Cell]]] = {}
    for m in measurements:
        group = family(m.get("site"))
        group = str(m["site"]) if group == TOGETHER else group or "overall"
        cell = table.setdefault(m["name"], {}).setdefault(group, {}).setdefault(m.get("condition") or "", Cell())
        cell.values.append(float("nan") if m["value"] is None else float(m["value"]))
        cell.low, cell.high = m.get("low"), m.get("high")
    return {name: {(group, max(len(c.values) for c in cells.values())): cells for group, cells in groups.items()}
            for name, groups in table.items()}
