"""Declares the aligners and the steps; imports no torch."""

from reprbasis import Component, Port, hookimpl

from .config import (
    AlignConfig,
    CCAConfig,
    MoveConfig,
    PlainConfig,
    ReducedConfig,
    RelativeConfig,
    RidgeConfig,
    TransferredConfig,
    UnembeddingConfig,
)

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
    """Offer every aligner, and the steps `align`, `move` and `transferred`."""
    for name, config, cls, provides, summary in ALIGNERS:
        register(Component(kind="aligner", name=name, config=config, factory=f"reprbasis_aligners.maps:{cls}",
                           provides=frozenset(provides), summary=summary))
    steps = "reprbasis_aligners.steps"
    register(Component(
        kind="step", name="align", config=AlignConfig, factory=f"{steps}:AlignStep", output="alignment", needs_model=True,
        summary="Fit a map from a site of the pipeline's model to a site of another, and judge it"))
    register(Component(
        kind="step", name="move", config=MoveConfig, factory=f"{steps}:MoveStep", output="basis",
        summary="Move a dictionary to another model through an alignment",
        inputs=(Port("basis", "basis", requires=frozenset({"affine-decoder"})), Port("alignment", "alignment"))))
    register(Component(
        kind="step", name="transferred", config=TransferredConfig, factory=f"{steps}:TransferredStep", output="findings",
        needs_model=True, summary="Does what is moved through an alignment work in the other model, against controls",
        inputs=(Port("alignment", "alignment"), Port("basis", "basis", optional=True), Port("native", "basis", optional=True))))
