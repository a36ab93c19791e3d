"""Every error of ReprBasis says what is wrong, where, and what to do about it.

`exit_code` is what the command line returns: 2 when the user can mend the input, 1 when the machine or the run failed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


class ReprBasisError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: one sentence: what is wrong.
        where: the file:line, tensor, step or site concerned, if known.
        do: what the reader should do next (often a command).
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, do: str | None = None) -> None:
        self.what, self.where, self.do = what, where, do
        super().__init__(self.render())

    def render(self) -> str:
        """The message as printed: `where: what` and, on a second line, what to do."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  -> {self.do}" if self.do else head


class UserError(ReprBasisError):
    """The input is wrong and the user can mend it."""

    exit_code = 2


class SiteError(UserError):
    """A site or site selector does not exist in this model."""


class UnknownComponentError(UserError):
    """No component of that kind and name can be used (unknown, ambiguous, broken or not installed)."""


class PluginError(UserError):
    """A plugin cannot be used: its import fails, its declaration is faulty, or it was written for another core."""


class CapabilityError(UserError):
    """A component lacks a capability that its use here needs."""


class ShapeError(UserError):
    """A tensor, dictionary or model has another width than the place it is used in."""


class DataError(UserError):
    """A corpus, task or input file holds something that cannot be used."""


class ArtifactError(ReprBasisError):
    """An artifact on disk is missing, incomplete, damaged or of another type."""


class StorageError(ReprBasisError):
    """Writing failed: full disk, read-only directory, missing permission."""


class NumericsError(ReprBasisError):
    """NaN or infinity appeared where finite numbers are required."""


@dataclass(frozen=True)
class Problem:
    """One finding in a configuration: what, where (`file:line` or a dotted key path) and what to do."""

    what: str
    where: str | None = None
    do: str | None = None

    def render(self) -> str:
        """One line, plus an indented line with the remedy when there is one."""
        return ReprBasisError(self.what, where=self.where, do=self.do).render()


class ConfigError(UserError):
    """A configuration has one or more problems; all problems of a stage are reported together."""

    def __init__(self, problems: Sequence[Problem], *, stage: str = "shape") -> None:
        self.problems, self.stage = tuple(problems), stage
        super().__init__("\n".join(p.render() for p in self.problems))


def near(name: str, known: Iterable[str], *, most: int = 3) -> str:
    """A phrase for near misses, `did you mean 'x' or 'y'?`, or the known names when none is near; '' if none are known.

    Near is what is written alike (capitals do not count) or has some of its words in a row written alike.

    Examples:
        >>> near("jumprlu", ["jumprelu", "topk"])
        "did you mean 'jumprelu'?"
        >>> near("SmolLM", ["smollm2-135m-instruct", "tiny-qwen3"])
        "did you mean 'smollm2-135m-instruct'?"
    """
    names, wanted = sorted(set(known)), name.casefold()
    close = [n for like in get_close_matches(wanted, {n.casefold() for n in names}, n=most, cutoff=0.6)
             for n in names if n.casefold() == like]
    if not close:
        parts = {n: _runs(n.casefold()) for n in names}
        found = get_close_matches(wanted, set().union(*parts.values()), n=most, cutoff=0.75)
        close = list(dict.fromkeys(n for like in found for n in names if like in parts[n]))
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close[:most]) + "?"
    if not names:
        return ""
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"known: {shown}"


def _runs(name: str) -> set[str]:
    """Words of a name, and words in a row, of two letters or more."""
    starts, ends = ([getattr(m, at)() for m in re.finditer(r"[^-_./ ]+", name)] for at in ("start", "end"))
    return {name[a:b] for i, a in enumerate(starts) for b in ends[i:] if b - a > 1}
