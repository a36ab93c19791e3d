"""`reprbasis lens`: what every layer of a model reads as, token by token; or what a feature of a basis says."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import json_argument, pick_model, print_json, selected, table

if TYPE_CHECKING:
    from ..interfaces.lens import Lens
    from ..interfaces.model import ModelAdapter
    from ..registry import Registry
    from ..runtime.reading import Reading


def arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, TEXT, --lens, --fit, --sites, --chat, --image, --top, --html, --basis, --latent, --json."""
    parser.add_argument("model", metavar="MODEL", help="a checkpoint, or with options: '{use: NAME, option: value}'")
    parser.add_argument("text", metavar="TEXT", nargs="?", help="what the model reads (not needed with --latent)")
    parser.add_argument("--lens", metavar="LENS", action="append", default=[],
                        help="a lens by name, or '{use: NAME, option: value}' (repeatable; default: logit)")
    parser.add_argument("--fit", metavar="DIR", action="append", default=[],
                        help="a lens that learned, as a step `lens` saved it (repeatable)")
    parser.add_argument("--sites", metavar="SITES", action="append", default=[],
                        help="what is read, for example resid.0::4 (repeatable; default: resid.*)")
    parser.add_argument("--chat", action="store_true", help="TEXT is what a user says; read the dialogue up to the answer")
    parser.add_argument("--image", metavar="FILE", action="append", default=[], help="an image before TEXT (repeatable)")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="candidates kept for each cell (default: 5)")
    parser.add_argument("--html", metavar="FILE", help="write a page with every position, to look at in a browser")
    parser.add_argument("--basis", metavar="DIR", help="a saved basis whose latents are read instead of a text")
    parser.add_argument("--latent", metavar="K", type=int, action="append", default=[], help="which latent (repeatable)")
    json_argument(parser)


def main(args: argparse.Namespace) -> int:
    """Read and show."""
    from ..discovery import default_registry
    from ..errors import UserError

    if (args.text is None) == (not args.latent):
        raise UserError("there is nothing to read", do='give a text, or --basis DIR --latent K')
    if args.latent and not args.basis:
        raise UserError("--latent needs the basis it is a latent of", do="give --basis DIR")
    if args.top < 1:
        raise UserError(f"--top {args.top} keeps nothing", do="keep at least 1")
    registry = default_registry()
    model = registry.build(pick_model(registry, args.model))
    lenses = _lenses(registry, args.lens, args.fit)
    sites = model.info.select(args.sites or ["resid.*"])
    if args.latent:
        return _features(args, registry, model, lenses, sites)
    return _text(args, registry, model, lenses, sites)


def _lenses(registry: Registry, names: Sequence[str], fits: Sequence[str]) -> dict[str, Lens[Any]]:
    """By name; those that learned come from their fits."""
    from ..artifacts.store import load
    from ..errors import UserError
    from ..interfaces.lens import LensFit

    out: dict[str, Lens[Any]] = {}
    for given in names or (() if fits else ("logit",)):
        selection = selected(registry, "lens", given, "--lens")
        out[selection.name.rpartition("/")[2]] = registry.build(selection)
    for folder in fits:
        found = load(folder)
        if not isinstance(found, LensFit):
            raise UserError(f"this is a {found.type}, not what a lens learned", where=folder, do="name the folder of a lens-fit")
        out[str(found.details["lens"]["use"]).rpartition("/")[2] if "lens" in found.details else folder] = found.lens(registry)
    return out


def _text(args: argparse.Namespace, registry: Registry, model: ModelAdapter[Any], lenses: Mapping[str, Lens[Any]],
          sites: Sequence[Any]) -> int:
    from dataclasses import asdict

    from ..interfaces.tokens import Example, Message
    from ..runtime.reading import read_text

    images = tuple(args.image)
    if args.chat or images:
        message = Message("user", args.text, tuple(range(len(images))))
        example = Example(messages=(message,), add_prompt=True, images=images)
    else:
        example = Example(text=args.text)
    began = time.monotonic()
    reading = read_text(model, model.tokenize([example])[0], lenses, sites, top=args.top)
    seconds = time.monotonic() - began
    if args.json:
        print_json({**asdict(reading), "sites": [str(s) for s in sites]})
    else:
        for name in reading.cells:
            _show(reading, name)
        print("next:", ", ".join(f"{token!r} {chance:.1%}" for token, chance in reading.said[-1]))
    if args.html:
        print(_page(args, registry, model, reading, seconds))
    return 0


def _show(reading: Reading, lens: str, width: int = 10) -> None:
    """Sites from the last to the first, the last tokens of the text, the likeliest next token in each cell."""
    import shutil
    import sys

    from ..runtime.reading import visible

    def cut(text: str) -> str:
        return text if len(text) <= width else text[:width - 1] + "…"

    label = max(len(str(s)) for s in reading.sites)
    room = (shutil.get_terminal_size((120, 24)).columns - label) // (width + 2) if sys.stdout.isatty() else 10
    last = range(len(reading.tokens))[-max(room, 1):]
    rows = [(str(site), *(cut(visible(found[at][0][0])) for at in last))
            for site, found in reversed(list(zip(reading.sites, reading.cells[lens], strict=True)))]
    table((lens, *(cut(visible(reading.tokens[at])) for at in last)), rows)
    print()


def _page(args: argparse.Namespace, registry: Registry, model: ModelAdapter[Any], reading: Reading, seconds: float) -> Path:
    """The same for every position, through the reporter `html`."""
    import tempfile
    from datetime import UTC, datetime

    from ..artifacts.store import save
    from ..interfaces.evaluator import Findings
    from ..interfaces.reporter import RunRecord, StepRecord

    out = Path(args.html)
    reporter = registry.create("reporter", "html", file=out.name)
    info = model.info
    known = {"checkpoint": args.model, "family": info.family, "n_layers": info.n_layers, "d_model": info.d_model,
             "revision": info.revision}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reading"
        save(Findings(figures=[reading.figure()]), path)
        step = StepRecord("lens", "reprbasis lens", "", path, "findings", "done", seconds)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = RunRecord("What every layer reads as", out.parent, (step,), known, 0, now)
        written: Path = reporter.run_ended(record, registry)
    return written


def _features(args: argparse.Namespace, registry: Registry, model: ModelAdapter[Any], lenses: Mapping[str, Lens[Any]],
              sites: Sequence[Any]) -> int:
    """What adding each latent raises and lowers most, read at each site."""
    from ..artifacts.store import load
    from ..errors import UserError
    from ..runtime.basis import Basis

    basis = load(args.basis)
    if not isinstance(basis, Basis):
        raise UserError(f"this is a {basis.type}, not a basis", where=args.basis, do="name the folder of a basis")
    if wrong := [k for k in args.latent if not 0 <= k < basis.d_dict]:
        raise UserError(f"the basis has no latent {wrong[0]}", do=f"use 0 to {basis.d_dict - 1}")
    chosen = [s for s in sites if s in basis.sites]
    if not args.sites and len(chosen) > 4:
        chosen = [chosen[round(i * (len(chosen) - 1) / 3)] for i in range(4)]
    found: list[dict[str, Any]] = []
    for name, lens in lenses.items():
        for site in chosen:
            rows = basis.directions(site)[args.latent].to(model.device)
            logits = lens.read_directions(model, rows, site).float()
            for latent, row in zip(args.latent, logits, strict=True):
                best, worst = row.topk(args.top), (-row).topk(args.top)
                ends = {"raises": best.indices.tolist(), "lowers": worst.indices.tolist()}
                found.append({"latent": latent, "site": str(site), "lens": name,
                              **{k: [model.tokenizer.decode([i]) for i in ids] for k, ids in ends.items()}})
    if args.json:
        print_json(found)
        return 0
    table(("latent", "site", "lens", "raises", "lowers"), [
        (str(f["latent"]), f["site"], f["lens"], *(" ".join(map(repr, f[k])) for k in ("raises", "lowers"))) for f in found])
    return 0
