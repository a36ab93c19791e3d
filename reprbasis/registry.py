"""From names to components: what is offered, by whom, and what to do when a name cannot be used."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pluggy

from . import hookspecs
from .component import KINDS, Component
from .errors import ConfigError, PluginError, ReprBasisError, UnknownComponentError, near

if TYPE_CHECKING:
    from .config import Selection

RESTRICT = "REPRBASIS_PLUGINS"
RESERVED = {"use"}
RESERVED_IN_STEPS = {"use", "do", "from"}


@dataclass(frozen=True)
class Registered:
    """A component and where it comes from.

    Args:
        component: the declaration.
        origin: the distribution that offers it (or the module, for one added by hand).
        version: of that distribution; empty when it has none.
    """

    component: Component
    origin: str
    version: str = ""

    @property
    def kind(self) -> str:
        """Kind of the component."""
        return self.component.kind

    @property
    def name(self) -> str:
        """Short name."""
        return self.component.name

    @property
    def full_name(self) -> str:
        """`distribution/name`, which is unique within a kind."""
        return f"{self.origin}/{self.component.name}"


@dataclass(frozen=True)
class Broken:
    """A plugin that cannot be used: which distribution, what is wrong and what to do about it."""

    origin: str
    error: str
    do: str

    def render(self) -> str:
        """The record as printed."""
        return ReprBasisError(self.error, where=self.origin, do=self.do).render()


class Registry:
    """All components known to this process.

    Args:
        known: kind -> name -> distribution, for components that exist but may not be installed (for error messages).
    """

    def __init__(self, known: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self.broken: list[Broken] = []
        self._known = known or {}
        self._components: dict[tuple[str, str], Registered] = {}  # by (kind, full name)
        self._offer: Callable[[Component], None] | None = None
        self._plugins = pluggy.PluginManager(hookspecs.PROJECT)
        self._plugins.add_hookspecs(hookspecs)
        if os.environ.get("REPRBASIS_TRACE"):
            self._plugins.trace.root.setwriter(sys.stderr.write)
            self._plugins.enable_tracing()
        self._plugins.hook.reprbasis_register.call_historic(kwargs={"register": self._register})

    # ---- filling it

    def add(self, plugin: object, *, origin: str | None = None, version: str = "",
            replace: bool = False) -> list[Registered]:
        """Add the components of a declaration module, or of any object with a `reprbasis_register` hook.

        Args:
            plugin: the module or object.
            origin: name of its distribution; by default the name of its top-level package, or `local`.
            version: of the distribution.
            replace: first forget what this origin offered before (for notebook cells that run twice).

        Returns:
            What it offers. If anything is wrong nothing is added.

        Raises:
            PluginError: a hook is misspelled, a declaration is faulty, nothing is offered, or a name is taken twice.
        """
        origin = origin or _origin(plugin)
        if replace:
            self.remove(origin)
        if self._plugins.is_registered(plugin):
            raise PluginError("the plugin has been added before", where=origin, do="pass replace=True to renew it")
        staged: dict[tuple[str, str], Registered] = {}
        with self._staging(staged, origin, version):
            try:
                self._plugins.register(plugin, name=f"{origin}#{id(plugin)}")
                self._plugins.check_pending()
                if not staged:
                    raise PluginError("the plugin offers no component", where=origin,
                                      do="mark reprbasis_register(register) with @hookimpl and call register(...)")
            except BaseException as error:
                if self._plugins.is_registered(plugin):
                    self._plugins.unregister(plugin)
                if isinstance(error, pluggy.PluginValidationError):
                    raise PluginError(_hook_fault(plugin, error), where=origin,
                                      do="there is one hook: @hookimpl def reprbasis_register(register)") from error
                raise
        self._components |= staged
        return list(staged.values())

    def remove(self, origin: str) -> None:
        """Forget everything that `origin` offered."""
        self._components = {key: r for key, r in self._components.items() if r.origin != origin}
        for name, plugin in self._plugins.list_name_plugin():
            if plugin is not None and name.startswith(f"{origin}#"):
                self._plugins.unregister(plugin)

    @contextmanager
    def _staging(self, staged: dict[tuple[str, str], Registered], origin: str, version: str) -> Iterator[None]:
        def offer(component: Component) -> None:
            if not isinstance(component, Component):
                raise PluginError(f"register() was given {component!r}", where=origin,
                                  do="call register(reprbasis.Component(...))")
            label = f"{component.kind} '{component.name}'"
            if faults := component.faults() or _reserved(component):
                raise PluginError("; ".join(f"{label} {fault}" for fault in faults), where=origin,
                                  do="mend its declaration, or install a version of the plugin that fits this core")
            found = Registered(component, origin, version)
            key = (component.kind, found.full_name)
            if key in staged or key in self._components:
                raise PluginError(f"{label} is offered twice", where=origin,
                                  do=f"give one of them another name, or remove the other copy: pip uninstall {origin}")
            staged[key] = found

        self._offer = offer
        try:
            yield
        finally:
            self._offer = None

    def _register(self, component: Component) -> None:
        if self._offer is None:
            raise PluginError("register() was called after reprbasis_register had returned",
                              do="call it inside the hook")
        self._offer(component)

    # ---- asking it

    def components(self, kind: str | None = None) -> list[Registered]:
        """Everything offered, of one kind or of all, sorted by kind, name and origin."""
        order = list(KINDS)
        found = [r for r in self._components.values() if kind is None or r.kind == kind]
        return sorted(found, key=lambda r: (order.index(r.kind), r.name, r.origin))

    def clashes(self) -> list[list[Registered]]:
        """Groups of components of one kind that share a short name; each must be written in full."""
        groups: dict[tuple[str, str], list[Registered]] = {}
        for r in self.components():
            groups.setdefault((r.kind, r.name), []).append(r)
        return [group for group in groups.values() if len(group) > 1]

    def component(self, kind: str, name: str) -> Registered:
        """Look a component up by short or full name.

        Raises:
            UnknownComponentError: unknown kind or name, a name offered twice, a plugin that is broken or not installed.
        """
        if kind not in KINDS:
            raise UnknownComponentError(f"there is no kind of component '{kind}'", do=near(kind, KINDS))
        if exact := self._components.get((kind, name)):
            return exact
        found = [r for r in self.components(kind) if r.name == name]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownComponentError(
                f"{kind} '{name}' is offered by {' and by '.join(r.origin for r in found)}",
                do="write the full name: " + " or ".join(r.full_name for r in found))
        raise self._unknown(kind, name)

    def _unknown(self, kind: str, name: str) -> UnknownComponentError:
        short = name.rpartition("/")[2]
        installed = {r.name for r in self.components(kind)}
        known = self._known.get(kind, {})
        hints = []
        source = name.rpartition("/")[0] or known.get(short)
        broken = [b for b in self.broken if b.origin == source]
        only = os.environ.get(RESTRICT)
        if short in known and not broken and short not in installed:
            hints.append(f"it is not installed: pip install {known[short]}" if not only else
                         f"add {known[short]} to {RESTRICT}, which leaves it out, or: pip install {known[short]}")
        elif not broken:
            hints.append(near(short, [*installed, *known]))
            missing = sorted(set(known) - installed)
            if missing and any(f"'{m}'" in hints[0] for m in missing):
                hints += [f"not installed: {m} (pip install {known[m]})" for m in missing if f"'{m}'" in hints[0]]
        hints.append(f"installed: {', '.join(sorted(installed)) or 'none'}")
        if only:
            hints[-1] += f" (of those that {RESTRICT}={only} allows)"
        hints += [f"broken: {b.origin} ({b.error}); {b.do}" for b in broken or self.broken]
        hints += [] if installed or self.broken else ["see `reprbasis plugins`"]
        return UnknownComponentError(f"there is no {kind} '{name}' that can be used",
                                     do="\n     ".join(filter(None, hints)))

    # ---- using it

    def load(self, kind: str, name: str) -> type[Any]:
        """Import the class of a component.

        Raises:
            UnknownComponentError: see `component`.
            PluginError: its module cannot be imported, or the class does not implement the kind's interface.
        """
        found = self.component(kind, name)
        cls = _import(found.component.factory, found)
        interface = _import(KINDS[kind].interface, found)
        if not (isinstance(cls, type) and issubclass(cls, interface)):
            raise PluginError(f"the factory of {kind} '{found.name}', {found.component.factory}, is not a subclass of "
                              f"{interface.__module__}.{interface.__name__}", where=found.origin,
                              do=f"derive it from {interface.__name__}")
        return cls

    def select(self, kind: str, value: Any) -> Selection:
        """Resolve `"name"` or `{"use": "name", option: value}` into a `Selection` with a validated config.

        Raises:
            UnknownComponentError: see `component`.
            ConfigError: the value has another form, or the options are wrong; all problems together.
        """
        from .config.use import select

        return select(self, kind, value)

    def build(self, selection: Selection) -> Any:
        """An instance of what a config selected. Its `full_name` is set."""
        found = self.component(selection.kind, selection.name)
        instance = self.load(selection.kind, found.full_name)(selection.config)
        instance.full_name = found.full_name
        return instance

    def create(self, kind: str, name: str, **options: Any) -> Any:
        """An instance from its name and options, validated by the component's config.

        Raises:
            UnknownComponentError: see `component`.
            ConfigError: the options are wrong; all problems together, with near misses for unknown ones.
        """
        try:
            return self.build(self.select(kind, {"use": name, **options}))
        except ConfigError as error:
            raise ConfigError(error.problems, stage=f"{kind} '{name}'") from None


def _origin(plugin: object) -> str:
    module = getattr(plugin, "__name__", None) or type(plugin).__module__
    top = str(module).partition(".")[0]
    return "local" if top in ("__main__", "builtins", "types") else top.replace("_", "-")


def _reserved(component: Component) -> list[str]:
    taken = (RESERVED_IN_STEPS if component.kind == "step" else RESERVED) & set(component.config.model_fields)
    return [f"has options named {', '.join(sorted(taken))}, which mean something else in a config"] if taken else []


def _hook_fault(plugin: object, error: pluggy.PluginValidationError) -> str:
    known = [name for name in vars(hookspecs) if name.startswith("reprbasis_")]
    for name in dir(plugin):
        if hasattr(getattr(plugin, name, None), f"{hookspecs.PROJECT}_impl") and name not in known:
            return f"there is no hook '{name}': {near(name, known)}"
    return str(error).replace("\n", " ")


def _import(path: str, found: Registered) -> Any:
    module, _, attribute = path.partition(":")
    label = f"{found.kind} '{found.name}'"
    again = f"reinstall it with its dependencies: pip install --force-reinstall {found.origin}"
    try:
        target = import_module(module)
    except ImportError as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        do = f"pip install the package that has '{missing}', or {again}" if missing else again
        raise PluginError(f"{label} cannot be imported: {error}", where=found.origin, do=do) from error
    except Exception as error:
        told = f"{label} cannot be imported: {type(error).__name__}: {error}"
        raise PluginError(told, where=found.origin, do=again) from error
    try:
        return getattr(target, attribute)
    except AttributeError as error:
        told = f"the factory of {label} names '{attribute}', which {module} does not have"
        hint = near(attribute, [n for n in vars(target) if not n.startswith("_")]) or again
        raise PluginError(told, where=found.origin, do=hint) from error
