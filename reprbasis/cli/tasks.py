"""`reprbasis tasks`: which tasks there are, and how well a model does them."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .common import json_argument, pick_model, print_json, selected, table

if TYPE_CHECKING:
    from ..kits.intervals import Estimate
    from ..runtime.trial import Trial

SPLITS = ("train", "validation", "test")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Actions: list, try MODEL TASK."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list the installed tasks")
    json_argument(listing)
    attempt = actions.add_parser("try", help="run a task's prompts through the unchanged model")
    attempt.add_argument("model", metavar="MODEL", help="a checkpoint, or with options: '{use: NAME, option: value}'")
    attempt.add_argument("task", metavar="TASK", help="a task by name, or with options: '{use: NAME, option: value}'")
    attempt.add_argument("--use", metavar="NAME", help="the model adapter (default: the one that can run the checkpoint)")
    attempt.add_argument("-n", type=_positive, default=100, help="pairs (default: 100)")
    attempt.add_argument("--split", choices=SPLITS, default="validation", help="which pairs (default: validation)")
    attempt.add_argument("--seed", type=int, default=0, help="of the choice of pairs (default: 0)")
    attempt.add_argument("--batch", type=_positive, default=16, help="prompts run together (default: 16)")
    attempt.add_argument("--examples", type=int, default=4, metavar="N", help="prompts to show (default: 4)")
    json_argument(attempt)


def main(args: argparse.Namespace) -> int:
    """Dispatch to the action."""
    from ..discovery import default_registry

    registry = default_registry()
    if args.action == "list":
        tasks = registry.components("task")
        if args.json:
            print_json([{"name": r.name, "full_name": r.full_name, "summary": r.component.summary} for r in tasks])
        else:
            table(("task", "summary", "from"), [(r.name, r.component.summary, r.origin) for r in tasks])
        return 0
    task = selected(registry, "task", args.task, "TASK")
    chosen = pick_model(registry, args.model, args.use)
    from ..runtime.trial import trial

    model, began = registry.build(chosen), time.monotonic()
    found = trial(model, registry.build(task), split=args.split, n=args.n, batch=args.batch, seed=args.seed,
                  examples=args.examples)
    if args.json:
        print_json({"model": chosen.dump(), "task": task.dump(), "split": args.split, "seed": args.seed, **asdict(found)})
    else:
        _print(found, f"{args.task} ({args.split}, seed {args.seed}) on {args.model}, {time.monotonic() - began:.1f} s")
    return 0


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _print(found: Trial, title: str) -> None:
    from ..runtime.trial import BY_CASE, MEASURES

    table(("measure", "value", "95 % interval", "n", "meaning"),
          [(name, *_cells(e), MEASURES[name]) for name, e in found.overall.items()], title)
    if found.cases:
        print()
        rows = [(case, str(measures["choice"].n), *(" ".join(filter(None, _cells(e)[:2])) for e in measures.values()))
                for case, measures in found.cases.items()]
        table(("case", "n", *BY_CASE), rows)
    if found.examples:
        print()
        table(("prompt", "answer", "wrong", "right", "likeliest next tokens"), [
            (repr(e.prompt), _quoted(e.answer), _quoted(e.wrong), "yes" if e.correct else "no",
             "  ".join(f"{token!r} {p:.2f}" for token, p in e.top)) for e in found.examples])


def _cells(e: Estimate) -> tuple[str, str, str]:
    return f"{e.value:.3g}", "" if e.low is None or e.high is None else f"[{e.low:.3g}, {e.high:.3g}]", str(e.n)


def _quoted(text: Any) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
