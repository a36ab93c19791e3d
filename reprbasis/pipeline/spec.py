"""A pipeline as written down: read it (stage 1), check its shape (stage 2). No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, ValidationInfo

from ..config import Selection, Use
from ..config.report import KeyPath, Lines, complaint, config_error, together, validate
from ..config.use import resolve
from ..errors import ConfigError, Problem, near

if TYPE_CHECKING:
    from ..registry import Registry

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)]


@dataclass(frozen=True)
class StepSpec:
    """One step: the chosen step component with its config, and port -> name of the step whose artifact goes in."""

    selection: Selection
    inputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PipelineSpec:
    """A pipeline whose names, keys and ranges are right.

    Args:
        name: folder of its runs.
        steps: name -> step, in the order of the file.
        model: the model that its steps share, if any.
        seed: of everything random.
        report: reporters.
        source: the file it was read from.
        lines: key path -> where it was written, for error messages.
        overrides: what was changed on the command line (`steps.basis.rows=1000`).
    """

    name: str
    steps: Mapping[str, StepSpec]
    model: Selection | None = None
    seed: int = 0
    report: tuple[Selection, ...] = ()
    source: Path | None = None
    lines: Lines = field(default_factory=dict)
    overrides: tuple[str, ...] = ()

    def dump(self) -> dict[str, Any]:
        """JSON values that read back as the same pipeline, with every default written out and every name in full."""
        steps = {}
        for name, step in self.steps.items():
            options = step.selection.dump()
            steps[name] = {"do": options.pop("use"), "from": dict(step.inputs), **options}
        model = self.model.dump() if self.model else None
        return {"reprbasis": 1, "name": self.name, "seed": self.seed, "model": model, "steps": steps,
                "report": [r.dump() for r in self.report]}


def read(path: str | Path, overrides: Iterable[str] = (), registry: Registry | None = None) -> PipelineSpec:
    """Read a pipeline file.

    Args:
        path: a YAML file.
        overrides: `steps.basis.learner.width=64`, applied before validation; values are read as YAML.
        registry: where names are looked up (default: everything installed).

    Raises:
        UserError: the file cannot be read.
        ConfigError: of stage `read` or `shape`, with every problem of that stage.
    """
    from ..config.strict_yaml import read_yaml

    document = read_yaml(Path(path))
    if not isinstance(document.data, dict):
        told = "the file is empty" if document.data is None else "a pipeline is a mapping of keys to values"
        raise ConfigError([Problem(told, str(path), "begin with `reprbasis: 1`")], stage="read")
    lines, overrides = dict(document.lines), tuple(overrides)
    override(document.data, overrides, lines)
    return replace(parse(document.data, registry=registry, source=Path(path), lines=lines), overrides=overrides)


def parse(data: Mapping[str, Any], *, registry: Registry | None = None, source: Path | None = None,
          lines: Lines | None = None) -> PipelineSpec:
    """Check the shape of a pipeline given as plain values.

    Raises:
        ConfigError: with every problem found.
    """
    if registry is None:
        from ..discovery import default_registry

        registry = default_registry()
    try:
        file = validate(_File, data, {"registry": registry})
    except ValidationError as error:
        raise config_error(error, lines) from None
    return PipelineSpec(file.name, file.steps, file.model, file.seed, file.report, source, lines or {})


def _step(value: Any, info: ValidationInfo) -> StepSpec:
    if isinstance(value, StepSpec):
        return value
    if not isinstance(value, Mapping):
        raise complaint("a step is a mapping", "write {do: NAME, from: {port: step}, option: value}")
    if not isinstance(value.get("do"), str):
        raise complaint("a step says what it does", "write do: NAME; see `reprbasis plugins list step`")
    options = {key: item for key, item in value.items() if key not in ("do", "from")}
    if "use" in options:
        raise complaint("a step is chosen by `do`", "leave out `use`")
    context = info.context or {}
    ports, selection = together(lambda: validate(_Ports, {"from": value.get("from", {})}, context),
                                lambda: resolve(context["registry"], "step", {"use": value["do"], **options}))
    return StepSpec(selection, ports.inputs)


def _version(value: Any) -> int:
    if value != 1 or isinstance(value, bool):
        raise complaint(f"the file is written for version {value!r} of the format, this program reads version 1",
                        "write `reprbasis: 1`, or upgrade reprbasis")
    return 1


class _Ports(BaseModel):
    inputs: dict[str, str] = Field(alias="from")


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    version: Annotated[int, PlainValidator(_version)] = Field(alias="reprbasis")
    name: Name
    seed: int = Field(0, ge=0)
    model: Annotated[Selection, Use("model")] | None = None
    steps: dict[Name, Annotated[StepSpec, PlainValidator(_step)]] = Field(min_length=1)
    report: tuple[Annotated[Selection, Use("reporter")], ...] = ()


def override(data: dict[str, Any], overrides: Iterable[str], lines: dict[KeyPath, str]) -> None:
    """Apply `a.b.c=value` to plain values, in place; `lines` then points at the override.

    Raises:
        ConfigError: an override has another form or its path leads nowhere; all problems together.
    """
    from ..config.strict_yaml import parse_yaml

    problems = []
    for text in overrides:
        path, equals, value = text.partition("=")
        where = f"--set {text}"
        if not equals or not all(path.split(".")):
            problems.append(Problem("this is not an override", where, "write --set steps.NAME.option=value"))
            continue
        try:
            parsed = parse_yaml(value, where).data
        except ConfigError as error:
            problems += error.problems
            continue
        if problem := _put(data, path.split("."), parsed, where, lines):
            problems.append(problem)
    if problems:
        raise ConfigError(problems, stage="read")


def _put(data: dict[str, Any], keys: list[str], value: Any, where: str, lines: dict[KeyPath, str]) -> Problem | None:
    top = [f.alias or name for name, f in _File.model_fields.items()]
    if keys[0] not in top:
        return Problem(f"{keys[0]}: unknown key", where, near(keys[0], top))
    here: Any = data
    path: KeyPath = ()
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        at = ".".join(keys[: depth + 1])
        if isinstance(here, list):
            if not key.isdecimal() or int(key) >= len(here):
                return Problem(f"{at}: the list has {len(here)} items", where, f"use 0 to {len(here) - 1}")
            step: Any = int(key)
        elif isinstance(here, dict):
            if depth == 1 and keys[0] == "steps" and key not in here:
                return Problem(f"{at}: the pipeline has no such step", where, near(key, here))
            step = key
        else:
            return Problem(f"{at}: '{'.'.join(keys[:depth])}' is a plain value", where, "set that value as a whole")
        path = (*path, step)
        lines[path] = where if last else lines.get(path, where)
        if last:
            for old in [p for p in lines if p[: len(path)] == path and p != path]:
                del lines[old]
            here[step] = value
            return None
        below = here[step] if step in here or isinstance(here, list) else None
        if below is None:
            below = {}
        elif isinstance(below, str):  # `learner: jumprelu` is short for `learner: {use: jumprelu}`
            below = {"use": below}
        here[step] = below
        here = below
    return None
