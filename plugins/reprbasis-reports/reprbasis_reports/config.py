"""Options of the reporters."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from reprbasis.component import ComponentConfig


class RichConfig(ComponentConfig):
    """Live progress and summary tables in the terminal."""

    after: float = Field(2.0, ge=0)
    """Show work only once it has lasted this many seconds."""

    every: float = Field(10.0, ge=0)
    """Without a terminal: seconds between two progress lines of one piece of work."""

    tables: bool = True
    """Print the measurements when the run is over."""


class HtmlConfig(ComponentConfig):
    """One self-contained HTML page."""

    file: str = Field("report.html", pattern=r"^[^/\\]+\.html$")
    """Name of the page within the folder of the run."""


class MarkdownConfig(ComponentConfig):
    """One Markdown page."""

    path: Path | None = None
    """Where it goes; null: `results.md` in the folder of the run."""

    names: tuple[str, ...] = ("l0", "ev", "kl_recovered", "ce_recovered")
    """Measurements in the table per site."""

    compare: tuple[str, ...] = ()
    """For runs with several evaluations: one table per site with these measurements as columns and every evaluation as a row, in
    place of the tables for one evaluation.
    """

    features: int = Field(20, ge=0)
    """Feature cards shown."""

    title: str = ""
    """First line of the page; empty: `Results of` and the name of the run."""

    comment: str = ""
    """What the numbers mean, in your words; put after the steps."""
