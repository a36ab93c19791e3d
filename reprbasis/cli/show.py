"""`reprbasis show`: what a run did."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import STEP_COLUMNS, json_argument, print_json, step_json, step_rows, table


def arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, --json."""
    parser.add_argument("run", metavar="RUN", help="folder of a run, for example runs/NAME")
    json_argument(parser)


def main(args: argparse.Namespace) -> int:
    """Show the record of a run; exit code 1 if a step of it failed or was interrupted."""
    from ..errors import ArtifactError, near
    from ..pipeline.run import read_record

    folder = Path(args.run)
    if not (folder / "run.json").is_file():
        known = sorted(str(p.parent) for p in [*Path("runs").glob("*/run.json"), *folder.glob("*/run.json")])
        raise ArtifactError("no run is recorded here", where=args.run,
                            do=near(args.run, known) or "give a folder such as runs/NAME")
    record = read_record(folder)
    failed = [s for s in record.steps if s.status in ("failed", "interrupted")]
    if args.json:
        print_json({"name": record.name, "folder": record.folder, "model": record.model, "seed": record.seed,
                    "started": record.started, "source": record.source, "steps": [step_json(s) for s in record.steps]})
    else:
        table(STEP_COLUMNS, step_rows(record.steps), f"{record.name}, seed {record.seed}, started {record.started}")
        for step in failed:
            print(f"\n{step.name} {step.status}: {step.error}")
    return 1 if failed else 0
