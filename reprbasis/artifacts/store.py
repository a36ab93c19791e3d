"""Save and load artifacts: atomic, hashed, safetensors and JSON only."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..component import ARTIFACTS
from ..errors import ArtifactError, StorageError
from ..interfaces.artifact import Artifact
from .manifest import Manifest, hash_file, new_folder, read_manifest, storage, verify, write_manifest

if TYPE_CHECKING:
    from ..registry import Registry

TENSORS = "tensors.safetensors"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file so that it either exists whole or not at all."""
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        try:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part)
            with part.open("rb") as f:
                os.fsync(f.fileno())
            part.replace(path)
        except SafetensorError as e:
            full = "No space left" in str(e)
            raise StorageError("the disk is full" if full else f"the file could not be written ({e})", where=str(path),
                               do="free some space and run the same command again; it resumes" if full
                               else "choose another directory (--runs DIR) or change its permissions") from e
        finally:
            part.unlink(missing_ok=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ArtifactError: it is missing or is not a whole safetensors file.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except (SafetensorError, OSError) as e:
        raise ArtifactError(f"the file cannot be read as safetensors ({e})", where=str(path),
                            do="make the artifact again") from e


def save(artifact: Artifact, folder: str | Path, *, fingerprint: str = "", writer: Mapping[str, str] | None = None,
         inputs: Mapping[str, str] | None = None, seconds: float = 0.0, overwrite: bool = False) -> Path:
    """Save an artifact as a directory, atomically.

    Args:
        artifact: what to save. Files it already keeps on disk (`files()`) are linked or copied in.
        folder: where; must not exist unless `overwrite`.
        fingerprint, writer, inputs, seconds: recorded in the manifest (the pipeline fills them in).
        overwrite: replace an existing artifact (never another kind of directory).

    Raises:
        StorageError: the disk is full or not writable; nothing half-written remains.
        ArtifactError: `folder` exists and is not to be replaced.
    """
    folder = Path(folder)
    if folder.exists() and not (overwrite and (folder / "manifest.json").is_file()):
        raise ArtifactError("something is here already", where=str(folder),
                            do="choose another folder" + ("" if overwrite else " or pass overwrite=True"))
    with new_folder(folder) as part:
        for name, source in artifact.files().items():
            target = part / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)
        if tensors := artifact.tensors():
            write_tensors(part / TENSORS, tensors)
        files = {str(p.relative_to(part)): hash_file(p) for p in sorted(part.rglob("*")) if p.is_file()}
        write_manifest(part, Manifest(artifact.type, artifact.facts(), files, fingerprint, writer or {}, inputs or {},
                                      seconds))
    return folder


def artifact_class(type_name: str) -> type[Artifact]:
    """The class that loads artifacts of this type.

    Raises:
        ArtifactError: no such type is known.
    """
    if type_name not in ARTIFACTS:
        raise ArtifactError(f"artifacts of type '{type_name}' are unknown here", do="upgrade reprbasis")
    module, _, name = ARTIFACTS[type_name].partition(":")
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, type)
    assert issubclass(found, Artifact)
    return found


def attached(artifact: Artifact, folder: Path, registry: Registry) -> Artifact:
    """The artifact as it now lies in `folder`, just saved: opened there if it keeps files, else the same object."""
    return (type(artifact).attach(folder, artifact.facts(), registry) or artifact) if artifact.files() else artifact


def load(folder: str | Path, registry: Registry | None = None) -> Artifact:
    """Load an artifact after checking the hash of every file (cost: one read of all its bytes).

    Raises:
        ArtifactError: missing, damaged (the file is named) or of an unknown type.
        UnknownComponentError: a component it was made by is not installed; the message names the distribution.
    """
    from ..discovery import default_registry

    folder = Path(folder)
    manifest = read_manifest(folder)
    verify(folder, manifest)
    cls = artifact_class(manifest.type)
    registry = registry or default_registry()
    attached = cls.attach(folder, manifest.facts, registry)
    if attached is not None:
        return attached
    tensors = read_tensors(folder / TENSORS) if TENSORS in manifest.files else {}
    return cls.load(tensors, manifest.facts, registry)
