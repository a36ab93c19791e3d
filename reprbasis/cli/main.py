"""The command `reprbasis`. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from ..errors import ConfigError, ReprBasisError

COMMANDS = {
    "plugins": "list the installed components, show one, or find out what is broken",
    "check": "check a pipeline file without running it",
    "plan": "show what a run would do and what it would reuse",
    "run": "run a pipeline; finished steps are reused, interrupted ones go on",
    "show": "show a run",
    "export": "write a basis in the format of another library",
    "import": "read a dictionary of another library as a basis",
    "push": "upload an artifact to the Hugging Face hub, with a model card",
    "pull": "download an artifact from the Hugging Face hub and verify it",
    "survey": "tell what a corpus is made of: domains, lengths, steps, repetitions, coverage",
    "tasks": "find out which tasks a model can do",
    "lens": "see what every layer of a model reads as, token by token, or what a feature says",
    "edit": "make a model say otherwise: plan, measure, export, revert",
    "align": "find out whether one model's space is a linear image of another's",
    "new": "write a new plugin: a small component of any kind that works and is proven",
}
"""Subcommand -> summary; each is a module of this package with `arguments(parser)` and `main(args) -> exit code`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 fine, 1 the run failed, 2 the input is wrong, 130 interrupted)."""
    try:
        return _main(sys.argv[1:] if argv is None else list(argv))
    except ReprBasisError as error:
        sys.stdout.flush()
        print(_message(error), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (`| head`) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _main(argv: list[str]) -> int:
    about = "Read and edit language models in one unified feature space."
    parser = argparse.ArgumentParser(prog="reprbasis", description=about)
    parser.add_argument("--version", action="version", version=f"reprbasis {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name in argv[:1]:
            import_module(f".{name}", __package__).arguments(command)
    if not argv:
        parser.print_help(sys.stderr)
        return 2
    args = parser.parse_args(argv)
    code: int = import_module(f".{args.command}", __package__).main(args)
    return code


def _message(error: ReprBasisError) -> str:
    if isinstance(error, ConfigError) and len(error.problems) > 1:
        return f"{len(error.problems)} problems:\n{error}"
    return str(error)
