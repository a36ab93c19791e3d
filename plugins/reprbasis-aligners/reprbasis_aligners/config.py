"""Options of the aligners."""

from pydantic import Field

from reprbasis import ComponentConfig


class PlainConfig(ComponentConfig):
    """No options."""


class ReducedConfig(ComponentConfig):
    """Options of `procrustes-pca`."""

    variance: float = Field(0.95, gt=0, le=1)
    """Share of the variance that both spaces keep; as many principal components as the needier one takes."""
    rank: int | None = Field(None, ge=1)
    """Use exactly this many components instead."""


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
    tolerance: float = Field(0.03, gt=0, lt=1)
    """Directions in which anchors spread less than this share of their widest spread count as not seen: they map to 0."""
    seed: int = Field(0, ge=0)
    """Of the draw."""
