"""`reprbasis align`: is one model's space a linear image of another's, and which map shows it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import json_argument, pick_model, print_json, selected, table

if TYPE_CHECKING:
    from ..interfaces.evaluator import Measurement
    from ..sites import Site

DEFAULTS = ("procrustes-pca", "l-ortho", "ridge")


def arguments(parser: argparse.ArgumentParser) -> None:
    """A, B, --corpus, --site, --match, --aligner, --anchors, --tokens, --seed, --out, --html, --json."""
    for name in "AB":
        parser.add_argument(name.lower(), metavar=name, help="a checkpoint, or with options: '{use: NAME, option: value}'")
    parser.add_argument("--corpus", metavar="CORPUS", required=True,
                        help="text both read: a corpus by name, or '{use: NAME, option: value}' (of dialogues, the words alone)")
    parser.add_argument("--site", metavar="SITE[:SITE]", action="append", default=[],
                        help="a site of A and of B, or one for both (repeatable; default: three blocks, equal in relative depth)")
    parser.add_argument("--match", metavar="SITES[/SITES]",
                        help="choose the site of B for each of these sites of A on validation texts, for example "
                             "'resid.2::4/resid.*'; judged on further texts")
    parser.add_argument("--aligner", metavar="ALIGNER", action="append", default=[],
                        help=f"a map by name, or '{{use: NAME, option: value}}' (repeatable; default: {', '.join(DEFAULTS)})")
    parser.add_argument("--anchors", choices=("activations", "vocabulary"), default="activations",
                        help="fit maps to paired activations, or to unembedding rows of shared tokens (default: activations)")
    parser.add_argument("--tokens", type=int, default=8000, metavar="N",
                        help="paired tokens; a fifth of the texts is held out (default: 8000; a map wants 10 a dimension)")
    parser.add_argument("--seed", type=int, default=0, help="of the corpus and the controls (default: 0)")
    parser.add_argument("--out", metavar="DIR", help="save the maps, DIR/SITE-A__SITE-B__ALIGNER")
    parser.add_argument("--html", metavar="FILE", help="write a page, too")
    json_argument(parser)


def main(args: argparse.Namespace) -> int:
    """Pair, match, fit, judge, print."""
    from ..discovery import default_registry
    from ..errors import UserError

    if args.tokens < 100:
        raise UserError(f"--tokens {args.tokens} cannot show an alignment", do="pair at least 100 tokens")
    if args.match and args.site:
        raise UserError("--match chooses the sites that --site names", do="give one of them")
    registry = default_registry()
    selections = [selected(registry, "aligner", a, "--aligner") for a in args.aligner or DEFAULTS]
    corpus = selected(registry, "corpus", args.corpus, "--corpus")
    reporter = registry.build(registry.select("reporter", {"use": "html", "file": Path(args.html).name})) if args.html else None
    chosen = [pick_model(registry, given) for given in (args.a, args.b)]
    infos = [registry.load("model", c.name).describe(c.config) for c in chosen]
    sites = None if args.match else _sites(args.site, infos)
    wanted = [list(dict.fromkeys(s)) for s in zip(*sites, strict=True)] if sites else _candidates(args.match, infos)

    from ..artifacts.store import save
    from ..interfaces.corpus import CorpusContext
    from ..kits.alignment import findings, judge_sites, match_layers
    from ..kits.anchors import vocabulary_rows
    from ..runtime.pairs import PairedRows, plain

    began, models = time.monotonic(), [registry.build(c) for c in chosen]
    examples = map(plain, registry.build(corpus).examples(seed=args.seed, context=CorpusContext(models[0])))
    rows = PairedRows.gather(models[0], models[1], examples, *wanted, tokens=args.tokens)
    aligners = {_name(selections, i): registry.build(s) for i, s in enumerate(selections)}
    match = None
    if sites is None:
        first = next(iter(aligners.values()))
        match = match_layers(first, rows.a, rows.b, rows.train, rows.validation)
        sites = list(match.best().items())
    anchors = None
    head: dict[str, Any] = {"pairs": len(rows.group), "held_out": int(rows.test.sum()), "texts": int(rows.group.max()) + 1,
                            "outliers": rows.outliers, "coverage": list(rows.coverage)}
    if args.anchors == "vocabulary":
        one, two, shared = vocabulary_rows(*models)
        anchors, head["shared_tokens"] = (one, two), len(shared.a)
    judged = judge_sites(aligners, rows, sites, anchors=anchors, seed=args.seed)
    head["seconds"] = time.monotonic() - began
    dumps = dict(zip(aligners, (s.dump() for s in selections), strict=True))
    if args.out:
        for j in judged:
            facts = {**j.alignment.details, "aligner": dumps[j.aligner], "site_a": str(j.a), "site_b": str(j.b),
                     "model_a": chosen[0].dump(), "model_b": chosen[1].dump(), "anchors": args.anchors, **head}
            save(replace(j.alignment, details={k: v for k, v in facts.items() if k != "seconds"}),
                 f"{args.out}/{j.a}__{j.b}__{j.aligner}")
    if reporter is not None:
        from ..pipeline.present import present

        facts = {"checkpoint": f"{args.a} and {args.b}", "family": f"{infos[0].family} and {infos[1].family}",
                 "A": args.a, "B": args.b, "d_model": f"{infos[0].d_model} and {infos[1].d_model}"}
        present(findings(judged, match), Path(args.html).parent, reporter, registry, name=f"{args.a} to {args.b}", model=facts,
                config={**{k: v for k, v in vars(args).items() if k not in ("command", "html", "json", "out")}, **head},
                seed=args.seed, writer="reprbasis align", seconds=head["seconds"])
    if args.json:
        layers = {} if match is None else {"layers": {"a": [str(s) for s in match.a], "b": [str(s) for s in match.b],
                                                      "cosine": match.cosine.tolist()}}
        print_json({**head, **layers, "results": [
            {"a": str(j.a), "b": str(j.b), "aligner": dumps[j.aligner], "name": j.aligner, "verdict": j.verdict,
             "warning": j.alignment.details.get("warning"), "measurements": [asdict(m) for m in j.measurements]}
            for j in judged]})
        return 0
    share_a, share_b = rows.coverage
    words = f", {head['shared_tokens']} shared tokens" if anchors else ""
    print(f"{head['pairs']} pairs of {head['texts']} texts ({share_a:.0%} of A's tokens, {share_b:.0%} of B's){words}, "
          f"{head['held_out']} held out, {head['seconds']:.1f} s")
    if rows.outliers:
        print(f"{rows.outliers} pairs left out: one of their rows is more than 10 times as long as the median of its site")
    if match is not None:
        print()
        table(("A \\ B", *map(str, match.b)), [(str(s), *(f"{v:.2f}" for v in row)) for s, row in
                                             zip(match.a, match.cosine.tolist(), strict=True)],
              f"mean centred cosine on validation texts, {next(iter(aligners))}")
    for j in judged:
        print()
        table(("condition", *_names(j.measurements)), _rows(j.measurements), f"{j.a} -> {j.b}, {j.aligner}")
        print(j.verdict)
        if "warning" in j.alignment.details:
            print("warning:", j.alignment.details["warning"])
    if args.html:
        print(f"\n{args.html}")
    return 0


def _name(selections: Sequence[Any], index: int) -> str:
    """`ridge`, or `ridge-2` for the second of several."""
    short = [s.name.rpartition("/")[2] for s in selections]
    name = short[index]
    return name if short.count(name) == 1 else f"{name}-{short[:index + 1].count(name)}"


def _candidates(given: str, infos: Sequence[Any]) -> list[list[Site]]:
    """The sites that layers are matched among."""
    one, _, two = given.partition("/")
    return [list(info.select(name)) for name, info in zip((one, two or one), infos, strict=True)]


def _sites(given: Sequence[str], infos: Sequence[Any]) -> list[tuple[Site, Site]]:
    """The pairs of sites that were asked for, checked against both models."""
    from ..errors import UserError
    from ..sites import Site

    if not given:
        depths = [max(s.layer for s in i.sites if s.name == "resid") for i in infos]
        shares = (0.25, 0.5, 0.75)
        return [tuple(Site("resid", round(share * d)) for d in depths) for share in shares]  # type: ignore[misc]
    out = []
    for text in given:
        one, _, two = text.partition(":")
        pair = []
        for name, info in zip((one, two or one), infos, strict=True):
            chosen = info.select(name)
            if len(chosen) != 1:
                raise UserError(f"'{name}' names {len(chosen)} sites", where=f"--site {text}", do="name one site of each model")
            pair.append(chosen[0])
        out.append((pair[0], pair[1]))
    return out


def _names(measurements: Sequence[Measurement]) -> list[str]:
    return list(dict.fromkeys(m.name for m in measurements))


def _rows(measurements: Sequence[Measurement]) -> Iterator[tuple[str, ...]]:
    """A row for each condition; a cell has the value and its 95 % interval."""
    found = {(m.condition, m.name): m for m in measurements}
    for condition in dict.fromkeys(m.condition for m in measurements):
        cells = []
        for name in _names(measurements):
            m = found.get((condition, name))
            span = "" if m is None or m.low is None or m.high is None else f" [{m.low:.3f}, {m.high:.3f}]"
            cells.append("" if m is None else f"{m.value:.3f}{span}")
        yield condition, *cells
