"""`reprbasis pull`: an artifact from the Hugging Face hub."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """REPO, OUT, --revision."""
    parser.add_argument("source", metavar="REPO", help="owner/name on the hub, or a folder as `push --stage` writes it")
    parser.add_argument("out", metavar="OUT", help="new folder for the artifact")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit (a commit pins the bytes)")


def main(args: argparse.Namespace) -> int:
    """Download, verify, and say what it is."""
    from ..artifacts.hub import pull
    from ..artifacts.manifest import read_manifest

    manifest = read_manifest(pull(args.source, args.out, revision=args.revision))
    made = manifest.facts.get("learner")
    print(f"{args.out}: {manifest.type}, {len(manifest.files)} files verified" + (f", made by {made}" if made else ""))
    return 0
