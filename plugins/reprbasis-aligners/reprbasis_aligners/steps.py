"""Steps: fit a map between two models, move a dictionary through it, and see what works there.

Shapes: A and B widths of the two models, J heads of the second.
"""

from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from reprbasis.errors import DataError, Problem, SiteError
from reprbasis.interfaces.aligner import Alignment
from reprbasis.interfaces.artifact import Artifact
from reprbasis.interfaces.corpus import CorpusContext
from reprbasis.interfaces.evaluator import Figure, Findings, Measurement
from reprbasis.interfaces.model import ModelInfo
from reprbasis.interfaces.step import Step, StepContext
from reprbasis.kits.alignment import judge, verdict
from reprbasis.kits.anchors import vocabulary_rows
from reprbasis.kits.transfer import head_similarity, transfer_basis, transfer_table
from reprbasis.kits.transferred import (
    STEERED,
    STITCHED,
    Contrast,
    Neutral,
    controls,
    same_features,
    steering,
    steering_vectors,
    stitched,
    table_agreement,
)
from reprbasis.runtime.basis import Basis
from reprbasis.runtime.pairs import PairedRows, plain
from reprbasis.sites import Site

from .config import AlignConfig, MoveConfig, TransferredConfig


def examples(context: StepContext, selection):
    """The plain text of a corpus."""
    scratch = CorpusContext(context.model, context.scratch, context.progress)
    return map(plain, context.registry.build(selection).examples(seed=context.seed, context=scratch))


class AlignStep(Step[AlignConfig]):
    """A map from a site of the pipeline's model to a site of another, with its held-out figures."""

    @classmethod
    def check(cls, config: AlignConfig, info: ModelInfo) -> list[Problem]:
        """The site must be one of the model's."""
        try:
            many = len(info.select(config.site)) != 1
        except SiteError as error:
            return [Problem(error.what, "site", error.do)]
        return [Problem(f"'{config.site}' names several sites", "site", "name one")] if many else []

    def run(self, context: StepContext, **inputs: Artifact) -> Alignment:
        """Takes nothing; gives the alignment, its measurements in the details."""
        c, one = self.config, context.model
        two = context.registry.build(c.to)
        (a,), (b,) = one.info.select(c.site), two.info.select(c.to_site or c.site)
        rows = PairedRows.gather(one, two, examples(context, c.corpus), [a], [b], tokens=c.tokens, max_tokens=c.max_tokens,
                                 progress=context.progress)
        anchors, shared = None, {}
        if c.anchors == "vocabulary":
            *anchors, found = vocabulary_rows(one, two)
            shared = {"shared_tokens": len(found.a), "shared_shares": [found.share_a, found.share_b]}
        held = rows.test
        alignment, measured = judge(context.registry.build(c.aligner), (rows.a[a][~held], rows.b[b][~held]),
                                    (rows.a[a][held], rows.b[b][held]), rows.group[held], tokens=rows.tokens[~held],
                                    test_tokens=rows.tokens[held], anchors=anchors and tuple(anchors), seed=context.seed)
        details = {"site_a": str(a), "site_b": str(b), "model_b": c.to.dump(), "aligner": c.aligner.dump(), "anchors": c.anchors,
                   "pairs": len(rows.group), "outliers": rows.outliers, "coverage": list(rows.coverage),
                   "verdict": verdict(measured), **shared,
                   "controls": {m.condition: m.value for m in measured if m.name == "cosine"}}
        return replace(alignment, details={**alignment.details, **details})


class MoveStep(Step[MoveConfig]):
    """The dictionary of a basis for one site of another model."""

    def run(self, context: StepContext, **inputs: Artifact) -> Basis:
        """Takes `basis` and `alignment`; gives a basis of one site."""
        basis, alignment = inputs["basis"], inputs["alignment"]
        assert isinstance(basis, Basis)
        assert isinstance(alignment, Alignment)
        source, site = sites_of(alignment, self.config.site, self.config.to_site)
        return transfer_basis(basis, alignment, site, source=source)


def sites_of(alignment: Alignment, source: str | None = None, site: str | None = None) -> tuple[Site, Site]:
    """Where an alignment starts and leads to, unless it is said otherwise."""
    found = (source or alignment.details.get("site_a"), site or alignment.details.get("site_b"))
    if None in found:
        raise DataError("the alignment does not say which sites it maps", do="give site and to_site, or use the step align")
    return Site.parse(found[0]), Site.parse(found[1])


class TransferredStep(Step[TransferredConfig]):
    """Steering vectors, a dictionary and tables of heads, moved, in the second model: beside native ones and controls."""

    def run(self, context: StepContext, **inputs: Artifact) -> Findings:
        """Takes `alignment` and perhaps `basis` (of the first model) and `native` (of the second); gives findings."""
        alignment, basis, native = inputs["alignment"], inputs.get("basis"), inputs.get("native")
        assert isinstance(alignment, Alignment)
        c, one = self.config, context.model
        two = context.registry.build(c.to)
        a, b = sites_of(alignment)
        text = list(islice(examples(context, c.corpus), c.texts))
        if len(text) < 2:
            raise DataError("the corpus has fewer than two texts", do="give more")
        neutral = Neutral(two, [e.text for e in text], b, max_tokens=c.max_tokens)
        found = Findings(notes=[f"Moved from {a} of {one.info.family} to {b} of {two.info.family}. Controls: "
                                + "; ".join(f"`{k}`: {v}" for k, v in {**STITCHED, **STEERED}.items()) + "."])
        contrasts = [Contrast(**x.model_dump()) for x in c.contrasts]
        for i, contrast in enumerate(contrasts):
            wrong = contrasts[(i + 1) % len(contrasts)] if len(contrasts) > 1 else None
            vectors = steering_vectors(one, two, alignment, a, b, contrast, wrong, seed=context.seed)
            rows = steering(two, b, contrast, vectors, neutral, strength=c.strength)
            found += Findings(named(rows, f"{contrast.name}: "), [bars(rows, "ratio", f"Steering, {contrast.name}")])
        if basis is not None:
            found += self.dictionary(context, one, two, alignment, basis, native, neutral)
        if c.tables:
            found += self.heads(context, one, two, {a: alignment})
        return found

    def dictionary(self, context, one, two, alignment, basis, native, neutral) -> Findings:
        """What the moved dictionary explains, and whether its latents fire where they did."""
        a, b = sites_of(alignment)
        basis = basis.at([a])
        rows = PairedRows.gather(one, two, examples(context, self.config.corpus), [a], [b], tokens=self.config.tokens,
                                 progress=context.progress)
        bases = controls(basis, alignment, b, seed=context.seed) | ({"native": native.at([b])} if native is not None else {})
        found = stitched(two, bases, rows.b[b][rows.test], rows.group[rows.test], neutral, rows.b[b][~rows.test].mean(0))
        found += same_features(basis, bases["mapped"], rows, seed=context.seed)
        return Findings(named(found, "dictionary: "), [bars(found, "fvu", "Dictionary: unexplained variance")])

    def heads(self, context, one, two, alignments) -> Findings:
        """Tables of heads: the second model's own against the first's, moved by what heads do."""
        similarity = head_similarity(one, two, alignments)
        flat = {s: Alignment(eye := torch.eye(one.info.d_model, two.info.d_model), eye.T, torch.zeros(len(eye)),
                             torch.zeros(eye.shape[1])) for s in alignments}
        unmapped = head_similarity(one, two, flat)
        order = torch.randperm(len(similarity), generator=torch.Generator().manual_seed(context.seed))
        tables = [[self.table(context, step, model) for model in (one, two)] for step in self.config.tables]
        found = Findings(values={"head_similarity": similarity})
        for i, (mine, theirs) in enumerate(tables):
            guesses = {"mapped": transfer_table(mine, similarity), "random": transfer_table(mine[order], similarity),
                       "unmapped": transfer_table(mine, unmapped)}
            if len(tables) > 1:
                guesses["wrong-feature"] = transfer_table(tables[(i + 1) % len(tables)][0], similarity)
            rows = table_agreement(theirs, guesses, seed=context.seed)
            found += Findings(named(rows, f"table {i + 1}: "), notes=[f"Table {i + 1}: {self.config.tables[i].dump()}; "
                                                                     f"{len(theirs)} heads of the second model."])
        return found

    def table(self, context, step, model) -> Tensor:
        """[J] the table of a step on one model, flat."""
        made = context.registry.build(step).run(replace(context, load_model=lambda: model))
        values = getattr(made, "values", {}).get(self.config.value)
        if values is None or values.ndim != 2:
            raise DataError(f"{step.name} gives no table '{self.config.value}'",
                            do="name a step such as prefer, and one of its values")
        return values[:, :model.info.n_heads].flatten()


def named(rows, prefix) -> list[Measurement]:
    """The same measurements under longer names."""
    return [replace(m, name=prefix + m.name) for m in rows]


def bars(rows, name, title) -> Figure:
    """One measure over the conditions."""
    chosen = [m for m in rows if m.name == name]
    about = {"ratio": "Effect as a share of what the second model's own direction of the same length does.",
             "fvu": "Share of the variance that is not explained; 1 is what the mean does. Above 2 drawn at 2."}[name]
    return Figure("bar", title, about, {name: [min(m.value, 2.0) for m in chosen]}, [m.condition for m in chosen], y_label=name)
