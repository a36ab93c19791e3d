"""What every component shares: it is built from its config, and nothing else."""

from __future__ import annotations

from abc import ABC
from typing import Any, Generic

from typing_extensions import TypeVar

from ..component import ComponentConfig

C = TypeVar("C", bound=ComponentConfig, default=Any)


class Configured(ABC, Generic[C]):
    """A component built from its validated config. The registry sets `full_name` (`distribution/name`) on creation."""

    full_name: str = ""

    def __init__(self, config: C) -> None:
        self.config = config

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r})"
