"""Arguments and output shared by the commands."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..config import Selection
    from ..interfaces.reporter import StepRecord
    from ..pipeline.spec import PipelineSpec
    from ..registry import Registry


def pipeline_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE and `--set`."""
    parser.add_argument("file", metavar="FILE", help="a pipeline in YAML")
    parser.add_argument("--set", dest="overrides", metavar="a.b=c", action="append", default=[],
                        help="change a value, for example steps.basis.learner.width=64 (may be repeated)")


def run_arguments(parser: argparse.ArgumentParser) -> None:
    """`--until`, `--force` and `--runs`."""
    parser.add_argument("--until", metavar="STEP", help="stop after this step")
    parser.add_argument("--force", metavar="STEP", nargs="?", const="*", action="append", default=[],
                        help="run a step even if its artifact exists; without STEP: all steps (may be repeated)")
    parser.add_argument("--runs", metavar="DIR", default="runs", help="directory of all runs (default: runs)")


def json_argument(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def codec_options(parser: argparse.ArgumentParser) -> None:
    """`--set` for the options of a codec."""
    parser.add_argument("--set", dest="options", metavar="option=value", action="append", default=[],
                        help="an option of the codec, see `reprbasis plugins show codec:FORMAT` (may be repeated)")


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `codec_options`; values are read as YAML.

    Raises:
        ConfigError: one has another form; all problems together.
    """
    from ..config.strict_yaml import parse_yaml
    from ..errors import ConfigError, Problem

    found, problems = {}, []
    for text in args.options:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()):
            problems.append(Problem("this is not an option", f"--set {text}", "write --set option=value"))
            continue
        try:
            found[name] = parse_yaml(value, f"--set {text}").data
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems, stage="read")
    return found


def read_pipeline(args: argparse.Namespace) -> tuple[PipelineSpec, Registry]:
    """The pipeline of `pipeline_arguments`, checked up to stage 2, and the registry."""
    from ..discovery import default_registry
    from ..pipeline.spec import read

    registry = default_registry()
    return read(args.file, args.overrides, registry), registry


def selected(registry: Registry, kind: str, given: str, option: str) -> Selection:
    """What an argument selects: a name, or `{use: NAME, option: value}`.

    Args:
        registry: where components come from.
        kind: of component.
        given: the argument.
        option: which argument it is; messages name it.

    Raises:
        ConfigError: it is not YAML, or names no component or wrong options; every problem says where.
    """
    from dataclasses import replace

    from ..config.strict_yaml import parse_yaml
    from ..errors import ConfigError

    told = f"{option} {given}"
    try:
        return registry.select(kind, parse_yaml(given, told).data)
    except ConfigError as error:
        raise ConfigError([replace(p, where=p.where or told) for p in error.problems], stage=error.stage) from None


def pick_model(registry: Registry, given: str, use: str | None = None) -> Selection:
    """The model that a command line names: a checkpoint, or `{use: NAME, option: value}`.

    Args:
        registry: where adapters come from.
        given: the argument.
        use: name of the adapter; None: the first installed one, by name, that can run the checkpoint.

    Raises:
        UserError: no adapter runs the checkpoint; says what each of them said, or what they all said.
    """
    from ..errors import ReprBasisError, UserError

    if given.lstrip().startswith("{"):
        return selected(registry, "model", given, "MODEL")
    if use is not None:
        return registry.select("model", {"use": use, "checkpoint": given})
    said: dict[str, ReprBasisError] = {}
    for found in registry.components("model"):
        if "checkpoint" not in found.component.config.model_fields:
            continue
        try:
            selection = registry.select("model", {"use": found.full_name, "checkpoint": given})
            registry.load("model", found.full_name).describe(selection.config)
        except ReprBasisError as error:
            said[found.name] = error
        else:
            return selection
    if len({error.what for error in said.values()}) == 1:
        raise next(iter(said.values()))
    raise UserError(f"no installed adapter runs '{given}'",
                    do="\n     ".join(f"{name}: {error.what}" for name, error in said.items())
                    or "pip install a plugin with a model adapter; see `reprbasis plugins list model`")


def print_json(value: Any) -> None:
    """Print JSON values."""
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """Print a table: with rich on a terminal, as aligned plain text anywhere else (where nothing is cut off)."""
    rows = [tuple(row) for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        shown = Table(*columns, title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
        for row in rows:
            shown.add_row(*(cell.replace("[", r"\[") for cell in row))
        Console().print(shown)
        return
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    if title:
        print(title)
    for line in (columns, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def step_rows(steps: Iterable[StepRecord]) -> list[tuple[str, ...]]:
    """Rows of a table of steps."""
    return [(s.name, s.component, s.artifact, s.status, f"{s.made or s.seconds:.1f} s" if s.made or s.seconds else "",
             str(s.folder)) for s in steps]


STEP_COLUMNS = ("step", "component", "makes", "status", "time", "folder")


def step_json(step: StepRecord) -> dict[str, Any]:
    """A step record as JSON values."""
    from dataclasses import asdict

    return asdict(step) | {"folder": str(step.folder)}
