"""YAML 1.2 without surprises, with the line of every key.

Differences from PyYAML's loaders: a duplicate key is an error; only `true` and `false` are booleans (`yes`, `no`, `on`,
`off` stay text); `1e-3` is a number; dates stay text; tags are refused, so a file can name no class. Anchors and
aliases work.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import yaml

from ..errors import ConfigError, Problem, UserError, near
from .report import KeyPath, dotted

_PLAIN: Final = "tag:yaml.org,2002:"
_MOST_VALUES: Final = 100_000
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: Final = {"": None, "~": None, "null": None, "Null": None, "NULL": None,
                 "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


class _Loader(yaml.SafeLoader):
    """Composes nodes without resolving scalars; their values are read by `_scalar`."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]


@dataclass
class Document:
    """What a YAML text holds: plain values, and for every key path the place it was written at."""

    data: Any
    lines: dict[KeyPath, str] = field(default_factory=dict)


def read_yaml(path: Path) -> Document:
    """Read a file.

    Raises:
        UserError: it does not exist or is not text.
        ConfigError: see `parse_yaml`.
    """
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.y*ml"))
        raise UserError("this is a directory", where=str(path),
                        do=f"give a file in it: {', '.join(inside[:5])}" if inside else "give a YAML file")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        others = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = near(path.name, others) or "check the path"
        raise UserError("there is no such file", where=str(path), do=hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the file cannot be read: {error}", where=str(path), do="give a YAML file in UTF-8") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str = "") -> Document:
    """Read a text; `source` stands before the line numbers.

    Raises:
        ConfigError: the text is not YAML, repeats a key, or uses a tag; all problems after parsing together.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        told = " ".join(filter(None, [getattr(error, "context", None), getattr(error, "problem", None)])) or str(error)
        raise ConfigError([Problem(f"this is not YAML: {told}", where, "check indentation, brackets and quotes here")],
                          stage="read") from None
    finally:
        loader.dispose()
    reader = _Reader(source)
    data = reader.value(node, (), ()) if node is not None else None
    if reader.problems:
        raise ConfigError(reader.problems, stage="read")
    return Document(data, reader.lines)


class _Reader:
    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: dict[KeyPath, str] = {}
        self.problems: list[Problem] = []
        self.values = 0

    def where(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}"

    def complain(self, node: yaml.Node, what: str, do: str) -> None:
        self.problems.append(Problem(what, self.where(node), do))

    def value(self, node: yaml.Node, path: KeyPath, above: tuple[yaml.Node, ...]) -> Any:
        self.lines.setdefault(path, self.where(node))
        self.values += 1
        if self.values > _MOST_VALUES:
            raise ConfigError([Problem(f"the file has more than {_MOST_VALUES} values", self.source,
                                       "check for aliases that repeat each other")], stage="read")
        if node in above:
            self.complain(node, "this anchor contains itself", "remove the alias inside it")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        if isinstance(node, yaml.SequenceNode):
            self.refuse_tag(node, "seq")
            return [self.value(item, (*path, i), (*above, node)) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.MappingNode)  # the three kinds of node that YAML has
        self.refuse_tag(node, "map")
        return dict(self.pairs(node, path, above))

    def pairs(self, node: yaml.MappingNode, path: KeyPath, above: tuple[yaml.Node, ...]) -> Iterator[tuple[str, Any]]:
        seen: dict[str, str] = {}
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.complain(key, "a key must be a plain word", "write `key: value`")
                continue
            name = str(key.value)
            at = dotted((*path, name))
            if name == "<<" and key.style is None:
                self.complain(key, f"{at}: merge keys are not part of YAML 1.2", "write the keys out")
            elif name in seen:
                self.complain(key, f"{at}: the key is written twice", f"keep one; the first is at {seen[name]}")
            else:
                seen[name] = self.lines[(*path, name)] = self.where(key)
                yield name, self.value(item, (*path, name), (*above, node))

    def refuse_tag(self, node: yaml.Node, plain: str) -> None:
        if node.tag != _PLAIN + plain:
            shown = node.tag.replace(_PLAIN, "!!")
            self.complain(node, f"the tag {shown} is not allowed", "write the plain value; components go by name")

    def scalar(self, node: yaml.ScalarNode) -> Any:
        self.refuse_tag(node, "str")
        return _scalar(node.value) if node.style is None else node.value


def _scalar(text: str) -> Any:
    """A plain (unquoted) scalar, by the core schema of YAML 1.2."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text, 0 if text[:2] in ("0o", "0x") else 10)
    if _FLOAT.fullmatch(text):
        lower = text.lower()
        if lower.endswith(("inf", "nan")):
            return math.copysign(math.inf, -1 if lower.startswith("-") else 1) if lower.endswith("inf") else math.nan
        return float(text)
    return text
