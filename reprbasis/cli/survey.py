"""`reprbasis survey`: what a corpus is made of."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .common import json_argument, print_json, selected, table

if TYPE_CHECKING:
    from ..kits.survey import Corpus


class Section(NamedTuple):
    """A table with a title and a line on how to read it."""

    title: str
    about: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def arguments(parser: argparse.ArgumentParser) -> None:
    """CORPUS..., --limit, --ngram, --model, --seed, --html, --json."""
    parser.add_argument("corpora", metavar="CORPUS", nargs="+",
                        help="a corpus by name, or with options: '{use: NAME, option: value}'")
    parser.add_argument("--limit", type=int, default=5000, metavar="N", help="read at most N dialogues of each (default: 5000)")
    parser.add_argument("--ngram", type=int, default=20, metavar="N", help="words of an n-gram (default: 20)")
    parser.add_argument("--model", metavar="MODEL", help="count the tokens of this model, '{use: NAME, option: value}'")
    parser.add_argument("--seed", type=int, default=0, help="seed of the corpora (default: 0)")
    parser.add_argument("--html", metavar="FILE", help="write a page, too")
    json_argument(parser)


def main(args: argparse.Namespace) -> int:
    """Read the corpora once and tell what is in them."""
    from ..discovery import default_registry
    from ..interfaces.corpus import CorpusContext
    from ..interfaces.tokens import Example
    from ..kits.survey import survey

    registry = default_registry()
    chosen = [selected(registry, "corpus", given, "CORPUS") for given in args.corpora]
    model = None if args.model is None else registry.build(selected(registry, "model", args.model, "--model"))
    short = [s.name.rpartition("/")[2] for s in chosen]
    names = [n if short.count(n) == 1 else f"{n}-{short[:i + 1].count(n)}" for i, n in enumerate(short)]
    context = CorpusContext(model)

    def read(selection: Any) -> Iterable[Example]:
        return islice(registry.build(selection).examples(seed=args.seed, context=context), args.limit)

    def tokens(examples: Sequence[Example]) -> list[list[int]]:
        assert model is not None
        return [s.ids.tolist() for s in model.tokenize(examples)]

    found = survey({name: read(s) for name, s in zip(names, chosen, strict=True)}, ngram=args.ngram,
                   tokenize=None if model is None else tokens)
    shown = sections(found, args.ngram, None if model is None else model.info.vocab)
    if args.html:
        from ..artifacts.manifest import write_bytes

        write_bytes(Path(args.html), page(shown, ", ".join(args.corpora)).encode())
    if args.json:
        print_json([{"title": s.title, "columns": s.columns, "rows": s.rows} for s in shown])
        return 0
    for section in shown:
        table(section.columns, section.rows, section.title)
        print(f"({section.about})\n")
    return 0


def sections(found: Sequence[Corpus], ngram: int, vocab: int | None) -> list[Section]:
    """The tables of a survey."""
    from ..kits.survey import coverage

    out = [Section("Dialogues", f"Repeated: shares {ngram} words in a row with an earlier dialogue of its corpus; known: with "
                   "one of a corpus above.",
                   ("corpus", "dialogues", "with system message", "with answers", "words", "repeated", "known"),
                   [(c.name, str(c.dialogues), _share(c.system, c), _share(c.answered, c), str(c.words.total()),
                     _share(c.repeated, c), _share(c.known, c)) for c in found])]
    rows = []
    for c in found:
        for name, column in c.columns.items():
            s = column.summary()
            if s["n"]:
                rows.append((c.name, name, *(_number(s[k]) for k in ("mean", "p25", "median", "p75", "p95", "max"))))
    out.append(Section("Size of a dialogue",
                       "Steps (lines or sentences) and nesting (brackets, indented lists) are those of the last answer.",
                       ("corpus", "of each dialogue", "mean", "25 %", "median", "75 %", "95 %", "most"), rows))
    out.append(Section("Domains", "Share of the dialogues; - stands for dialogues without a domain.",
                       ("corpus", "domain", "dialogues", "share"),
                       [(c.name, domain, str(n), _share(n, c)) for c in found for domain, n in c.domains.most_common(20)]))
    labelled = [(c, g) for c in found if (g := c.gradient()) is not None]
    if labelled:
        out.append(Section("Difficulty", "Rank correlation of the label with each: 1 means that it grows with the label.",
                           ("corpus", "levels", *labelled[0][1]),
                           [(c.name, str(len(c.levels)), *(f"{v:.2f}" for v in g.values())) for c, g in labelled]))
    size = [(c.name, str(len(c.words)), f"{len(c.words) / max(c.words.total(), 1):.3f}",
             "-" if vocab is None else f"{len(c.vocabulary) / vocab:.1%}",
             *(f"{coverage(c, other):.1%}" for other in found)) for c in found]
    out.append(Section("Coverage", "Distinct words, also for each running word; the share of the model's vocabulary that occurs "
                       "(with --model); and the share of the row's running words that occur in each corpus.",
                       ("corpus", "distinct words", "for each word", "vocabulary", *(f"in {c.name}" for c in found)), size))
    return out


def page(shown: Sequence[Section], title: str) -> str:
    """One self-contained page."""
    parts = [f"<!doctype html><meta charset=utf-8><title>Survey</title><style>{STYLE}</style><h1>Survey of {escape(title)}</h1>"]
    for s in shown:
        head = "".join(f"<th>{escape(c)}" for c in s.columns)
        rows = "".join("<tr>" + "".join(map(_cell, row)) for row in s.rows)
        parts.append(f"<h2>{escape(s.title)}</h2><p>{escape(s.about)}<table><tr>{head}{rows}</table>")
    return "\n".join(parts) + "\n"


STYLE = ("body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1c2330}"
         "table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #dde2ea}"
         "td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}"
         "p{color:#5a6577}.bar{background:linear-gradient(#9db8e8,#9db8e8) no-repeat left/var(--w) 100%}")


def _cell(text: str) -> str:
    """A share gets a bar behind it."""
    bar = f' class=bar style="--w:{text.replace(" ", "")}"' if text.endswith("%") else ""
    return f"<td{bar}>{escape(text)}"


def _share(n: int, corpus: Corpus) -> str:
    return f"{n / max(corpus.dialogues, 1):.1%}"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"
