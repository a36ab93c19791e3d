"""From validation errors to problems that name the place and the near misses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from ..errors import ConfigError, Problem, near

KeyPath = tuple[str | int, ...]
Lines = Mapping[KeyPath, str]
"""Key path -> where it was written, `file:line` or `--set a.b=c`."""

M = TypeVar("M", bound=BaseModel)
_CODE = "reprbasis"


def complaint(what: str, do: str | None = None) -> PydanticCustomError:
    """An error for validators to raise; it keeps the remedy."""
    return PydanticCustomError(_CODE, "{what}", {"what": what, "do": do or ""})


def validate(model: type[M], data: Any, context: Any) -> M:
    """Validate `data`; errors become complaints with near misses for unknown keys.

    Raises:
        ValidationError: whose entries are all complaints.
    """
    try:
        return model.model_validate(data, context=context)
    except ValidationError as error:
        raise ValidationError.from_exception_data(error.title, [
            InitErrorDetails(type=_complaint(model, e), loc=e["loc"], input=e["input"])
            for e in error.errors(include_url=False)]) from None


def together(*parts: Callable[[], Any]) -> list[Any]:
    """The results of all parts, or one error with the complaints of all that fail."""
    results, entries = [], []
    for part in parts:
        try:
            results.append(part())
        except ValidationError as error:
            entries += [InitErrorDetails(type=complaint(**e["ctx"]), loc=e["loc"], input=e["input"])
                        for e in error.errors(include_url=False)]
        except PydanticCustomError as error:
            entries.append(InitErrorDetails(type=error, loc=(), input=None))
    if entries:
        raise ValidationError.from_exception_data("", entries)
    return results


def problems(error: ValidationError, lines: Lines | None = None) -> list[Problem]:
    """The entries of an error of `validate`, each with its key path and, where known, its line."""
    out = []
    for entry in error.errors(include_url=False):
        path, what, do = entry["loc"], entry["ctx"]["what"], entry["ctx"]["do"]
        out.append(Problem(f"{dotted(path)}: {what}" if path else what, where(path, lines or {}), do or None))
    return list(dict.fromkeys(out))


def config_error(error: ValidationError, lines: Lines | None = None) -> ConfigError:
    """All entries of an error of `validate` as one `ConfigError`."""
    return ConfigError(problems(error, lines))


def where(path: KeyPath, lines: Lines) -> str | None:
    """The line of the deepest part of `path` that was written down."""
    known: KeyPath = ()
    for part in path:
        if (*known, part) in lines:
            known = (*known, part)
    return lines.get(known)


def dotted(path: KeyPath) -> str:
    """`("steps", "basis", "width")` -> `steps.basis.width`."""
    return ".".join(map(str, path))


def _complaint(model: type[BaseModel], entry: Any) -> PydanticCustomError:
    if entry["type"] == _CODE:
        return complaint(**entry["ctx"])
    if entry["type"] == "extra_forbidden":
        fields = _fields(model, entry["loc"][:-1])
        hint = near(str(entry["loc"][-1]), fields)
        return complaint("unknown key", hint or "leave it out; there are no options here")
    if entry["type"] == "missing":
        return complaint("this key is required")
    if entry["type"] == "too_short":
        least = entry["ctx"]["min_length"]
        return complaint(f"at least {least} {'entry is' if least == 1 else 'entries are'} needed here")
    shown = repr(entry["input"])
    message = entry["msg"].removeprefix("Value error, ")
    return complaint(f"{message[:1].lower()}{message[1:]}, got {shown if len(shown) < 80 else shown[:77] + '...'}")


def _fields(model: type[BaseModel], path: KeyPath) -> list[str]:
    """Names of the keys that `model` knows at `path`, following nested models."""
    here: Any = model
    for part in path:
        if isinstance(part, str) and _is_model(here) and part in here.model_fields:
            here = next(_models(here.model_fields[part].annotation), None)
    return [f.alias or name for name, f in here.model_fields.items()] if _is_model(here) else []


def _models(annotation: Any) -> Any:
    if _is_model(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _is_model(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseModel)
