"""Reporter `markdown`: a page of results as text, fit for a repository: what was run, every number beside its control."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from reprbasis.artifacts.manifest import write_bytes
from reprbasis.interfaces.reporter import Reporter, RunRecord

from .config import MarkdownConfig
from .findings import TOGETHER, Saved, family, saved

if TYPE_CHECKING:
    from reprbasis.registry import Registry

HIGHER = ("ev", "kl_recovered", "ce_recovered")
"""Measurements for which a count of the sites where the main condition beats each control is given."""


class MarkdownReporter(Reporter[MarkdownConfig]):
    """Writes one Markdown page when the run is over."""

    def run_ended(self, run: RunRecord, registry: Registry) -> Path:
        """Write the page.

        Raises:
            StorageError: it cannot be written.
        """
        path = self.config.path or run.folder / "results.md"
        write_bytes(path, (page(run, self.config) + "\n").encode())
        return path


def page(run: RunRecord, config: MarkdownConfig) -> str:
    """The page as text."""
    steps = saved(run)
    found = [m for s in steps for m in s.rows("measurements")]
    notes: dict[str, list[str]] = {}  # note -> steps
    for s in steps:
        for n in s.rows("notes"):
            notes.setdefault(n, []).append(s.step.name)
    single = {n: where[0] for n, where in notes.items() if config.compare and len(where) == 1}
    source = Path(run.source).as_posix() if run.source else "PIPELINE"
    changed = [f" --set {shlex.quote(o)}" for o in run.overrides if not o.startswith("report")]
    command = f"reprbasis run {Path(source).name if Path(source).is_absolute() else source}" + "".join(changed)
    model = ", ".join(f"{k} {v}" for k, v in run.model.items() if k in ("checkpoint", "family", "dtype", "n_layers", "d_model"))
    seeds = " (one seed)" if not config.compare else ""
    parts = [f"# {config.title or f'Results of `{run.name}`'}",
             f"Command: `{command}`. Date: {run.started[:10]}. Seed: {run.seed}{seeds}.",
             f"Model: {model or 'none'}; weights {str(run.model.get('revision'))[:12]}.", "",
             *(f"- {n}" for n in notes if n not in single)]
    parts += ["", "## Steps", "", *_table(("step", "component", "status", "seconds"), (
        (s.step.name, s.step.component, s.step.status, f"{s.step.made:.0f}" if s.step.made else "-") for s in steps))]
    parts += ["", *config.comment.strip().splitlines()] if config.comment else []
    if found and config.compare:
        parts += ["", "## Evaluations side by side", "", *_medians(steps, config.compare), "", *_compare(steps, config.compare)]
        if single:
            parts += ["", "## Notes of single evaluations", "", *(f"- {where}: {n}" for n, where in single.items())]
    elif found:
        about = "Value [95 % interval]; `n` is the number of units it rests on."
        for title, rows in (("What beats what", _wins(found)), ("All at once and overall", _overall(found)),
                            ("Per site", _sites(found, config.names))):
            if len(rows) > 2:  # more than a head
                parts += ["", f"## {title}", "", *([about, ""] if title == "Per site" else []), *rows]
    cards = [c for s in steps for c in s.rows("features")][:config.features]
    if cards:
        parts += ["", f"## {len(cards)} features, the first of those drawn at random", "", *_features(cards)]
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(r) + " |" for r in rows)]


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def _cell(m: Mapping[str, Any] | None) -> str:
    if m is None:
        return ""
    interval = "" if m["low"] is None else f" [{_number(m['low'])}, {_number(m['high'])}]"
    return _number(m["value"]) + interval


def _wins(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """At how many sites the main condition (the first that occurs) is above each control."""
    rows = []
    for name in HIGHER:
        values: dict[str, dict[str, float]] = {}
        for m in found:
            if m["name"] == name and family(m["site"]) not in ("", TOGETHER):
                values.setdefault(m["condition"], {})[m["site"]] = m["value"]
        if not values:
            continue
        main, *controls = values
        levels = {c: values[c] for c in controls} | {"mean (0 by definition)": dict.fromkeys(values[main], 0.0)}
        for control, other in levels.items():
            both = [s for s in values[main] if s in other]
            wins = sum(values[main][s] > other[s] for s in both)
            lost = ", ".join(s for s in both if values[main][s] <= other[s]) or "none"
            rows.append((name, f"{main} > {control}", f"{wins} of {len(both)} sites", lost))
    return _table(("measure", "comparison", "holds at", "fails at"), rows)


def _overall(found: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [m for m in found if family(m["site"]) in ("", TOGETHER)]
    return _table(("what", "measure", "condition", "value [95 % interval]", "n"),
                  ((m["site"] or "overall", m["name"], m["condition"], _cell(m), str(m["n"])) for m in rows))


def _sites(found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    rows = [m for m in found if family(m["site"]) not in ("", TOGETHER) and m["name"] in names]
    columns = [(n, c) for n in names for c in dict.fromkeys(m["condition"] for m in rows if m["name"] == n)]
    at = {(m["site"], m["name"], m["condition"]): m for m in rows}
    sites = dict.fromkeys(m["site"] for m in rows)
    body = ((s, str(max(at[k]["n"] for k in at if k[0] == s)), *(_cell(at.get((s, n, c))) for n, c in columns)) for s in sites)
    return _table(("site", "n", *(f"{n} {c}" for n, c in columns)), body)


def _medians(steps: Sequence[Saved], names: Sequence[str]) -> list[str]:
    """One row for each evaluation: medians over sites under its main condition, and how long its own inputs took.

    The main condition is the one that has most of the measures (a control such as mean ablation lacks some), of equals the first.
    """
    several = [s for s in steps if s.manifest and s.rows("measurements")]
    inputs = [set(s.manifest.inputs.values()) for s in several if s.manifest]
    own = [used - set.intersection(*inputs) for used in inputs]
    made = {s.step.fingerprint: s.step.made for s in steps}
    rows = []
    for s, used in zip(several, own, strict=True):
        measured: dict[str, set[str]] = {}
        for m in s.rows("measurements"):
            measured.setdefault(m["condition"], set()).update({m["name"]}.intersection(names))
        main = max(measured, key=lambda condition: len(measured[condition]))
        values = ([m["value"] for m in s.rows("measurements") if (m["name"], m["condition"]) == (n, main)] for n in names)
        seconds = sum(made.get(fingerprint, 0.0) for fingerprint in used)
        rows.append((s.step.name, f"{seconds:.0f}" if seconds else "-", *(_number(median(v)) if v else "" for v in values)))
    about = ("Medians over sites under the main condition of each (controls are below). Seconds: making those inputs that not "
             "all evaluations share.")
    return [about, "", *_table(("evaluation", "seconds", *names), rows)]


def _compare(steps: Sequence[Saved], names: Sequence[str]) -> list[str]:
    """One table per site; a condition that is the same in every evaluation (such as mean ablation) has one row."""
    sites: dict[str, dict[str, dict[str, dict[str, str]]]] = {}  # site -> condition -> step -> name -> cell
    for s in steps:
        for m in s.rows("measurements"):
            if m["name"] in names:
                of = sites.setdefault(m["site"] or "overall", {}).setdefault(m["condition"], {})
                of.setdefault(s.step.name, {})[m["name"]] = _cell(m)
    out = ["Value [95 % interval]."]
    for site, conditions in sites.items():
        rows = []
        for condition, by_step in conditions.items():
            shared = len(by_step) > 1 and len({tuple(cells.items()) for cells in by_step.values()}) == 1
            for step, cells in list(by_step.items())[:1 if shared else None]:
                rows.append(("(all)" if shared else step, condition, *(cells.get(n, "") for n in names)))
        out += ["", f"### {site}", "", *_table(("evaluation", "condition", *names), rows)]
    return out


def _features(cards: Sequence[Mapping[str, Any]]) -> list[str]:
    def quote(text: str) -> str:
        return text.replace("\n", "\\n").replace("|", "\\|").replace("`", "'")

    def context(c: Mapping[str, Any]) -> str:
        tokens, peak = [quote(t) for t in c["tokens"]], c["peak"]
        before, after = "".join(tokens[max(peak - 6, 0):peak]), "".join(tokens[peak + 1:peak + 4])
        return f"`{before}`**`{tokens[peak]}`**`{after}`"

    rows = []
    for c in cards:
        where = ", ".join(f"{s} {v:.0%}" for s, v in sorted(c["sites"].items(), key=lambda kv: -kv[1])[:3])
        rows.append((str(c["latent"]), where, "<br>".join(map(context, c["contexts"][:3])),
                     " ".join(f"`{quote(t)}`" for t, _ in c["promoted"][:5])))
    return _table(("latent", "lives at", "top contexts (peak in bold)", "promotes"), rows)
