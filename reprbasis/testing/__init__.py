"""The conformance kit: prove a plugin by subclassing the suite of its kind (extra `reprbasis[testing]`).

In the plugin's own tests::

    from reprbasis.testing import LearnerContract

    class TestTopK(LearnerContract):
        name, config = "topk", {"width": 64, "k": 4}
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..component import KINDS

_HOME = {kind.contract.partition(":")[2]: f"contracts.{name}" for name, kind in KINDS.items()}
_HOME["ComponentContract"] = "contracts.base"

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'reprbasis.testing' has no attribute '{name}'")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
