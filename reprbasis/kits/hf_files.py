"""Checkpoints on disk: finding them, their identity, and a GGUF file turned once into a safetensors directory."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..artifacts.manifest import write_bytes
from ..errors import ArtifactError, PluginError, StorageError, UserError, near

_log = logging.getLogger(__name__)
_NOTE = "conversion.json"
_LARGE = 1 << 24
_STALE_S = 3600.0


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint found: a directory in Hugging Face layout, or a GGUF file; `commit` for one from the hub."""

    path: Path
    commit: str | None = None

    @property
    def gguf(self) -> bool:
        """Whether it is a GGUF file."""
        return self.path.is_file()

    @property
    def identity(self) -> str:
        """What tells these weights, config and tokenizer from others: hub commit, or a digest of the files."""
        if self.commit:
            return f"hub:{self.commit}"
        if self.gguf:
            return f"gguf:{digest([self.path])}"
        names = sorted(p for p in self.path.iterdir() if p.suffix in {".json", ".safetensors", ".jinja", ".model"})
        return f"files:{digest(p for p in names if p.name != _NOTE)}"


def cache_dir() -> Path:
    """Where converted models are kept: `$REPRBASIS_CACHE`, or `reprbasis` in the user's cache directory."""
    if own := os.environ.get("REPRBASIS_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "reprbasis"


def digest(paths: Iterable[Path]) -> str:
    """Digest of names and whole contents of files, so that an edited model is another model.

    The hash of a large file is remembered in the cache by its path, size and time of change: it is read once (about a second
    per gigabyte).
    """
    whole = hashlib.sha256()
    for path in paths:
        whole.update(f"{path.name}\0{_remembered_sha(path)}\0".encode())
    return whole.hexdigest()[:32]


def _remembered_sha(path: Path) -> str:
    stat = path.stat()
    if stat.st_size < _LARGE:
        return _sha(path)
    key = hashlib.sha256(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:32]
    note = cache_dir() / "hashes" / key
    try:
        return note.read_text(encoding="ascii")
    except (OSError, ValueError):
        sha = _sha(path)
    try:
        write_bytes(note, sha.encode())
    except (OSError, StorageError) as error:
        _log.debug("the hash of %s is not remembered: %s", path, error)
    return sha


def locate(checkpoint: str, revision: str | None, *, weights: bool,
           named: Mapping[str, Callable[[], Path]] | None = None) -> Checkpoint:
    """Find a checkpoint: one with a name, a path on disk, or a hub id (downloaded to the hub's own cache).

    Args:
        checkpoint: name, path or hub id.
        revision: branch, tag or commit of a hub checkpoint.
        weights: whether the weights are needed; if not, only `config.json` is downloaded.
        named: names of checkpoints that come in Python packages, and what finds each.

    Raises:
        UserError: nothing is there, or the hub does not have it.
    """
    path = Path(checkpoint).expanduser()
    local = path.exists() or checkpoint.startswith((".", "/", "~")) or path.suffix == ".gguf"
    if not local:
        if named and checkpoint in named:
            path, local = named[checkpoint](), True
        elif "/" not in checkpoint:  # said at once: without a connection the hub would be tried for half a minute
            raise _unknown(checkpoint, named or {})
    if local:
        if revision is not None:
            raise UserError(f"revision '{revision}' is set for the local checkpoint '{checkpoint}'",
                            do="leave revision out")
        if path.is_dir() and not (path / "config.json").is_file():
            raise UserError(f"'{checkpoint}' has no config.json",
                            do="name a directory in Hugging Face layout or a .gguf file")
        if not path.exists():
            raise UserError(f"there is no checkpoint at '{checkpoint}'", do="check the path")
        return Checkpoint(path)
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        if weights:
            wanted = ["*.json", "*.safetensors", "*.jinja", "*.model"]
            folder = Path(snapshot_download(checkpoint, revision=revision, allow_patterns=wanted))
        else:
            folder = Path(hf_hub_download(checkpoint, "config.json", revision=revision)).parent
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        told = str(error).splitlines()[0]
        raise UserError(f"cannot get '{checkpoint}': it is no path on disk, and the hub answers: {told}",
                        do="check the name and the connection, or name a local directory") from error
    return Checkpoint(folder, commit=folder.name)


def _unknown(checkpoint: str, own: Iterable[str]) -> UserError:
    """The error for a name that is not among an adapter's own, with what may have been meant: all adapters are asked."""
    from ..discovery import default_registry

    runs: dict[str, str] = {}
    for found in (registry := default_registry()).components("model"):
        try:
            runs |= dict.fromkeys(registry.load("model", found.full_name).named, found.name)
        except PluginError as error:  # which is told where that adapter is used
            _log.debug("%s cannot say which checkpoints it has: %s", found.full_name, error)
    if use := runs.get(checkpoint):
        return UserError(f"'{checkpoint}' is a checkpoint of the model '{use}'",
                         do=f"write {{use: {use}, checkpoint: {checkpoint}}}")
    guess = [near(checkpoint, {*own, *runs}), "name a directory, a GGUF file or a hub id (owner/name)"]
    return UserError(f"there is no checkpoint '{checkpoint}'", do="\n     ".join(filter(None, guess)))


def packaged(package: str, file: str) -> Path | None:
    """A file or folder inside an installed Python package, or None. The package is found, not imported."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        if (path := Path(folder) / file).exists():
            return path
    return None


def converted(gguf: Path) -> Path:
    """The safetensors directory made from a GGUF file, converting it (once per user) if need be; files are verified.

    The directory appears by one rename, so it is whole or absent, whatever is killed and however many convert at once.

    Raises:
        ArtifactError: a converted file is damaged. UserError: a package for the conversion is missing.
        StorageError: the cache cannot be written.
    """
    target = conversion_target(gguf)
    if not target.is_dir():
        _log.info("converting %s once to %s", gguf.name, target)
        _convert(gguf, target)
    verify(target)
    return target


def conversion_target(gguf: Path) -> Path:
    """Where the conversion of that file belongs."""
    return cache_dir() / "models" / f"{gguf.stem}-{digest([gguf])[:12]}"


def verify(folder: Path) -> None:
    """Compare every file of a conversion with the hash taken when it was written.

    Raises:
        ArtifactError: names the first file that is missing or differs, and the remedy.
    """
    remedy = f"remove the directory {folder}; it is converted again on the next use"
    try:
        files = json.loads((folder / _NOTE).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError("the note of the conversion cannot be read", where=str(folder / _NOTE),
                            do=remedy) from error
    for name, sha in files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError("a converted file is missing", where=str(path), do=remedy)
        if _sha(path) != sha:
            raise ArtifactError("a converted file is damaged: it does not have the content that was written",
                                where=str(path), do=remedy)


def _sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(gguf: Path, target: Path) -> None:
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"reading {gguf.name} needs the package '{package}'", do="pip install gguf accelerate")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise StorageError(f"cannot write to the cache: {error}", where=str(target.parent),
                           do="free space, or set REPRBASIS_CACHE to another directory") from error
    try:
        _write(gguf, work)
        try:
            work.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was first, and its conversion is as good
                raise
    except OSError as error:
        raise StorageError(f"cannot write the conversion: {error}", where=str(target),
                           do="free space, or set REPRBASIS_CACHE to another directory") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sweep(target: Path) -> None:
    """Remove what killed conversions of this file left behind."""
    for left in target.parent.glob(f".{target.name}-*"):
        if time.time() - left.stat().st_mtime > _STALE_S:
            shutil.rmtree(left, ignore_errors=True)


def _write(gguf: Path, work: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32,
                                                     local_files_only=True)
        # the weights are plain float32 now; these marks would make saving refuse and trainers think they are quantised
        model.hf_quantizer = None
        for name in ("is_quantized", "quantization_method"):
            vars(model).pop(name, None)
        del model.config.quantization_config
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
    files = {p.name: _sha(p) for p in sorted(work.iterdir())}
    note = {"source": gguf.name, "files": files}
    (work / _NOTE).write_text(json.dumps(note, indent=1), encoding="utf-8")
    for path in work.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars; as they were afterwards."""
    from transformers.utils import logging as hf_logging

    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()
