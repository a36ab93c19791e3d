"""Activations of two models on the same text, row by row.

Two tokenizers cut a text in different places. A row of one belongs to a row of the other where both tokens end at the same
character: both models have then read the same prefix. Never by index.

Shapes: T tokens, M matched tokens, A and B widths of the two models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

import torch
from torch import Tensor

from ..errors import DataError, SiteError
from ..interfaces.model import ModelAdapter
from ..interfaces.reporter import Progress, Silent
from ..interfaces.tokens import Example, TokenBatch, TokenSequence
from ..sites import Site

FINAL: Final = Site("final")


@dataclass(frozen=True)
class PairedBatch:
    """Paired rows of some texts.

    Args:
        a: site of the first model -> [M, A]; b: site of the second -> [M, B].
        group: [M] index of the text each row is from; split and resample by it, never by row.
        tokens: [M] token ids of the first model.
    """

    a: Mapping[Site, Tensor]
    b: Mapping[Site, Tensor]
    group: Tensor
    tokens: Tensor


@dataclass
class Coverage:
    """How many tokens found a partner; grows while the pairs are read."""

    matched: int = 0
    tokens_a: int = 0
    tokens_b: int = 0

    def shares(self) -> tuple[float, float]:
        """Share of each model's tokens (beyond position 0 and special ones) that were matched."""
        return self.matched / max(self.tokens_a, 1), self.matched / max(self.tokens_b, 1)


def match(a: TokenSequence, b: TokenSequence) -> tuple[Tensor, Tensor, int, int]:
    """Positions [M], [M] whose tokens end at the same character, and how many tokens of each could have matched.

    Position 0 (the attention sink), special tokens and tokens without text are left out; of several tokens that end at one
    character (pieces of it) the last counts.

    Raises:
        DataError: a tokenizer gives no offsets.
    """
    ends = []
    for name, sequence in (("first", a), ("second", b)):
        if sequence.offsets is None:
            raise DataError(f"the {name} model's tokenizer gives no character offsets",
                            do="use a fast tokenizer (tokenizer.json)")
        special = sequence.flags.get("special", torch.zeros(len(sequence), dtype=torch.bool)).tolist()
        found = {}
        for position, (start, end) in enumerate(sequence.offsets.tolist()):
            if position > 0 and not special[position] and end > start >= 0:
                found[end] = position
        ends.append(found)
    common = [end for end in ends[0] if end in ends[1]]
    return (torch.tensor([ends[0][e] for e in common], dtype=torch.long),
            torch.tensor([ends[1][e] for e in common], dtype=torch.long), len(ends[0]), len(ends[1]))


@dataclass(frozen=True)
class PairedRows:
    """All paired rows of some texts, split by text: three fifths train, one fifth validation, one fifth test.

    Args:
        a: site of the first model -> [N, A]; b: site of the second -> [N, B].
        group: [N] index of the text of each row.
        tokens: [N] token ids of the first model.
        coverage: share of each model's tokens that found a partner.
        outliers: pairs that were left out because one of their rows is far longer than others of its site.
    """

    a: Mapping[Site, Tensor]
    b: Mapping[Site, Tensor]
    group: Tensor
    tokens: Tensor
    coverage: tuple[float, float]
    outliers: int = 0

    @classmethod
    def gather(cls, model_a: ModelAdapter[Any], model_b: ModelAdapter[Any], examples: Iterable[Example], sites_a: Sequence[Site],
               sites_b: Sequence[Site], *, tokens: int, norm_cap: float = 10.0, **options: Any) -> PairedRows:
        """Run both models. Memory: 4 N (sum of the widths) bytes.

        Args:
            model_a, model_b, examples, sites_a, sites_b, tokens, options: as those of `paired`.
            norm_cap: pairs with a row longer than so many medians of its site are left out. They are attention sinks beyond
                position 0 (Sun et al. 2024, arXiv 2402.17762), and one of a hundred medians outweighs 10,000 others in a fit.

        Raises:
            DataError: as `paired`, or the text is too short to hold a part out.
        """
        coverage = Coverage()
        found = list(paired(model_a, model_b, examples, sites_a, sites_b, tokens=tokens, coverage=coverage, **options))
        group, ids = (torch.cat([getattr(b, name) for b in found]) for name in ("group", "tokens"))
        if len(torch.unique(group)) < 5:
            raise DataError("the text is too short to hold a part out", do="give at least five texts")
        a, b = ({s: torch.cat([getattr(batch, side)[s] for batch in found]) for s in dict.fromkeys(sites)}
                for side, sites in (("a", sites_a), ("b", sites_b)))
        usual = torch.ones(len(group), dtype=torch.bool)
        for x in (*a.values(), *b.values()):
            norm = torch.linalg.vector_norm(x, dim=-1)
            usual &= norm <= norm_cap * norm.median()
        a, b = ({site: x[usual] for site, x in side.items()} for side in (a, b))
        return cls(a, b, group[usual], ids[usual], coverage.shares(), int((~usual).sum()))

    @property
    def train(self) -> Tensor:
        """[N] bool: rows to fit to while something is chosen on `validation`; afterwards fit to all but `test`."""
        return self.group % 5 < 3

    @property
    def validation(self) -> Tensor:
        """[N] bool: rows to choose by."""
        return self.group % 5 == 3

    @property
    def test(self) -> Tensor:
        """[N] bool: rows to judge by."""
        return self.group % 5 == 4


def plain(example: Example) -> Example:
    """The words of a dialogue without any template; plain text as it stands."""
    if example.messages is None:
        return example
    return replace(example, text="\n\n".join(m.content for m in example.messages), messages=None)


def paired(model_a: ModelAdapter[Any], model_b: ModelAdapter[Any], examples: Iterable[Example], sites_a: Sequence[Site],
           sites_b: Sequence[Site], *, tokens: int, coverage: Coverage | None = None, max_tokens: int = 256, together: int = 8,
           fold: bool = True, progress: Progress | None = None) -> Iterator[PairedBatch]:
    """Run both models over plain texts until `tokens` rows are paired. Cost: one forward of each model to its deepest site.

    Args:
        model_a, model_b: the models.
        examples: plain text (dialogues are templated differently by each model, and would not match).
        sites_a, sites_b: what to capture.
        tokens: stop after this many pairs.
        coverage: is counted up, if given.
        max_tokens: longer texts are cut.
        together: texts in one forward.
        fold: divide `final` by the gain of the final norm, which belongs to the unembedding: a stretch of single coordinates
            would otherwise pass for a difference of the spaces. (The stream has no gain of its own.)
        progress: where to report.

    Raises:
        DataError: a dialogue among the examples, no offsets, or nothing matched.
        SiteError: no site is given.
    """
    if not sites_a or not sites_b:
        raise SiteError("there is no site to pair", do="name at least one site of each model")
    coverage = Coverage() if coverage is None else coverage
    ends = [max(sites, key=model.info.depth) for model, sites in ((model_a, sites_a), (model_b, sites_b))]
    number, stream = 0, iter(examples)
    with (progress or Silent()).task("pair activations", total=tokens, unit="pairs") as task:
        while coverage.matched < tokens:
            chosen = list(islice(stream, together))
            if not chosen:
                break
            if strange := [e for e in chosen if not e.text]:
                raise DataError("a dialogue cannot be paired: each model puts it into a template of its own",
                                where=strange[0].origin, do="use a corpus of plain text")
            one, two = (m.tokenize(chosen, max_tokens=max_tokens, first=number) for m in (model_a, model_b))
            found = [match(x, y) for x, y in zip(one, two, strict=True)]
            values = [_run(m, s, wanted, end, fold) for m, s, wanted, end in
                      ((model_a, one, sites_a, ends[0]), (model_b, two, sites_b, ends[1]))]
            rows = torch.cat([torch.full((len(i),), k) for k, (i, *_) in enumerate(found)])
            at = torch.cat([i for i, *_ in found]), torch.cat([j for _, j, *_ in found])
            for _, _, most_a, most_b in found:
                coverage.tokens_a, coverage.tokens_b = coverage.tokens_a + most_a, coverage.tokens_b + most_b
            coverage.matched += len(rows)
            ids = torch.cat([s.ids[i] for s, (i, *_) in zip(one, found, strict=True)])
            a, b = ({s: v[rows, where] for s, v in captured.items()} for captured, where in zip(values, at, strict=True))
            yield PairedBatch(a, b, rows + number, ids)
            number += len(chosen)
            task.update(min(coverage.matched, tokens))
    if not coverage.matched:
        raise DataError("no token of one model ends where a token of the other does", do="give longer texts")


def _run(model: ModelAdapter[Any], sequences: Sequence[TokenSequence], sites: Sequence[Site], end: Site,
         fold: bool) -> dict[Site, Tensor]:
    batch = TokenBatch.pad(sequences, pad_id=model.pad_id).to(model.device)
    with torch.no_grad():
        result = model.forward(batch, capture=sites, stop_at=end)
    return {s: (unfolded(model, result.sites[s]) if fold and s == FINAL else result.sites[s]).float().cpu() for s in sites}


def unfolded(model: ModelAdapter[Any], final: Tensor) -> Tensor:
    """Values of the site `final` [..., D] without the gain of the final norm; coordinates without gain become 0."""
    gain = model.unembedding().gain.detach().to(final)
    there = gain.abs() > 1e-6 * gain.abs().max()
    return torch.where(there, final / torch.where(there, gain, torch.ones_like(gain)), 0.0)
