"""`reprbasis plan`: what a run would do."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import (
    STEP_COLUMNS,
    json_argument,
    pipeline_arguments,
    print_json,
    read_pipeline,
    run_arguments,
    step_json,
    step_rows,
    table,
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, --set, --until, --force, --runs, --json."""
    pipeline_arguments(parser)
    run_arguments(parser)
    json_argument(parser)


def main(args: argparse.Namespace) -> int:
    """Plan, which does all four stages of checking but loads no weights."""
    spec, registry = read_pipeline(args)
    from ..pipeline.run import plan

    steps = plan(spec, registry, runs=Path(args.runs), until=args.until, force=args.force)
    if args.json:
        print_json([step_json(s) for s in steps])
    else:
        table(STEP_COLUMNS, step_rows(steps))
    return 0
