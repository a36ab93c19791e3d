"""Manifests: what an artifact is, what went into it, and the hash of every file. This module imports no torch.

An artifact is a directory with `manifest.json`. The manifest is written last, so its presence means the artifact is complete.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from ..errors import ArtifactError, StorageError

NAME: Final = "manifest.json"
FORMAT: Final = 1


@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Args:
        type: artifact type, a key of `reprbasis.component.ARTIFACTS`.
        facts: the artifact's own facts.
        files: relative path -> size and hash.
        fingerprint: digest of everything that went in; empty when saved by hand.
        writer: full name and version of the step component that made it, empty when saved by hand.
        inputs: port -> fingerprint of the artifact that went in.
        seconds: time that making it took, since the last interruption (0: not known).
        format: version of this layout.
    """

    type: str
    facts: Mapping[str, Any]
    files: Mapping[str, FileRecord]
    fingerprint: str = ""
    writer: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    format: int = FORMAT


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def hash_file(path: Path) -> FileRecord:
    """Size and SHA-256 of a file, read once."""
    with path.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    return FileRecord(path.stat().st_size, digest)


@contextlib.contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn the operating system's complaints about writing into one clear message."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError("the disk is full", where=str(path),
                               do="free some space and run the same command again; it resumes") from e
        if e.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENOENT):
            raise StorageError(f"this place cannot be written to ({(e.strerror or str(e)).lower()})", where=str(path),
                               do="choose another directory (--runs DIR) or change its permissions") from e
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it either exists whole or not at all."""
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        try:
            with part.open("wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A fresh directory beside `target` that takes its place when the block ends well, and vanishes when it does not."""
    part = target.with_name(f".{target.name}.part-{os.getpid()}")
    with storage(target):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            yield part
            if target.exists():
                old = target.with_name(f".{target.name}.old-{os.getpid()}")
                target.rename(old)
                part.rename(target)
                shutil.rmtree(old, ignore_errors=True)
            else:
                part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` (call it last)."""
    write_json(folder / NAME, asdict(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json`.

    Raises:
        ArtifactError: there is none, or it cannot be understood.
    """
    path = folder / NAME
    if not path.is_file():
        raise ArtifactError("no complete artifact is here", where=str(folder),
                            do="give the folder that holds manifest.json, or run the pipeline that makes it")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise ArtifactError(f"the artifact has format {raw['format']}, this version reads {FORMAT}", where=str(path),
                                do="use the reprbasis version that wrote it, or make it again")
        files = {k: FileRecord(**v) for k, v in raw.pop("files").items()}
        return Manifest(files=files, **raw)
    except (ValueError, KeyError, TypeError) as e:
        raise ArtifactError(f"the manifest is damaged ({e})", where=str(path), do=_remake(folder)) from e


def verify(folder: Path, manifest: Manifest) -> None:
    """Check size and hash of every file.

    Raises:
        ArtifactError: names the first file that is missing or differs, and how to make it again.
    """
    for name, want in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError("a file of the artifact is missing", where=str(path), do=_remake(folder))
        if path.stat().st_size != want.bytes or hash_file(path).sha256 != want.sha256:
            raise ArtifactError("the file is damaged: its hash is not the one in the manifest", where=str(path),
                                do=_remake(folder))


def _remake(folder: Path) -> str:
    step = folder.name.rpartition("-")[0] or folder.name
    return f"make it again: reprbasis run PIPELINE --force {step}"
