"""`Use["learner"]`: a config field that selects a component by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from ..component import KINDS, ComponentConfig
from ..errors import ConfigError, Problem, ReprBasisError
from .report import complaint, config_error, validate

if TYPE_CHECKING:
    from ..registry import Registry


@dataclass(frozen=True)
class Selection:
    """A component chosen by a config.

    Args:
        kind: its kind.
        name: its full name, `distribution/name`.
        config: its validated options, defaults filled in.
        provides: its capabilities.
    """

    kind: str
    name: str
    config: ComponentConfig
    provides: frozenset[str] = frozenset()

    def dump(self) -> dict[str, Any]:
        """JSON values that select the same again: `{"use": full name, option: value}`."""
        return {"use": self.name, **self.config.model_dump(mode="json")}

    def nested(self) -> Iterator[Selection]:
        """Every component selected inside this one's config, at any depth."""
        yield from _selections(self.config)


def _selections(value: Any) -> Iterator[Selection]:
    if isinstance(value, Selection):
        yield value
        yield from _selections(value.config)
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _selections(getattr(value, name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _selections(item)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _selections(item)


class Use:
    """A field type: `learner: Use["learner"]` takes `jumprelu` or `{use: jumprelu, width: 64}` and holds a `Selection`.

    `Annotated[Selection, Use("learner")]` is the same, spelled for type checkers. Names are resolved in the registry of
    the validation context (`model_validate(data, context={"registry": registry})`), by default in everything installed.
    """

    def __init__(self, kind: str) -> None:
        if kind not in KINDS:
            raise TypeError(f"Use['{kind}']: the kinds are {', '.join(KINDS)}")
        self.kind = kind

    def __class_getitem__(cls, kind: str) -> Any:
        return Annotated[Selection, cls(kind)]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._resolve, serialization=core_schema.plain_serializer_function_ser_schema(Selection.dump))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        options = {"type": "object", "properties": {"use": {"type": "string"}}, "required": ["use"]}
        return {"title": self.kind, "description": KINDS[self.kind].question, "x-reprbasis-kind": self.kind,
                "anyOf": [{"type": "string"}, options]}

    def _resolve(self, value: Any, info: core_schema.ValidationInfo) -> Selection:
        registry = (info.context or {}).get("registry")
        if registry is None:
            from ..discovery import default_registry

            registry = default_registry()
        return resolve(registry, self.kind, value)


def select(registry: Registry, kind: str, value: Any) -> Selection:
    """See `Registry.select`."""
    if isinstance(value, str):
        value = {"use": value}
    if isinstance(value, Mapping) and isinstance(value.get("use"), str):
        registry.component(kind, value["use"])  # an unknown name is an UnknownComponentError here, not a ConfigError
    try:
        return resolve(registry, kind, value)
    except ValidationError as error:
        raise config_error(error) from None
    except ValueError as error:
        raise ConfigError([Problem(str(error), do=getattr(error, "context", {}).get("do"))]) from None


def resolve(registry: Registry, kind: str, value: Any) -> Selection:
    """The selection that a config value means.

    Raises:
        PydanticCustomError, ValidationError: complaints, which pydantic merges into the error of an outer config.
    """
    if isinstance(value, Selection):
        if value.kind != kind:
            raise complaint(f"a {kind} is needed here, got the {value.kind} '{value.name}'")
        return value
    if isinstance(value, str):
        value = {"use": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("use"), str):
        raise complaint(f"{value!r} does not select a {kind}", f"write its name, or {{use: name, option: value}}; "
                                                               f"see `reprbasis plugins list {kind}`")
    try:
        found = registry.component(kind, value["use"])
    except ReprBasisError as error:
        raise complaint(error.what, error.do) from None
    options = {key: item for key, item in value.items() if key != "use"}
    config = validate(found.component.config, options, {"registry": registry})
    return Selection(kind, found.full_name, config, frozenset(found.component.provides))
