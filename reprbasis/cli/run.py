"""`reprbasis run`: run a pipeline."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from .common import STEP_COLUMNS, pipeline_arguments, read_pipeline, run_arguments, step_rows, table


def arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, --set, --until, --force, --runs, --verbose."""
    pipeline_arguments(parser)
    run_arguments(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens in detail")


def main(args: argparse.Namespace) -> int:
    """Check all four stages, then run what is not there yet."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    first = os.environ.get("RANK", "0") == "0"  # torchrun starts this several times; one process tells
    told = logging.DEBUG if args.verbose else logging.INFO
    logging.getLogger("reprbasis").setLevel(told if first else logging.ERROR)
    spec, registry = read_pipeline(args)
    from ..pipeline import wiring

    wiring.check(spec, registry)  # cheap; before torch is imported
    from ..pipeline.run import run

    record = run(spec, registry, runs=Path(args.runs), until=args.until, force=args.force)
    if first and not spec.report:
        table(STEP_COLUMNS, step_rows(record.steps))
    return 0
