"""From installed distributions to a registry. One broken distribution never hides another."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files

from .errors import ReprBasisError, near
from .registry import RESTRICT, Broken, Registry

GROUP = "reprbasis"


@cache
def default_registry() -> Registry:
    """The registry of everything installed; built once per process.

    The environment variable `REPRBASIS_PLUGINS="a,b"` restricts it to those distributions.
    """
    return discover()


def known() -> dict[str, dict[str, str]]:
    """Kind -> name -> distribution of the first-party components, installed or not (`known.json`)."""
    table: dict[str, dict[str, str]] = json.loads(files("reprbasis").joinpath("known.json").read_text("utf-8"))
    return table


def discover(points: Iterable[EntryPoint] | None = None) -> Registry:
    """Build a registry from entry points; what fails is recorded in `registry.broken`."""
    registry = Registry(known())
    found = sorted(((_distribution(p), p) for p in (entry_points(group=GROUP) if points is None else points)),
                   key=lambda pair: (pair[0][0], pair[1].name))
    only = {_normal(name) for name in os.environ.get(RESTRICT, "").split(",") if name.strip()}
    for (origin, version), point in found:
        if not only or origin in only:
            _add(registry, point, origin, version)
    for name in sorted(only - {origin for (origin, _), _ in found}):
        registry.broken.append(Broken(name, f"{RESTRICT} names it, but no such plugin is installed",
                                      near(name, {origin for (origin, _), _ in found}) or f"pip install {name}"))
    return registry


def _add(registry: Registry, point: EntryPoint, origin: str, version: str) -> None:
    try:
        registry.add(point.load(), origin=origin, version=version)
    except ReprBasisError as error:
        registry.broken.append(Broken(origin, error.what, error.do or "report it to the authors of the plugin"))
    except (Exception, SystemExit) as error:  # a plugin may fail in any way; it is reported, never hidden
        told = " ".join(f"{type(error).__name__}: {error}".split())
        again = f"upgrade or reinstall it (pip install -U {origin}), or remove it (pip uninstall {origin})"
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        do = f"pip install the package that has '{missing}', or {again}" if missing else again
        registry.broken.append(Broken(origin, f"'{point.value}' cannot be loaded: {told}", do))


def _distribution(point: EntryPoint) -> tuple[str, str]:
    if point.dist is None:
        return _normal(point.module.partition(".")[0]), ""
    return _normal(point.dist.name), point.dist.version


def _normal(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")
