"""Kind `codec`: import and export foreign dictionary formats."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from .base import C, Configured

if TYPE_CHECKING:
    from ..registry import Registry
    from ..runtime.basis import Basis


class Codec(Configured[C]):
    """One foreign format, both ways; lossless as far as the format allows."""

    @abstractmethod
    def detect(self, folder: Path) -> bool:
        """Whether a folder holds this format."""

    @abstractmethod
    def read(self, folder: Path, registry: Registry) -> Basis:
        """Import."""

    @abstractmethod
    def write(self, basis: Basis, folder: Path) -> list[Path]:
        """Export; returns what was written (one folder per site where the format knows single sites only)."""
