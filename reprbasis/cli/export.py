"""`reprbasis export`: a basis in a foreign format."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .common import codec_options, options_of

if TYPE_CHECKING:
    from ..runtime.basis import Basis


def arguments(parser: argparse.ArgumentParser) -> None:
    """BASIS, FORMAT, OUT, --sites, --set."""
    parser.add_argument("basis", metavar="BASIS", help="folder of a saved basis")
    parser.add_argument("format", metavar="FORMAT", help="an installed codec, see `reprbasis plugins list codec`")
    parser.add_argument("out", metavar="OUT", help="new folder to write")
    parser.add_argument("--sites", metavar="SITE", nargs="+", help="only these sites, for example 'resid.*' (default: all)")
    codec_options(parser)


def main(args: argparse.Namespace) -> int:
    """Load, write, and print what was written."""
    from ..discovery import default_registry

    registry = default_registry()
    options = options_of(args)
    registry.select("codec", {"use": args.format, **options})  # cheap; before torch is imported
    from ..artifacts.exchange import export

    for path in export(_basis(args.basis), args.format, args.out, sites=args.sites, registry=registry, **options):
        print(path)
    return 0


def _basis(folder: str) -> Basis:
    from pathlib import Path

    from ..artifacts.manifest import read_manifest
    from ..artifacts.store import load
    from ..errors import UserError
    from ..runtime.basis import Basis

    if not (Path(folder) / "manifest.json").is_file():
        raise UserError("no saved basis is here", where=folder,
                        do="give the folder that holds manifest.json, such as runs/NAME/basis-...")
    kind = read_manifest(Path(folder)).type
    if kind != "basis":
        raise UserError(f"this is a saved {kind}, not a basis", where=folder, do="give the folder of a basis")
    found = load(folder)
    assert isinstance(found, Basis)
    return found
