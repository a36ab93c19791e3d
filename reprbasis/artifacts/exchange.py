"""Bases to and from foreign formats, through the installed codecs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..interfaces.codec import Codec
from ..runtime.basis import Basis
from ..sites import Site
from .manifest import new_folder

if TYPE_CHECKING:
    from ..registry import Registry


def export(basis: Basis, format: str, folder: str | Path, *, sites: str | Collection[str | Site] | None = None,
           registry: Registry | None = None, **options: Any) -> list[Path]:
    """Write a basis in a foreign format; all of it or, after an error, nothing.

    Args:
        basis: what to write.
        format: name of an installed codec.
        folder: where; it must not exist.
        sites: selectors; by default all sites of the basis.
        registry: where the codec is looked up (default: everything installed).
        options: of the codec.

    Returns:
        What was written: one folder for each site, where the format knows single sites only.

    Raises:
        UserError: `folder` exists; the format has no such dictionary (CapabilityError); a site or option is unknown.
        StorageError: the disk is full or not writable.
    """
    codec, target = _registry(registry).create("codec", format, **options), Path(folder)
    if target.exists():
        raise UserError("something is here already", where=str(target), do="choose another folder")
    chosen = basis if sites is None else basis.at(sites)
    with new_folder(target) as part:
        written = codec.write(chosen, part)
    return [target / path.relative_to(part) for path in written]


def import_(folder: str | Path, format: str | None = None, *, registry: Registry | None = None, **options: Any) -> Basis:
    """Read a basis from a foreign format. Nothing that could run code is opened.

    Args:
        folder: a checkpoint, or a folder with one checkpoint in it.
        format: name of an installed codec; None: the one codec that recognises the folder.
        registry: where codecs and learners are looked up (default: everything installed).
        options: of the codec.

    Raises:
        UserError: no checkpoint is there, or several; the format is unclear; the dictionary does what no learner here does
            (CapabilityError), or its learner is not installed (UnknownComponentError).
        ArtifactError: a file is damaged.
    """
    registry, source = _registry(registry), Path(folder)
    if not source.is_dir():
        raise UserError("there is no such folder", where=str(source), do="name the folder that holds the checkpoint")
    if format is None:
        format = _recognise(source, registry)
    codec: Codec[Any] = registry.create("codec", format, **options)
    found = _checkpoints(codec, source)
    if not found:
        raise UserError(f"there is no checkpoint of the format {format} here", where=str(source),
                        do="name the folder of one checkpoint, or leave the format out to have it recognised")
    if len(found) > 1:
        raise UserError(f"there are {len(found)} checkpoints here, each with a dictionary of its own", where=str(source),
                        do=f"name one of them, for example {found[0]}")
    return codec.read(found[0], registry)


def _checkpoints(codec: Codec[Any], folder: Path) -> list[Path]:
    return [folder] if codec.detect(folder) else [p for p in sorted(folder.iterdir()) if p.is_dir() and codec.detect(p)]


def _recognise(folder: Path, registry: Registry) -> str:
    codecs = {r.full_name: registry.create("codec", r.full_name) for r in registry.components("codec")
              if not any(f.is_required() for f in r.component.config.model_fields.values())}
    known = [name for name, codec in codecs.items() if _checkpoints(codec, folder)]
    if len(known) == 1:
        return known[0]
    if known:
        raise UserError(f"the folder could be {' or '.join(known)}", where=str(folder), do="name the format")
    raise UserError("no installed codec recognises this folder", where=str(folder),
                    do="see `reprbasis plugins list codec`; reprbasis-codecs has the common formats")


def _registry(registry: Registry | None) -> Registry:
    from ..discovery import default_registry

    return registry or default_registry()
