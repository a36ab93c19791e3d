"""Declares the reporters `rich`, `html` and `markdown`."""

from collections.abc import Callable

from reprbasis import Component, hookimpl

from .config import HtmlConfig, MarkdownConfig, RichConfig


@hookimpl
def reprbasis_register(register: Callable[[Component], None]) -> None:
    """Offer the reporters."""
    register(Component(kind="reporter", name="rich", config=RichConfig,
                       factory="reprbasis_reports.terminal:RichReporter",
                       summary="Live progress and summary tables in the terminal"))
    register(Component(kind="reporter", name="html", config=HtmlConfig, factory="reprbasis_reports.html:HtmlReporter",
                       summary="One self-contained HTML page: curves, tables, figures and browsable features"))
    register(Component(kind="reporter", name="markdown", config=MarkdownConfig,
                       factory="reprbasis_reports.markdown:MarkdownReporter",
                       summary="A page of results as Markdown: every number beside its control, with n and interval"))
