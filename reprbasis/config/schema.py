"""JSON schema of a pipeline file, with the options of everything installed (for editors that complete YAML)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..component import KINDS, Component

if TYPE_CHECKING:
    from ..registry import Registry

_MARK = "x-reprbasis-kind"


def pipeline_schema(registry: Registry) -> dict[str, Any]:
    """The schema (draft 2020-12) of pipelines that use what `registry` offers."""
    definitions: dict[str, Any] = {}
    for kind in KINDS:
        if kind != "step":
            definitions[kind] = _choice(registry, kind, definitions)
    steps = [_options(c, "do", names, definitions) for c, names in _offered(registry, "step")]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ReprBasis pipeline",
        "type": "object",
        "additionalProperties": False,
        "required": ["reprbasis", "name", "steps"],
        "properties": {
            "reprbasis": {"const": 1, "description": "version of this format"},
            "name": {"type": "string", "description": "folder of its runs"},
            "seed": {"type": "integer", "minimum": 0, "default": 0},
            "model": {"$ref": "#/$defs/model"},
            "steps": {"type": "object", "minProperties": 1, "additionalProperties": {"anyOf": steps}},
            "report": {"type": "array", "items": {"$ref": "#/$defs/reporter"}},
        },
        "$defs": definitions,
    }


def component_schema(component: Component) -> dict[str, Any]:
    """The schema of one component's options."""
    return component.config.model_json_schema(by_alias=True)


def _offered(registry: Registry, kind: str) -> list[tuple[Component, list[str]]]:
    """Each component with the names it may be written by: the short one too, unless two distributions share it."""
    shared = {(group[0].kind, group[0].name) for group in registry.clashes()}
    return [(r.component, [r.full_name] if (kind, r.name) in shared else [r.name, r.full_name])
            for r in registry.components(kind)]


def _choice(registry: Registry, kind: str, definitions: dict[str, Any]) -> dict[str, Any]:
    offered = _offered(registry, kind)
    names = [name for _, names in offered for name in names]
    return {"description": KINDS[kind].question,
            "anyOf": [{"enum": names}, *(_options(c, "use", names, definitions) for c, names in offered)]}


def _options(component: Component, key: str, names: list[str], definitions: dict[str, Any]) -> dict[str, Any]:
    prefix = f"{component.kind}-{names[-1].replace('/', '-')}-"
    schema = component_schema(component)
    for name, inner in schema.pop("$defs", {}).items():
        definitions[prefix + name] = _rewrite(inner, prefix)
    schema = {key: _rewrite(value, prefix) for key, value in schema.items()}
    ports = {p.name: {"type": "string", "description": f"a step that makes {p.type}"} for p in component.inputs}
    extra: dict[str, Any] = {key: {"enum": names}}
    if ports:
        extra["from"] = {"type": "object", "properties": ports, "additionalProperties": False,
                         "required": [p.name for p in component.inputs if not p.optional]}
    schema["properties"] = extra | schema.get("properties", {})
    schema["required"] = [key, *(["from"] if ports and extra["from"]["required"] else []), *schema.get("required", [])]
    return schema | {"title": component.name, "description": component.summary}


def _rewrite(value: Any, prefix: str) -> Any:
    """Point references at the pipeline's definitions: nested models under `prefix`, selections at their kind."""
    if isinstance(value, list):
        return [_rewrite(item, prefix) for item in value]
    if not isinstance(value, dict):
        return value
    if _MARK in value:
        kept = {k: v for k, v in value.items() if k in ("description", "default")}
        return {"$ref": f"#/$defs/{value[_MARK]}", **kept}
    if isinstance(ref := value.get("$ref"), str):
        value = value | {"$ref": ref.replace("#/$defs/", f"#/$defs/{prefix}")}
    return {key: item if key == "$ref" else _rewrite(item, prefix) for key, item in value.items()}
