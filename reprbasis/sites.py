"""Sites: the places of a model that write to or read from its residual stream.

A `Site` is a value, never a module path: `resid.14`, `attn_out.3`, `mlp_out.0`, `embed`, `final`, `vision.resid.2`.

    embed        stream before block 0                     [B, T, D]
    attn_out.L   what the attention of block L adds        [B, T, D]
    mlp_out.L    what the MLP of block L adds              [B, T, D]
    resid.L      stream after block L (for the last block: before the final norm)
    final        the vector the unembedding reads (after the final norm)

In a pre-norm decoder `resid.L = resid.(L-1) + attn_out.L + mlp_out.L`, with `embed` as `resid.(-1)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .errors import Problem, SiteError, near

_NAME = re.compile(r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$")
_SELECTOR = re.compile(
    r"^(?P<name>[a-z*][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*)"
    r"(?:\.(?P<layers>\*|-?\d+|(?:-?\d+)?:(?:-?\d+)?(?::(?:\d+)?)?))?$"
)


@dataclass(frozen=True)
class Site:
    """One place in a model: a dotted lower-case name and, for per-layer sites, a layer index from 0."""

    name: str
    layer: int | None = None

    def __post_init__(self) -> None:
        if not _NAME.match(self.name) or (self.layer is not None and self.layer < 0):
            raise SiteError(f"'{self}' is not a site", do="write for example resid.14, attn_out.0, embed or final")

    def __str__(self) -> str:
        return self.name if self.layer is None else f"{self.name}.{self.layer}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read `resid.14` or `embed`; the inverse of `str`."""
        head, dot, tail = text.rpartition(".")
        return cls(head, int(tail)) if dot and tail.isdecimal() else cls(text)


def check_selector(selector: str) -> Problem | None:
    """Whether a selector is well formed, without knowing a model (used when configs are checked)."""
    if _SELECTOR.match(selector.removeprefix("!")):
        return None
    return Problem(
        f"'{selector}' is not a site selector",
        do="write resid.14, attn_out.*, resid.0:30:4, resid.-1, embed, final, * for all, or !name to leave out",
    )


def select(selectors: str | Iterable[str | Site], available: Sequence[Site]) -> tuple[Site, ...]:
    """Resolve selectors against a model's sites; the answer follows the order of `available` (execution order).

    Args:
        selectors: one selector or several: a site (`resid.14`), a range with Python slice rules over the layers
            (`mlp_out.0:30:4`, `resid.2::4`), all layers (`attn_out.*`), a negative layer (`resid.-1`), everything (`*`);
            a leading `!` removes what it matches from what the earlier ones gave.
        available: the sites of the model in execution order (`tuple(info.widths)`).

    Raises:
        SiteError: a selector is malformed, names an unknown site, a layer beyond the depth, or nothing at all.
    """
    given = [selectors] if isinstance(selectors, str) else list(selectors)
    chosen: set[Site] = set()
    for item in given:
        text = str(item)
        if text.startswith("!"):
            chosen -= set(_match(text[1:], available))
        else:
            chosen |= set(_match(text, available))
    if not chosen:
        raise SiteError(f"no site is selected by {', '.join(map(str, given)) or 'an empty list'}",
                        do="name at least one site, for example resid.*")
    return tuple(s for s in available if s in chosen)


def _match(selector: str, available: Sequence[Site]) -> list[Site]:
    if problem := check_selector(selector):
        raise SiteError(problem.what, do=problem.do)
    if selector == "*":
        return list(available)
    found = _SELECTOR.match(selector)
    assert found is not None  # check_selector has just accepted it
    name, layers = found["name"], found["layers"]
    same = [s for s in available if s.name == name]
    if not same:
        raise SiteError(f"unknown site '{selector}'", do=near(name, {s.name for s in available}))
    by_layer = {s.layer: s for s in same if s.layer is not None}
    if layers is None:
        if by_layer:
            raise SiteError(f"'{selector}' needs a layer", do=f"write {name}.0 or {name}.* for all {len(by_layer)}")
        return same
    if not by_layer:
        raise SiteError(f"'{name}' has no layers", do=f"write {name}")
    depth = max(by_layer) + 1
    if layers == "*":
        return same
    if ":" in layers:
        start, stop, step = (int(p) if p else None for p in (layers + "::").split(":")[:3])
        if step == 0:
            raise SiteError(f"'{selector}' has step 0", do="use a step of 1 or more")
        beyond = [i for i in (start, stop) if i is not None and (i > depth or i < -depth)]
        if beyond:
            raise SiteError(f"'{selector}': the model has {depth} layers of '{name}' (0 to {depth - 1})",
                            do=f"use {name}.0:{depth} at most")
        return [by_layer[i] for i in range(depth)[slice(start, stop, step)] if i in by_layer]
    index = int(layers)
    site = by_layer.get(index + depth if index < 0 else index)
    if site is None:
        raise SiteError(f"'{selector}': the model has {depth} layers of '{name}' (0 to {depth - 1})",
                        do=f"use a layer from 0 to {depth - 1}")
    return [site]
