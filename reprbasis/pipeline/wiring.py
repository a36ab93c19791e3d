"""Stage 3: the steps of a pipeline fit together. No torch.

Every input exists and has the type its port takes, there is no cycle, and every capability that a component needs is
offered by the components it meets: the model, the components nested in the same step, and those of the steps that its
inputs come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..component import CAPABILITIES, Port
from ..config import Selection
from ..config.report import where
from ..errors import ConfigError, Problem, near

if TYPE_CHECKING:
    from ..registry import Registry
    from .spec import PipelineSpec, StepSpec


def check(spec: PipelineSpec, registry: Registry) -> list[str]:
    """The steps in an order in which they can run (that of the file, as far as possible).

    Raises:
        ConfigError: with every problem found.
    """
    problems = [p for name, step in spec.steps.items() for p in (*_inputs(spec, registry, name, step),
                                                                 *_capabilities(spec, registry, name, step))]
    order, cycle = _sort(spec)
    if cycle:
        problems.append(_problem(spec, cycle[0], "from", what="the steps wait for each other: " + " <- ".join(cycle),
                                 do="remove one of these inputs"))
    if problems:
        raise ConfigError(problems, stage="wiring")
    return order


def ancestors(spec: PipelineSpec, name: str) -> set[str]:
    """The steps that `name` needs, directly or not, without `name` itself."""
    found: set[str] = set()
    todo = list(spec.steps[name].inputs.values())
    while todo:
        step = todo.pop()
        if step not in found and step in spec.steps:
            found.add(step)
            todo += spec.steps[step].inputs.values()
    return found - {name}


def _problem(spec: PipelineSpec, name: str, *keys: str, what: str, do: str) -> Problem:
    path = ("steps", name, *keys)
    return Problem(f"{'.'.join(path)}: {what}", where(path, spec.lines), do)


def _inputs(spec: PipelineSpec, registry: Registry, name: str, step: StepSpec) -> Iterator[Problem]:
    component = registry.component("step", step.selection.name).component
    ports = {port.name: port for port in component.inputs}
    for port, source in step.inputs.items():
        if port not in ports:
            yield _problem(spec, name, "from", port, what=f"the step '{component.name}' has no such input",
                           do=near(port, ports) or "it takes no inputs: remove `from`")
        if source not in spec.steps:
            yield _problem(spec, name, "from", port, what=f"there is no step '{source}'",
                           do=near(source, set(spec.steps) - {name}))
        elif port in ports:
            yield from _fit(spec, registry, name, ports[port], source)
    for needed in component.inputs:
        if not needed.optional and needed.name not in step.inputs:
            makers = _makers(spec, registry, name, needed)
            yield _problem(spec, name, what=f"the input '{needed.name}' ({needed.type}) is missing",
                           do=f"write from: {{{needed.name}: {makers[-1]}}}" if makers else
                              f"add a step that makes {needed.type} and name it: from: {{{needed.name}: STEP}}")


def _output(spec: PipelineSpec, registry: Registry, name: str) -> str | None:
    return registry.component("step", spec.steps[name].selection.name).component.output


def _makers(spec: PipelineSpec, registry: Registry, name: str, port: Port) -> list[str]:
    return [other for other in spec.steps if other != name and _output(spec, registry, other) == port.type]


def _fit(spec: PipelineSpec, registry: Registry, name: str, port: Port, source: str) -> Iterator[Problem]:
    made = _output(spec, registry, source)
    if made != port.type:
        makers = _makers(spec, registry, name, port)
        yield _problem(spec, name, "from", port.name, what=f"needs {port.type}, but '{source}' makes {made}",
                       do=f"take {' or '.join(makers)}" if makers else f"add a step that makes {port.type}")
        return
    behind = [source, *ancestors(spec, source)]
    offered = frozenset().union(*(s.provides for step in behind for s in spec.steps[step].selection.nested()))
    for capability in sorted(port.requires - offered):
        yield _problem(spec, name, "from", port.name,
                       what=f"needs '{capability}' ({CAPABILITIES[capability]}), which '{source}' does not offer",
                       do=_offering(registry, capability))


def _capabilities(spec: PipelineSpec, registry: Registry, name: str, step: StepSpec) -> Iterator[Problem]:
    here = [step.selection, *step.selection.nested()]
    before = [s for other in ancestors(spec, name) for s in spec.steps[other].selection.nested()]
    needs_model = []
    for user in here:
        component = registry.component(user.kind, user.name).component
        label = f"{user.kind} '{component.name}'"
        if component.needs_model or "model" in component.requires:
            needs_model.append(label)
        for kind, needed in component.requires.items():
            for met in _met(kind, user, spec, here, before):
                for capability in sorted(set(needed) - met.provides):
                    what = (f"the {label} needs '{capability}' ({CAPABILITIES[capability]}), which the {kind} "
                            f"'{met.name}' does not offer")
                    yield _problem(spec, name, what=what, do=_offering(registry, capability, kind))
    if needs_model and spec.model is None:
        yield _problem(spec, name, what=f"the {needs_model[0]} needs a model, and the pipeline names none",
                       do="add `model: {use: NAME, ...}`; see `reprbasis plugins list model`")


def _met(kind: str, user: Selection, spec: PipelineSpec, here: list[Selection],
         before: list[Selection]) -> list[Selection]:
    """The components of `kind` that `user` works with: the model, those of its step, or those its inputs came from."""
    if kind == "model":
        return [spec.model] if spec.model else []
    near_by = [s for s in here if s.kind == kind and s is not user]
    return near_by or [s for s in before if s.kind == kind]


def _offering(registry: Registry, capability: str, kind: str | None = None) -> str:
    able = [f"{r.kind} {r.name}" for r in registry.components(kind) if capability in r.component.provides]
    return f"use one that does: {', '.join(able)}" if able else f"nothing installed offers '{capability}'"


def _sort(spec: PipelineSpec) -> tuple[list[str], list[str]]:
    """A topological order, and one cycle (first step repeated at its end) if there is any."""
    order: list[str] = []
    trail: list[str] = []

    def visit(name: str) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name):], name]
        if name in order or name not in spec.steps:
            return []
        trail.append(name)
        for source in spec.steps[name].inputs.values():
            if cycle := visit(source):
                return cycle
        trail.pop()
        order.append(name)
        return []

    for name in spec.steps:
        if cycle := visit(name):
            return [], cycle
    return order, []
