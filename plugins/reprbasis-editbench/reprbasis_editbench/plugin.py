"""Declares the steps and the corpus; imports no torch."""

from reprbasis import Component, Port, hookimpl

from .config import EditConfig, EditScoreConfig, UnlearningConfig


@hookimpl
def reprbasis_register(register):
    """Offer `edit`, `edit-score` and `unlearning`."""
    register(Component(
        kind="step", name="edit", config=EditConfig, factory="reprbasis_editbench.steps:EditStep",
        summary="Plan an edit of the model with any editor, for a benchmark, a task or a request in words",
        inputs=(Port("basis", "basis", optional=True),), output="edit-plan", needs_model=True))
    register(Component(
        kind="step", name="edit-score", config=EditScoreConfig, factory="reprbasis_editbench.steps:EditScoreStep",
        summary="Judge an edit: fitted beside held out, what must stay, relearning, coarser weights, residue; with controls",
        inputs=(Port("plan", "edit-plan"),), output="findings", needs_model=True))
    register(Component(
        kind="corpus", name="unlearning", config=UnlearningConfig, factory="reprbasis_editbench.hub:UnlearningCorpus",
        summary="Rows of TOFU, MUSE and WMDP, from the hub or from files"))
