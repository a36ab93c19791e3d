"""`reprbasis push`: an artifact to the Hugging Face hub."""

from __future__ import annotations

import argparse
import sys


def arguments(parser: argparse.ArgumentParser) -> None:
    """ARTIFACT, REPO, --findings, --license, --private, --message, --stage."""
    parser.add_argument("artifact", metavar="ARTIFACT", help="folder of a saved artifact, for example a basis")
    parser.add_argument("repo", metavar="REPO", help="owner/name on the hub; made if it does not exist")
    parser.add_argument("--findings", metavar="DIR", help="findings about it, whose numbers and controls go into the model card")
    parser.add_argument("--license", metavar="ID", help="licence of the dictionary, for example apache-2.0")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--message", metavar="TEXT", help="message of the commit")
    parser.add_argument("--stage", metavar="DIR", help="upload nothing; write what would be uploaded to this new folder")


def main(args: argparse.Namespace) -> int:
    """Upload, or write the folder that would be uploaded."""
    from pathlib import Path

    from ..artifacts.hub import local_paths, push, stage
    from ..artifacts.manifest import read_manifest
    from ..errors import UserError

    folder = Path(args.artifact)
    if not (folder / "manifest.json").is_file():
        raise UserError("no artifact is here", where=args.artifact, do="give the folder that holds manifest.json")
    for path in local_paths(read_manifest(folder)):
        print(f"note: the manifest names a path of this machine, which everybody will see: {path}", file=sys.stderr)
    if args.stage:
        print(stage(folder, args.stage, repo=args.repo, findings=args.findings, license=args.license))
    else:
        print(push(folder, args.repo, findings=args.findings, license=args.license, private=args.private, message=args.message))
    return 0
