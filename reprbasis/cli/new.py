"""`reprbasis new`: a complete third-party distribution to start from."""

from __future__ import annotations

import argparse
import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from ..artifacts.manifest import storage
from ..component import KINDS
from ..discovery import default_registry, known
from ..errors import UnknownComponentError, UserError, near

SUMMARIES = {
    "model": "Models of one Transformers family, by a table of module names",
    "corpus": "The lines of a text file",
    "task": "Number agreement over a distractor: is or are",
    "learner": "Sparse dictionary: ReLU codes with an L1 penalty",
    "scorer": "Gradient times the difference between the clean and the corrupted run",
    "finder": "The latents of largest absolute score",
    "editor": "Scale what the MLPs write along the directions of some latents",
    "lens": "The logit lens: every site read through the unembedding",
    "aligner": "Ridge regression between two spaces",
    "metric": "Entropy of the next-token distribution at the last token, nats",
    "evaluator": "Variance unexplained per site on held-out text, beside a control",
    "judge": "The words that were marked, and nothing of what they mean",
    "codec": "A basis as one JSON and one safetensors file",
    "step": "How near the directions of a dictionary lie to each other",
    "reporter": "One text file with the steps and their measurements",
}
"""Kind -> what the template of that kind does."""

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def arguments(parser: argparse.ArgumentParser) -> None:
    """KIND, NAME, --summary, --into."""
    parser.add_argument("kind", metavar="KIND", help=f"one of {', '.join(KINDS)}")
    parser.add_argument("name", metavar="NAME", help="how it is called in pipelines, for example my-sae")
    parser.add_argument("--summary", metavar="TEXT", help="one line for listings (default: what the template does)")
    parser.add_argument("--into", metavar="DIR", default=".", help="where to put its folder (default: here)")


def main(args: argparse.Namespace) -> int:
    """Write the distribution and say what to do next."""
    target = create(args.kind, args.name, Path(args.into), summary=args.summary)
    package = target.name.replace("-", "_")
    print(f"wrote {target}: a small {args.kind} that works and passes its conformance suite. Next:\n\n"
          f"  pip install -e '{target}[test]'\n"
          f"  pytest {target}\n"
          f"  reprbasis plugins show {args.kind}:{args.name}\n\n"
          f"then make it yours: {package}/config.py (options), {package}/{args.kind}.py (what it does), "
          f"{package}/plugin.py (what it says of itself).")
    return 0


def create(kind: str, name: str, into: Path, *, summary: str | None = None) -> Path:
    """Write the distribution `reprbasis-NAME` into a new folder below `into`, from the template of its kind.

    Args:
        kind: of component.
        name: short name of the component.
        into: made if need be.
        summary: one line for listings; None: what the template does.

    Returns:
        The folder.

    Raises:
        UnknownComponentError: there is no such kind.
        UserError: the name is malformed or taken, the summary is no plain line, or the folder exists.
        StorageError: the folder cannot be written.
    """
    if kind not in KINDS:
        raise UnknownComponentError(f"there is no kind of component '{kind}'", do=near(kind, KINDS))
    _check_name(kind, name)
    summary = SUMMARIES[kind] if summary is None else summary.strip()
    if not summary or not summary.isprintable() or set(summary) & {'"', "\\"}:
        raise UserError("the summary is not a plain line of text", do="write one line without double quotes or backslashes")
    target = into / f"reprbasis-{name}"
    if target.exists():
        raise UserError("something is here already", where=str(target), do="choose another name, or --into another folder")
    package = target.name.replace("-", "_")
    words = {"kind": kind, "name": name, "dist": target.name, "package": package, "module": kind,
             "Class": "".join(part.capitalize() for part in name.split("-")), "summary": summary,
             "question": KINDS[kind].question}
    with storage(target):
        for template in _templates(kind):
            path = target / _place(template.name.removesuffix(".tmpl"), package)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(fill(template.read_text("utf-8"), words), encoding="utf-8")
    return target


def fill(text: str, words: dict[str, str]) -> str:
    """Put the words in for `@word@`; decorators and addresses are left alone."""
    return re.sub(r"@(\w+)@", lambda m: words.get(m[1], m[0]), text)


def _check_name(kind: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UserError(f"'{name}' is not a name for a component", do="use lower-case words joined by '-', like my-sae")
    if name.startswith("reprbasis-"):
        raise UserError(f"'{name}' begins with 'reprbasis-', which is put before it anyway",
                        do=f"write {name.removeprefix('reprbasis-')}")
    owners = {r.origin for r in default_registry().components(kind) if r.name == name}
    owners |= {dist for each, dist in known().get(kind, {}).items() if each == name}
    if owners:
        raise UserError(f"there is a {kind} '{name}' already, in {' and '.join(sorted(owners))}",
                        do="choose another name; two of the same kind would have to be written in full everywhere")
    taken = {r.origin for r in default_registry().components()} | {d for each in known().values() for d in each.values()}
    if f"reprbasis-{name}" in taken:
        raise UserError(f"there is a distribution 'reprbasis-{name}' already", do="choose another name")


def _templates(kind: str) -> list[Traversable]:
    root = files("reprbasis.cli").joinpath("templates")
    return [t for folder in ("common", kind) for t in root.joinpath(folder).iterdir() if t.name.endswith(".tmpl")]


def _place(name: str, package: str) -> str:
    if name.startswith("test_"):
        return f"tests/{name}"
    return f"{package}/{name}" if name.endswith(".py") else name
