"""Declares the aligners; imports no torch."""

from reprbasis import Component, hookimpl

from .config import CCAConfig, PlainConfig, ReducedConfig, RelativeConfig, RidgeConfig, UnembeddingConfig

ALIGNERS = (
    ("procrustes", PlainConfig, "Procrustes", {"invertible"}, "The best rotation between two spaces of one width"),
    ("procrustes-scaled", PlainConfig, "ScaledProcrustes", {"invertible"}, "The best rotation and scale"),
    ("procrustes-pca", ReducedConfig, "ReducedProcrustes", set(), "The best rotation between principal components, any widths"),
    ("l-ortho", PlainConfig, "LOrtho", set(), "The orthogonal factor of the least-squares map"),
    ("affine", PlainConfig, "Affine", set(), "Least squares with a regression of its own for the way back"),
    ("ridge", RidgeConfig, "Ridge", set(), "Ridge regression, penalty chosen by cross-validation"),
    ("cca", CCAConfig, "CCA", set(), "Through canonical variates with shrunk covariances"),
    ("relative", RelativeConfig, "Relative", set(), "Through cosines to anchors that both spaces share"),
    ("unembedding", UnembeddingConfig, "Unembedding", set(), "The map that equates logits, from unembedding rows alone"),
)


@hookimpl
def reprbasis_register(register):
    """Offer every aligner."""
    for name, config, cls, provides, summary in ALIGNERS:
        register(Component(kind="aligner", name=name, config=config, factory=f"reprbasis_aligners.maps:{cls}",
                           provides=frozenset(provides), summary=summary))
