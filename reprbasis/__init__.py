"""ReprBasis: read and edit language models in one unified feature space.

Importing this module costs no torch; the public names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registry import Registry  # first, because the function `registry` below takes the submodule's place as attribute

if TYPE_CHECKING:
    from .artifacts.exchange import export, import_
    from .artifacts.hub import pull, push
    from .artifacts.store import load, save
    from .component import Component, ComponentConfig, Port
    from .config import Selection, Sites, Use
    from .hookspecs import hookimpl
    from .runtime.batches import batches
    from .runtime.fit import fit
    from .runtime.harvest import harvest
    from .sites import Site

__version__ = "0.1.0"

_HOME = {
    "Component": "component",
    "ComponentConfig": "component",
    "Port": "component",
    "Selection": "config",
    "Site": "sites",
    "Sites": "config",
    "Use": "config",
    "batches": "runtime.batches",
    "export": "artifacts.exchange",
    "fit": "runtime.fit",
    "harvest": "runtime.harvest",
    "hookimpl": "hookspecs",
    "import_": "artifacts.exchange",
    "load": "artifacts.store",
    "pull": "artifacts.hub",
    "push": "artifacts.hub",
    "save": "artifacts.store",
}

__all__ = [
    "Component", "ComponentConfig", "Port", "Registry", "Selection", "Site", "Sites", "Use", "batches", "create",
    "export", "fit", "harvest", "hookimpl", "import_", "load", "pull", "push", "registry", "save",
]


def registry() -> Registry:
    """The registry of everything installed; `registry().add(module_or_object)` adds to it."""
    from .discovery import default_registry

    return default_registry()


def create(kind: str, name: str, **options: Any) -> Any:
    """Build a component: `create("learner", "jumprelu", width=4608)`. See `Registry.create`."""
    return registry().create(kind, name, **options)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'reprbasis' has no attribute '{name}'")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
