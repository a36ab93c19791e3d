"""Stage 4: the pipeline fits the model, by the model's config alone. No weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from ..config import Selection
from ..config.fields import SiteSelectors
from ..config.report import KeyPath, dotted, where
from ..errors import ConfigError, Problem, SiteError

if TYPE_CHECKING:
    from ..interfaces.model import ModelInfo
    from ..registry import Registry
    from .spec import PipelineSpec


def check(spec: PipelineSpec, registry: Registry) -> ModelInfo | None:
    """What the pipeline's model is; None for a pipeline without one.

    Every field annotated `Sites` of a step and of the components in it is resolved against the model, and every step's
    own `check` is asked.

    Raises:
        ConfigError: with every problem found.
        ReprBasisError: the model cannot be described (unknown checkpoint), or a plugin cannot be imported.
    """
    if spec.model is None:
        return None
    info: ModelInfo = registry.load("model", spec.model.name).describe(spec.model.config)
    problems: list[Problem] = []
    for name, step in spec.steps.items():
        start: KeyPath = ("steps", name)
        found = [Problem(f"{dotted(path)}: {p.what}", where(path, spec.lines), p.do)
                 for path, p in _sites(step.selection.config, info, start)]
        problems += found
        if not found:
            problems += [Problem(f"{dotted(start)}: {p.what}", p.where or where(start, spec.lines), p.do)
                         for p in registry.load("step", step.selection.name).check(step.selection.config, info)]
    if problems:
        raise ConfigError(problems, stage="facts")
    return info


def _sites(value: Any, info: ModelInfo, path: KeyPath) -> Iterator[tuple[KeyPath, Problem]]:
    """Site selectors anywhere in a config that the model does not have."""
    if isinstance(value, Selection):
        value = value.config
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            held, at = getattr(value, name), (*path, field.alias or name)
            if held is not None and _marked([*field.metadata, field.annotation]):
                yield from ((at, problem) for problem in _resolve(held, info))
            else:
                yield from _sites(held, info, at)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _sites(item, info, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _sites(item, info, (*path, index))


def _marked(parts: Any) -> bool:
    return any(isinstance(p, SiteSelectors) or _marked(get_args(p)) for p in parts)


def _resolve(selectors: str | tuple[str, ...], info: ModelInfo) -> list[Problem]:
    problems = []
    for one in (selectors,) if isinstance(selectors, str) else selectors:
        try:
            info.select(one.removeprefix("!"))
        except SiteError as error:
            problems.append(Problem(error.what, do=error.do))
    if not problems:
        try:
            info.select(selectors)
        except SiteError as error:
            problems.append(Problem(error.what, do=error.do))
    return problems
