"""`reprbasis plugins`: what is installed, what its options are, and what is broken."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ..component import CAPABILITIES, KINDS
from ..errors import UnknownComponentError, near
from .common import json_argument, print_json, table

if TYPE_CHECKING:
    from ..registry import Registered, Registry


def arguments(parser: argparse.ArgumentParser) -> None:
    """Actions: list [KIND], show NAME, doctor, schema."""
    json_argument(parser)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="list components (the default)")
    listing.add_argument("kind", nargs="?", help=f"only this kind: {', '.join(KINDS)}")
    show = actions.add_parser("show", help="one component: its options and what it can do")
    show.add_argument("name", help="short name, full name, or kind:name")
    doctor = actions.add_parser("doctor", help="import every component, say what is wrong; exit code 1 if anything is")
    for action in (listing, show, doctor):
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    actions.add_parser("schema", help="print the JSON schema of pipeline files")


def main(args: argparse.Namespace) -> int:
    """Dispatch to the action."""
    from ..discovery import default_registry

    registry = default_registry()
    if args.action == "show":
        return _show(registry, args)
    if args.action == "doctor":
        return _doctor(registry, args)
    if args.action == "schema":
        from ..config.schema import pipeline_schema

        print_json(pipeline_schema(registry))
        return 0
    return _list(registry, args)


def _list(registry: Registry, args: argparse.Namespace) -> int:
    kind = getattr(args, "kind", None)
    if kind is not None and kind not in KINDS:
        raise UnknownComponentError(f"there is no kind of component '{kind}'", do=near(kind, KINDS))
    found = registry.components(kind)
    troubles = _troubles(registry)
    if args.json:
        print_json({"components": [_json(r) for r in found], "troubles": troubles})
        return 0
    shared = {r.full_name for group in registry.clashes() for r in group}
    if found:
        table(("kind", "name", "summary", "from"),
              [(r.kind, r.full_name if r.full_name in shared else r.name, r.component.summary,
                f"{r.origin} {r.version}".strip()) for r in found])
    else:
        print(f"no {kind or 'plugin'} is installed: pip install reprbasis-NAME")
    _print_troubles(troubles)
    return 0


def _show(registry: Registry, args: argparse.Namespace) -> int:
    kind, _, name = args.name.rpartition(":")
    named = {r.kind for r in registry.components() if name in (r.name, r.full_name)}
    kinds = [kind] if kind else [k for k in KINDS if k in named]
    if not kinds:
        names = {r.name for r in registry.components()}
        raise UnknownComponentError(f"no component is named '{name}'",
                                    do=near(name, names) or "see `reprbasis plugins`")
    found = [registry.component(k, name) for k in kinds]
    if args.json:
        print_json([_json(r, options=True) for r in found])
        return 0
    for index, r in enumerate(found):
        if index:
            print()
        _describe(r)
    return 0


def _describe(found: Registered) -> None:
    c = found.component
    print(f"{c.kind} {c.name}: {c.summary}")
    print(f"  from      {found.origin} {found.version}".rstrip())
    print(f"  full name {found.full_name}")
    if c.inputs or c.output:
        ports = [f"{p.name} ({p.type}{', optional' if p.optional else ''})" for p in c.inputs]
        print(f"  takes     {', '.join(ports) or 'nothing'}")
        print(f"  makes     {c.output}")
    for capability in sorted(c.provides):
        print(f"  provides  {capability} ({CAPABILITIES[capability]})")
    for kind, needed in c.requires.items():
        print(f"  requires  {', '.join(sorted(needed))} of the {kind}")
    rows = [(name, f.default, f.type, f.description) for name, f in _fields(found).items()]
    print()
    if rows:
        table(("option", "default", "type", "meaning"), rows)
    else:
        print("no options")


class _Option:
    def __init__(self, schema: dict[str, Any], required: bool) -> None:
        self.default = "required" if required else _short(schema.get("default"))
        self.type = _type(schema)
        self.description = " ".join(str(schema.get("description", "")).split())


def _fields(found: Registered) -> dict[str, _Option]:
    from ..config.schema import component_schema

    schema = component_schema(found.component)
    required = schema.get("required", [])
    return {name: _Option(field, name in required) for name, field in schema.get("properties", {}).items()}


def _short(value: Any) -> str:
    import json

    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def _type(schema: dict[str, Any]) -> str:
    if kind := schema.get("x-reprbasis-kind"):
        return f"a {kind}"
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_type(part) for part in schema["anyOf"]))
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    limits = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = " and ".join(f"{sign} {schema[key]:g}" for key, sign in limits.items() if key in schema)
    return f"{schema.get('type', 'any')} {bounds}".strip()


def _doctor(registry: Registry, args: argparse.Namespace) -> int:
    from ..errors import ReprBasisError

    heavy = sorted({"torch", "transformers"} & set(sys.modules))
    troubles = _troubles(registry)
    if heavy:
        troubles.append({"origin": "a declaration module", "error": f"imports {' and '.join(heavy)}",
                         "do": "import them in the implementation only; find the place with "
                               "python -X importtime -m reprbasis plugins"})
    for r in registry.components():
        try:
            registry.load(r.kind, r.full_name)
        except ReprBasisError as error:
            troubles.append({"origin": r.origin, "error": error.what, "do": error.do or ""})
    if args.json:
        print_json({"components": len(registry.components()), "troubles": troubles})
    else:
        print(f"{len(registry.components())} components imported"
              + (", nothing is wrong" if not troubles else f", {len(troubles)} troubles"))
        _print_troubles(troubles)
    return 1 if troubles else 0


def _troubles(registry: Registry) -> list[dict[str, str]]:
    out = [{"origin": b.origin, "error": b.error, "do": b.do} for b in registry.broken]
    for group in registry.clashes():
        out.append({"origin": " and ".join(r.origin for r in group),
                    "error": f"each offers the {group[0].kind} '{group[0].name}'",
                    "do": "write the full name: " + " or ".join(r.full_name for r in group)})
    return out


def _print_troubles(troubles: list[dict[str, str]]) -> None:
    for t in troubles:
        print(f"\n! {t['origin']}: {t['error']}\n  -> {t['do']}")


def _json(found: Registered, *, options: bool = False) -> dict[str, Any]:
    from ..config.schema import component_schema

    c = found.component
    out: dict[str, Any] = {"kind": c.kind, "name": c.name, "full_name": found.full_name, "origin": found.origin,
                           "version": found.version, "summary": c.summary, "provides": sorted(c.provides),
                           "requires": {k: sorted(v) for k, v in c.requires.items()}, "factory": c.factory}
    if c.kind == "step":
        ports = [{"name": p.name, "type": p.type, "optional": p.optional, "requires": sorted(p.requires)}
                 for p in c.inputs]
        out |= {"inputs": ports, "output": c.output, "needs_model": c.needs_model}
    return out | ({"options": component_schema(c)} if options else {})
