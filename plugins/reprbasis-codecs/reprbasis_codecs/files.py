"""Reading and writing the files of a checkpoint, and what all four codecs share."""

import json
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from reprbasis import __version__
from reprbasis.artifacts.manifest import write_json
from reprbasis.artifacts.store import read_tensors, write_tensors
from reprbasis.errors import ArtifactError
from reprbasis.interfaces.base import C
from reprbasis.interfaces.codec import Codec
from reprbasis.registry import Registry
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .names import hook
from .plain import Plain

NOTE = "reprbasis"
"""Key of our own note in a foreign config; every format lets it pass."""


class Exchange(Codec[C]):
    """A format that keeps one dictionary of one site in one folder: a config and weights."""

    title: ClassVar[str]
    config_file: ClassVar[str]
    weights_file: ClassVar[str]

    @abstractmethod
    def load(self, config: dict[str, Any], folder: Path, registry: Registry) -> Basis:
        """A basis from the config; weights are read with `weights`."""

    @abstractmethod
    def dump(self, basis: Basis, plain: Plain, site: Site) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Config and weights of one site; `plain` is the dictionary in the basis's own normalised units."""

    def detect(self, folder: Path) -> bool:
        """Whether config and weights are there."""
        return (folder / self.config_file).is_file() and (folder / self.weights_file).is_file()

    def read(self, folder: Path, registry: Registry) -> Basis:
        """Import one checkpoint as a basis over one site.

        Raises:
            ArtifactError: files are missing, damaged or do not fit together.
            CapabilityError: the dictionary does what no learner here does.
            UnknownComponentError: its learner is not installed.
        """
        if not self.detect(folder):
            raise ArtifactError(f"there is no {self.title} checkpoint here ({self.config_file} with {self.weights_file})",
                                where=str(folder), do="name the folder that holds both files")
        return self.load(read_config(folder / self.config_file), folder, registry)

    def write(self, basis: Basis, folder: Path) -> list[Path]:
        """Export one checkpoint for each site, the site's normaliser folded in; returns their folders.

        Raises:
            CapabilityError: the format has no such dictionary.
        """
        plain, out = Plain.of(basis, self.title), []
        for site in basis.sites:
            config, weights = self.dump(basis, plain, site)
            target = folder / self.place(site)
            target.mkdir(parents=True, exist_ok=True)
            write_tensors(target / self.weights_file, weights)
            write_json(target / self.config_file, config)
            out.append(target)
        return out

    def place(self, site: Site) -> str:
        """Folder of a site's checkpoint."""
        return str(site)

    def weights(self, folder: Path) -> dict[str, Tensor]:
        """The tensors of the checkpoint, half precision widened to float32, which loses nothing."""
        found = read_tensors(folder / self.weights_file)
        return {n: t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for n, t in found.items()}

    def on_disk(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights in the number format asked for."""
        dtype = getattr(torch, self.config.dtype)
        return {n: (t.to(dtype) if t.is_floating_point() else t).contiguous() for n, t in tensors.items()}

    def folded(self, basis: Basis, plain: Plain, site: Site, *, centred: bool | None = None) -> Plain:
        """The dictionary for raw activations of a site; `centred` None: only where there is something to centre."""
        index = basis.index(site)
        mean, scale = basis.normaliser.mean[index].cpu(), basis.normaliser.scale[index].cpu()
        if centred is None:
            centred = bool(mean.any()) or float(scale) != 1
        return plain.raw(mean, scale, keep=self.config.fold, centred=centred)

    def details(self, architecture: str, config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """What a basis remembers of the checkpoint it came from."""
        kept = {k: v for k, v in config.items() if k != NOTE}
        return {"imported": {"format": self.full_name or self.title, "architecture": architecture, "config": kept, **more}}

    def imported(self, basis: Basis) -> dict[str, Any]:
        """What `details` noted, if the basis came from this very format."""
        found: dict[str, Any] = basis.details.get("imported", {})
        return found if found.get("format") == (self.full_name or self.title) else {}

    def note(self, site: Site) -> dict[str, Any]:
        """Our own note in the config."""
        return {"version": __version__, "site": str(site), "fold": self.config.fold}


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ArtifactError: it is damaged.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"the config is damaged ({error})", where=str(path), do="get the checkpoint again") from error
    if not isinstance(found, dict):
        raise ArtifactError("the config is no JSON object", where=str(path), do="get the checkpoint again")
    return found


def model_name(basis: Basis) -> str | None:
    """The checkpoint whose activations the basis was learned on, if it is known and is no path on somebody's disk."""
    model = basis.details.get("activations", {}).get("model", {})
    name = model.get("config", {}).get("checkpoint")
    return None if name is None or Path(str(name)).is_absolute() else str(name)


def context_size(basis: Basis) -> int | None:
    """Longest sequence in training, if it is known."""
    found = basis.details.get("activations", {}).get("max_tokens")
    return None if found is None else int(found)


def hook_or_site(site: Site) -> str:
    """The TransformerLens name, or ours where there is none."""
    return hook(site) or str(site)
