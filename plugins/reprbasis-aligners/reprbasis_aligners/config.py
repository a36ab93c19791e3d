"""Options of the aligners and of the steps."""

from typing import Annotated, Literal

from pydantic import Field

from reprbasis import ComponentConfig, Selection, Use


class PlainConfig(ComponentConfig):
    """No options."""


class ReducedConfig(ComponentConfig):
    """Options of `procrustes-pca`."""

    variance: float = Field(0.95, gt=0, le=1)
    """Share of the variance that both spaces keep; as many principal components as the needier one takes."""
    rank: int | None = Field(None, ge=1)
    """Use exactly this many components instead."""
    scale: bool = True
    """One factor for how much larger one stream is than the other; without it R² tells the difference in size and little else."""


class RidgeConfig(ComponentConfig):
    """Options of `ridge`."""

    penalties: tuple[float, ...] = Field(tuple(10.0 ** e for e in range(-6, 3)), min_length=1)
    """Tried penalties, as multiples of the mean variance of a dimension; the one of least error on left-out rows is taken."""
    folds: int = Field(5, ge=2)
    """Contiguous parts of the rows, each left out once (neighbouring rows are tokens of one text and must not be split)."""


class CCAConfig(ComponentConfig):
    """Options of `cca`."""

    shrinkage: float = Field(0.01, ge=0, le=1)
    """Weight of the mean variance in every direction's variance; without it small samples correlate perfectly."""
    rank: int | None = Field(None, ge=1)
    """Keep this many canonical pairs; by default all."""


class UnembeddingConfig(ComponentConfig):
    """Options of `unembedding`."""

    tolerance: float = Field(1e-6, gt=0, lt=1)
    """Singular values below this share of the largest count as zero."""


class RelativeConfig(ComponentConfig):
    """Options of `relative`."""

    anchors: int | None = Field(None, ge=2)
    """Paired rows that serve as anchors, drawn at random; null: three for each dimension of the wider space."""
    tolerances: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field((0.003, 0.01, 0.03, 0.1, 0.3), min_length=1)
    """Tried: directions in which anchors spread less than this share of their widest spread map to 0. The one of least error on
    as many further pairs is taken."""
    seed: int = Field(0, ge=0)
    """Of the draw."""


class ContrastConfig(ComponentConfig):
    """Two sets of prompts, and next words that tell which set a prompt is like."""

    name: str
    """A word for it."""
    positive: tuple[str, ...] = Field(min_length=4)
    """Prompts of one set; even ones make the direction."""
    negative: tuple[str, ...] = Field(min_length=4)
    """Prompts of the other set; odd ones are steered."""
    toward: tuple[str, ...] = Field(min_length=1)
    """Next words of the first set, with their leading space."""
    away: tuple[str, ...] = Field(min_length=1)
    """Next words of the other set."""


class AlignConfig(ComponentConfig):
    """Options of the step `align`."""

    to: Annotated[Selection, Use("model")]
    """The second model; the first is the pipeline's."""
    corpus: Annotated[Selection, Use("corpus")]
    """Text both read; of dialogues, the words alone."""
    site: str
    """Site of the first model."""
    to_site: str | None = None
    """Site of the second; null: that of the same name."""
    aligner: Annotated[Selection, Use("aligner")]
    """The kind of map."""
    anchors: Literal["activations", "vocabulary"] = "activations"
    """What the map is fitted to: activations paired by text offsets, or unembedding rows of shared tokens."""
    tokens: int = Field(8000, ge=100)
    """Paired tokens; a fifth of the texts is held out."""
    max_tokens: int = Field(256, ge=2)
    """Longer texts are cut."""


class MoveConfig(ComponentConfig):
    """Options of the step `move`."""

    site: str | None = None
    """Site of the basis; null: the one that the alignment starts from."""
    to_site: str | None = None
    """Site of the second model; null: the one that the alignment leads to."""


class TransferredConfig(ComponentConfig):
    """Options of the step `transferred`."""

    to: Annotated[Selection, Use("model")]
    """The second model; the first is the pipeline's."""
    corpus: Annotated[Selection, Use("corpus")]
    """Text by which harm and reconstruction are measured; not that of the alignment."""
    contrasts: tuple[ContrastConfig, ...] = ()
    """Directions to steer along. Of several, each is another's control `wrong-feature`."""
    tables: tuple[Annotated[Selection, Use("step")], ...] = ()
    """Steps that give a table of heads as findings (`prefer`), run on both models. Of several, each is another's control."""
    value: str = "gain"
    """Which of a table's values, [layers, heads or more]."""
    strength: float = Field(1.0, gt=0)
    """Length of a steering vector, as a multiple of the second model's own."""
    tokens: int = Field(2000, ge=100)
    """Paired held-out tokens for the dictionary."""
    texts: int = Field(16, ge=2)
    """Texts for divergence and cross-entropy."""
    max_tokens: int = Field(64, ge=2)
    """Tokens of each text."""
