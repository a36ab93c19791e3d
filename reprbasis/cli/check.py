"""`reprbasis check`: the stages of checking, cheapest first."""

from __future__ import annotations

import argparse

from .common import json_argument, pipeline_arguments, print_json, read_pipeline


def arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, --set, --facts, --json."""
    pipeline_arguments(parser)
    parser.add_argument("--facts", action="store_true",
                        help="also read the model's config: do the sites exist, do the widths agree (imports torch)")
    json_argument(parser)


def main(args: argparse.Namespace) -> int:
    """Check: read, shape, wiring, and with --facts the model's config."""
    from ..errors import ConfigError
    from ..pipeline import wiring

    stage = "read and shape"
    try:
        spec, registry = read_pipeline(args)
        stage = "wiring"
        order = wiring.check(spec, registry)
        if args.facts:
            from ..pipeline import facts

            stage = "facts"
            facts.check(spec, registry)
    except ConfigError as error:
        if not args.json:
            raise
        print_json({"ok": False, "stage": error.stage,
                    "problems": [{"what": p.what, "where": p.where, "do": p.do} for p in error.problems]})
        return error.exit_code
    if args.json:
        print_json({"ok": True, "stage": stage, "order": order, "pipeline": spec.dump()})
    else:
        stages = "read, shape, wiring" + (", facts" if args.facts else "")
        print(f"{args.file}: fine ({stages}); steps: {' -> '.join(order)}")
    return 0
