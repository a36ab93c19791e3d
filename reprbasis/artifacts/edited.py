"""A checkpoint with an edit in it, from which the unedited weights can be had back bit for bit."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import ArtifactError, CapabilityError, StorageError
from ..interfaces.editor import EditPlan
from ..interfaces.model import ModelAdapter
from .manifest import hash_file, new_folder, storage
from .store import read_tensors, write_tensors

BEFORE, FACTS = "reprbasis-edit.before", "reprbasis-edit.json"
"""Beside the weights: the changed tensors as they were (safetensors, but called otherwise, so that loaders of checkpoints pass
it by), and what was changed."""


def export_edited(model: ModelAdapter[Any], plans: Sequence[EditPlan], folder: str | Path) -> Path:
    """Write the model with plans in force, one after the other, as a checkpoint directory; the model is left as it was.

    Raises:
        ArtifactError: something is there already.
        CapabilityError: a plan shifts activations, which no checkpoint holds, or the adapter cannot write checkpoints.
        StorageError: the disk is full or not writable, or the files name the weights otherwise than the model.
    """
    folder = Path(folder)
    if folder.exists():
        raise ArtifactError("something is here already", where=str(folder), do="choose another folder")
    if any(plan.books for plan in plans):
        raise CapabilityError("the edit shifts activations while the model runs, which no checkpoint can hold",
                              do="save the plan instead, or use an editor that changes weights")
    names = sorted({name for plan in plans for name in plan.deltas})
    before = {name: model.parameters()[name].detach().clone() for name in names}
    with new_folder(folder) as part, storage(folder):
        with ExitStack() as stack:
            for plan in plans:
                stack.enter_context(plan.applied(model))
            model.save(part)
        held = {name for file in part.glob("*.safetensors") for name in _names(file)}
        if missing := [name for name in names if name not in held]:
            raise StorageError(f"the checkpoint's files do not name the weight '{missing[0]}'", where=str(folder),
                               do="save the plan instead")
        write_tensors(part / BEFORE, before)
        (part / FACTS).write_text(json.dumps({"changed": names, "before": hash_file(part / BEFORE).sha256,
                                              "plans": [dict(p.details) for p in plans]}, indent=1, default=str), "utf-8")
    return folder


def revert_edited(folder: str | Path) -> list[str]:
    """Put the unedited weights back, file by file, each in one step; run it again if it was interrupted. Names what changed.

    Raises:
        ArtifactError: no edited checkpoint is here, or what was kept of the weights is damaged.
    """
    folder = Path(folder)
    if not (folder / FACTS).is_file():
        raise ArtifactError("no edited checkpoint is here", where=str(folder),
                            do=f"give a folder that `reprbasis edit --export` has written (it holds {FACTS})")
    facts = json.loads((folder / FACTS).read_text("utf-8"))
    if not (folder / BEFORE).is_file() or hash_file(folder / BEFORE).sha256 != facts["before"]:
        raise ArtifactError("what was kept of the unedited weights is missing or damaged", where=str(folder / BEFORE),
                            do="take the original checkpoint")
    before = read_tensors(folder / BEFORE)
    for file in sorted(folder.glob("*.safetensors")):
        if _names(file) & before.keys():
            _replace(file, before)
    (folder / FACTS).unlink()
    (folder / BEFORE).unlink()
    return sorted(before)


def _names(file: Path) -> set[str]:
    with safe_open(file, framework="pt") as held:
        return set(held.keys())


def _replace(file: Path, values: dict[str, Tensor]) -> None:
    with safe_open(file, framework="pt") as held:
        metadata = held.metadata()
        tensors = {name: values[name].to(held.get_tensor(name).dtype) if name in values else held.get_tensor(name)
                   for name in held.keys()}  # noqa: SIM118 - not a mapping
    part = file.with_name(f".{file.name}.part")
    with storage(file):
        try:
            save_file(tensors, part, metadata=metadata)
            with part.open("rb") as written:
                os.fsync(written.fileno())
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
