"""`reprbasis align`: is one model's space a linear image of another's, and which map shows it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from .common import json_argument, pick_model, print_json, table

if TYPE_CHECKING:
    from ..interfaces.evaluator import Measurement
    from ..interfaces.tokens import Example

DEFAULTS = ("procrustes-pca", "l-ortho", "ridge")


def arguments(parser: argparse.ArgumentParser) -> None:
    """A, B, --corpus, --site, --aligner, --tokens, --seed, --out, --json."""
    for name in "AB":
        parser.add_argument(name.lower(), metavar=name, help="a checkpoint, or with options: '{use: NAME, option: value}'")
    parser.add_argument("--corpus", metavar="CORPUS", required=True,
                        help="text both read: a corpus by name, or '{use: NAME, option: value}' (of dialogues, the words alone)")
    parser.add_argument("--site", metavar="SITE[:SITE]", action="append", default=[],
                        help="a site of A and of B, or one for both (repeatable; default: three blocks, equal in relative depth)")
    parser.add_argument("--aligner", metavar="ALIGNER", action="append", default=[],
                        help=f"a map by name, or '{{use: NAME, option: value}}' (repeatable; default: {', '.join(DEFAULTS)})")
    parser.add_argument("--tokens", type=int, default=8000, metavar="N",
                        help="paired tokens; a fifth of the texts is held out (default: 8000; a map wants 10 a dimension)")
    parser.add_argument("--seed", type=int, default=0, help="of the corpus and the controls (default: 0)")
    parser.add_argument("--out", metavar="DIR", help="save the maps, DIR/SITE-A__SITE-B__ALIGNER")
    json_argument(parser)


def main(args: argparse.Namespace) -> int:
    """Pair, fit, judge, print."""
    from ..config.strict_yaml import parse_yaml
    from ..discovery import default_registry
    from ..errors import UserError

    if args.tokens < 100:
        raise UserError(f"--tokens {args.tokens} cannot show an alignment", do="pair at least 100 tokens")
    registry = default_registry()
    aligners = [registry.select("aligner", parse_yaml(a, f"--aligner {a}").data) for a in args.aligner or DEFAULTS]
    corpus = registry.select("corpus", parse_yaml(args.corpus, f"--corpus {args.corpus}").data)
    chosen = [pick_model(registry, given) for given in (args.a, args.b)]
    infos = [registry.load("model", c.name).describe(c.config) for c in chosen]
    sites = _sites(args.site, infos)

    import torch

    from ..artifacts.store import save
    from ..interfaces.corpus import CorpusContext
    from ..kits.alignment import judge, verdict, without_map
    from ..runtime.pairs import Coverage, paired

    began, models = time.monotonic(), [registry.build(c) for c in chosen]
    examples = map(_plain, registry.build(corpus).examples(seed=args.seed, context=CorpusContext(models[0])))
    coverage = Coverage()
    batches = list(paired(models[0], models[1], examples, [a for a, _ in sites], [b for _, b in sites], tokens=args.tokens,
                          coverage=coverage))
    group, tokens = (torch.cat([getattr(b, name) for b in batches]) for name in ("group", "tokens"))
    held = group % 5 == 4
    if not bool(held.any()) or bool(held.all()):
        raise UserError("the text is too short to hold a part out", where=args.corpus, do="give at least five texts")
    results: list[dict[str, Any]] = []
    for one, two in sites:
        a, b = (torch.cat([getattr(batch, side)[site] for batch in batches]) for side, site in (("a", one), ("b", two)))
        free = without_map(a[held], b[held], group[held], seed=args.seed)
        for selection in aligners:
            alignment, found = judge(registry.build(selection), (a[~held], b[~held]), (a[held], b[held]), group[held],
                                     tokens=tokens[~held], seed=args.seed)
            name = selection.name.rpartition("/")[2]
            results.append({"a": str(one), "b": str(two), "aligner": selection.dump(), "name": name, "verdict": verdict(found),
                            "warning": alignment.details.get("warning"), "measurements": [*found, *free]})
            if args.out:
                facts = {**alignment.details, "aligner": selection.dump(), "site_a": str(one), "site_b": str(two),
                         "model_a": chosen[0].dump(), "model_b": chosen[1].dump(), "coverage": list(coverage.shares())}
                save(replace(alignment, details=facts), f"{args.out}/{one}__{two}__{name}")
    head = {"pairs": len(group), "held_out": int(held.sum()), "texts": int(group.max()) + 1,
            "coverage": list(coverage.shares()), "seconds": time.monotonic() - began}
    if args.json:
        print_json({**head, "results": [{**r, "measurements": [asdict(m) for m in r["measurements"]]} for r in results]})
        return 0
    share_a, share_b = coverage.shares()
    print(f"{head['pairs']} pairs of {head['texts']} texts ({share_a:.0%} of A's tokens, {share_b:.0%} of B's), "
          f"{head['held_out']} held out, {head['seconds']:.1f} s")
    for result in results:
        print()
        table(("condition", *_names(result["measurements"])), _rows(result["measurements"]),
              f"{result['a']} -> {result['b']}, {result['name']}")
        print(result["verdict"])
        if result["warning"]:
            print("warning:", result["warning"])
    return 0


def _sites(given: Sequence[str], infos: Sequence[Any]) -> list[tuple[Any, Any]]:
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


def _plain(example: Example) -> Example:
    """The words of a dialogue without any template."""
    if example.messages is None:
        return example
    return replace(example, text="\n\n".join(m.content for m in example.messages), messages=None)


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
