"""Declares the reporters `rich` and `html`."""

from collections.abc import Callable

from reprbasis import Component, hookimpl

from .config import HtmlConfig, RichConfig


@hookimpl
def reprbasis_register(register: Callable[[Component], None]) -> None:
    """Offer both reporters."""
    register(Component(kind="reporter", name="rich", config=RichConfig,
                       factory="reprbasis_reports.terminal:RichReporter",
                       summary="Live progress and summary tables in the terminal"))
    register(Component(kind="reporter", name="html", config=HtmlConfig, factory="reprbasis_reports.html:HtmlReporter",
                       summary="One self-contained HTML page: curves, tables, figures and browsable features"))
