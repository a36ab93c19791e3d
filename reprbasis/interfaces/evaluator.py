"""Kind `evaluator`: a table of measurements with intervals, and figures and feature cards that go with it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from torch import Tensor

from .artifact import Artifact
from .base import C, Configured
from .reporter import Progress, Silent

if TYPE_CHECKING:
    from ..registry import Registry
    from ..runtime.activations import Activations
    from ..runtime.basis import Basis
    from .model import ModelAdapter
    from .tokens import TokenSequence


@dataclass(frozen=True)
class Measurement:
    """One number with its interval, its n and the condition it was taken under.

    Args:
        name: what was measured (`fvu`, `l0`, `ce_recovered`).
        value: the number.
        low, high: 95 % interval; None where the number is exact (a count over everything).
        n: how many units (tokens, rows, latents) it rests on.
        condition: `global`, or a control: `untrained`, `mean`, `per-site`, `zero`, `original` ...
        site: the site it belongs to, or None.
        unit: `nats`, `latents`, `share`; empty for plain ratios.
    """

    name: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    condition: str = ""
    site: str | None = None
    unit: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure as data: reporters draw it.

    Args:
        kind: `line`, `bar`, `heatmap`, `histogram` or `grid` (a table of words with colours, one series shown at a time).
        title: one line.
        caption: what is seen and how to read it, for a reader who did not make it.
        x: labels or numbers along x.
        y: for a heatmap or grid the row labels; otherwise unused.
        series: name -> values ([len(x)]); for a heatmap one entry with rows of values; for a grid name -> rows of cells
            `[text, value, note, mark]`: what stands in it, a number in [0, 1] for its colour, what is told when it is pointed
            at, and whether it is marked.
        x_label, y_label: axis titles with units.
    """

    kind: Literal["line", "bar", "heatmap", "histogram", "grid"]
    title: str
    caption: str
    series: Mapping[str, Sequence[Any]]
    x: Sequence[Any] = ()
    y: Sequence[Any] = ()
    x_label: str = ""
    y_label: str = ""


@dataclass(frozen=True)
class Picture:
    """An image and how active a latent is on each of its tokens.

    Args:
        image: data URI (`data:image/png;base64,...`); empty if no picture was kept.
        rows, columns: how the image's tokens lie over it.
        values: activation of each token, row by row; shorter than rows * columns where the image was cut.
        peak: which of them the context is about.
    """

    image: str
    rows: int
    columns: int
    values: Sequence[float]
    peak: int


@dataclass(frozen=True)
class Context:
    """A stretch of text around a token where a latent is active: token strings, activation of each, and which is the peak.

    If the peak is a piece of an image, `picture` shows it, and the image's other tokens are left out of the text.
    """

    tokens: Sequence[str]
    values: Sequence[float]
    peak: int
    site: str
    sequence: int = -1
    special: Sequence[bool] = ()
    picture: Picture | None = None


@dataclass(frozen=True)
class FeatureCard:
    """What a person sees of one latent.

    Args:
        latent: index.
        rate: share of rows where it is active.
        peak: largest activation seen.
        sites: site -> share of the latent's total activation there.
        contexts: top-activating contexts, highest first.
        promoted, suppressed: tokens with the largest and smallest logit through the unembedding, with the value.
        histogram: (edges, counts) of its positive activations.
        notes: further numbers (effective layers, cosine to nearest latent).
    """

    latent: int
    rate: float
    peak: float
    sites: Mapping[str, float]
    contexts: Sequence[Context]
    promoted: Sequence[tuple[str, float]] = ()
    suppressed: Sequence[tuple[str, float]] = ()
    histogram: tuple[Sequence[float], Sequence[int]] = ((), ())
    notes: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> FeatureCard:
        """Inverse of `dataclasses.asdict`."""
        contexts = [Context(**{**c, "picture": Picture(**c["picture"]) if c.get("picture") else None}) for c in facts["contexts"]]
        return cls(**{**facts, "contexts": contexts})


@dataclass(frozen=True)
class Findings(Artifact):
    """What evaluators found: measurements, figures, feature cards, warnings in words, and tensors for further use."""

    type: ClassVar[str] = "findings"
    measurements: Sequence[Measurement] = ()
    figures: Sequence[Figure] = ()
    features: Sequence[FeatureCard] = ()
    notes: Sequence[str] = ()
    values: Mapping[str, Tensor] = field(default_factory=dict)

    def __add__(self, other: Findings) -> Findings:
        """Both together."""
        return Findings([*self.measurements, *other.measurements], [*self.figures, *other.figures],
                        [*self.features, *other.features], [*self.notes, *other.notes], {**self.values, **other.values})

    def get(self, name: str, *, condition: str = "", site: str | None = None) -> Measurement:
        """The measurement of that name, condition and site; KeyError if there is none."""
        for m in self.measurements:
            if (m.name, m.condition, m.site) == (name, condition, site):
                return m
        raise KeyError(f"no measurement '{name}' under condition '{condition}' at site {site}")

    def tensors(self) -> Mapping[str, Tensor]:
        """The values."""
        return self.values

    def facts(self) -> Mapping[str, Any]:
        """Everything but the tensors."""
        return {"measurements": [asdict(m) for m in self.measurements], "figures": [asdict(f) for f in self.figures],
                "features": [asdict(f) for f in self.features], "notes": list(self.notes)}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], registry: Registry) -> Self:
        """Inverse of `tensors` and `facts`."""
        cards = [FeatureCard.of(f) for f in facts["features"]]
        return cls([Measurement(**m) for m in facts["measurements"]], [Figure(**f) for f in facts["figures"]], cards,
                   facts["notes"], dict(tensors))


@dataclass(frozen=True)
class EvaluationInputs:
    """What an evaluator may look at.

    Args:
        model: the model.
        basis: the basis under test.
        activations: what the basis was trained on, with a held-out part.
        test: harvested from further text, to measure on instead of the held-out part; None: the held-out part.
        seed: of the pipeline.
        progress: where to report.
    """

    model: ModelAdapter
    basis: Basis
    activations: Activations
    test: Activations | None = None
    seed: int = 0
    progress: Progress = field(default_factory=Silent)

    def held_out(self) -> list[TokenSequence]:
        """Whole sequences nothing was trained on: all of `test`, else the held-out part of `activations`.

        They may begin as training sequences do (a shared system prompt): see `Activations.unseen`.
        """
        if self.test is None:
            return self.activations.sequences("held-out")
        held = self.test.sequences("held-out") if len(self.test.held) else []
        return sorted(self.test.sequences("train") + held, key=lambda s: s.sequence)


class Evaluator(Configured[C]):
    """Measures. Every number stands beside its controls and carries n and an interval."""

    @abstractmethod
    def evaluate(self, inputs: EvaluationInputs) -> Findings:
        """Measurements, figures, cards."""
