"""`reprbasis import`: a foreign dictionary as a basis."""

from __future__ import annotations

import argparse

from .common import codec_options, options_of


def arguments(parser: argparse.ArgumentParser) -> None:
    """PATH, FORMAT, --as, --set."""
    parser.add_argument("path", metavar="PATH", help="folder of a checkpoint")
    parser.add_argument("format", metavar="FORMAT", nargs="?",
                        help="an installed codec (`reprbasis plugins list codec`); by default the one that recognises the folder")
    parser.add_argument("--as", dest="out", metavar="OUT", required=True, help="new folder for the basis")
    codec_options(parser)


def main(args: argparse.Namespace) -> int:
    """Read, save, and say what it is."""
    from pathlib import Path

    from ..discovery import default_registry
    from ..errors import UserError

    registry = default_registry()
    options = options_of(args)
    if args.format:
        registry.select("codec", {"use": args.format, **options})  # cheap; before torch is imported
    if Path(args.out).exists():
        raise UserError("something is here already", where=args.out, do="choose another folder with --as")
    from ..artifacts.exchange import import_
    from ..artifacts.store import save

    basis = import_(args.path, args.format, registry=registry, **options)
    sites = ", ".join(map(str, basis.sites))
    print(f"{save(basis, args.out)}: {sites}, {basis.d_in} -> {basis.d_dict}, {basis.learner.full_name}")
    return 0
