"""What a circuit does, in words; every sentence is made from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reprbasis.interfaces.evaluator import FeatureCard
from reprbasis.kits.intervals import Estimate

from .measured import Worth

CLEAR = 0.15
"""Difference of rates, or of means in units of the larger one, from which a latent is said to tell two kinds of prompts apart."""


@dataclass(frozen=True)
class Side:
    """One kind of prompt: those with one answer, or all clean or all corrupted ones.

    Args:
        name: as it stands in a sentence ("the answer is “ are”").
        rate: of a latent: share of prompts where it is on; mean: its mean activation there.
    """

    name: str
    rate: float
    mean: float


def percent(x: float) -> str:
    """A share for people."""
    return f"{100 * x:.0f} %".replace("-", "−")


def counted(n: int, what: str) -> str:
    """1 node, 2 nodes."""
    return f"{n} {what}{'s' * (n != 1)}"


def quoted(token: str) -> str:
    """A token in quotation marks, as it can be seen."""
    inner = token.strip(" ")
    return f"“{inner.translate({10: '↵', 9: '⇥', 13: '␍'})}”" if inner else "“␣”"


def interval(x: Estimate, *, share: bool = False) -> str:
    """A number and its 95 % interval."""
    tell = percent if share else lambda v: f"{v:.2f}".replace("-", "−")
    return tell(x.value) if x.low is None or x.high is None else f"{tell(x.value)} [{tell(x.low)}, {tell(x.high)}]"


def peaks(card: FeatureCard | None, most: int) -> list[str]:
    """Distinct tokens on which a latent is most active, of its top contexts, as people can see them."""
    raw = [] if card is None else [c.tokens[c.peak] for c in card.contexts]
    seen = [t.strip() or t.replace("\n", "↵").strip() for t in raw]
    return distinct(seen, most)


def promotes(card: FeatureCard | None, most: int) -> list[str]:
    """Distinct tokens it promotes most."""
    return distinct([] if card is None else [t.strip() for t, _ in card.promoted], most)


def distinct(words: Sequence[str], most: int) -> list[str]:
    """The first different ones that can be read: no control characters, no part of a character (U+FFFD)."""
    return list(dict.fromkeys(w for w in words if w and w.isprintable() and "\ufffd" not in w))[:most]


def listed(items: Sequence[str]) -> str:
    """a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "nothing"


def span(sites: Sequence[str]) -> str:
    """resid.2, or resid.2 to resid.26."""
    return sites[0] if len(sites) == 1 else f"{sites[0]} to {sites[-1]}"


def opening(what: str, prompt: str, answer: str, wrong: str, found: Worth, size: int, errors: int, rest: str) -> str:
    """What is done, how well, beside what."""
    kinds = f"{counted(size - errors, 'latent')}, {counted(errors, 'reconstruction error')}"
    return (f"{what}: after {quoted(prompt)} the right answer is {quoted(answer)}, not {quoted(wrong)}. On {found.model.n} "
            f"prompts of this kind the metric of the whole model is {interval(found.model)}. With only {size} of {found.nodes:,} "
            f"nodes left at their own value ({kinds}) and {rest} it is {interval(found.circuit)}: "
            f"{interval(found.share, share=True)} of the way there from no node at all ({found.empty.value:.2f}). As many random "
            f"nodes: {percent(found.random.value)}.")


def where(places: Sequence[tuple[str, int, Sequence[str], float]], columns: int) -> str:
    """At which places nodes stand: (name, nodes, sites, share lost without them)."""
    told = [f"{name} ({counted(count, 'node')}, {span(sites)}; without them {percent(lost)} of the effect is lost)"
            for name, count, sites, lost in places]
    return f"The nodes stand at {len(places)} of {counted(columns, 'place')}: {listed(told)}."


def moves(steps: Sequence[tuple[str, str, str, str, float]]) -> str:
    """Where value crosses from one place to another: (place, place, site, site, share of all that crosses between the two)."""
    told = [f"from {a} to {b} {'all' if share > 0.995 else percent(share)} of what the edges carry crosses between {s} and {t}"
            for a, b, s, t, share in steps]
    text = listed(told)
    return f"{text[0].upper()}{text[1:]}."


def latent(index: int, place: str, sites: Sequence[str], sides: Sequence[Side], card: FeatureCard | None, lost: float,
           raises: str) -> str:
    """One latent at one place: when it is on, what it responds to elsewhere, what it promotes, what it is worth."""
    parts = [f"Latent {index} at {place} ({span(sites)})"]
    if words := peaks(card, 4):
        parts.append(f"in harvested text most active on {listed([quoted(w) for w in words])}")
    if told := selective(sides):
        parts.append(told)
    if words := promotes(card, 4):
        parts.append(f"promotes {listed([quoted(w) for w in words])}{f', and {raises}' if raises else ''}")
    return f"{parts[0]}: {'; '.join(parts[1:])}. Without it {percent(lost)} of the effect is lost."


def selective(sides: Sequence[Side]) -> str:
    """Which kind of prompt a latent is for, or that it does not tell them apart."""
    if len(sides) < 2:
        return ""
    high, low = max(sides, key=lambda s: (s.rate, s.mean)), min(sides, key=lambda s: (s.rate, s.mean))
    if high.rate - low.rate >= CLEAR:
        return f"on in {percent(high.rate)} of the prompts where {high.name}, in {percent(low.rate)} of those where {low.name}"
    high, low = max(sides, key=lambda s: s.mean), min(sides, key=lambda s: s.mean)
    if high.mean > 0 and (high.mean - low.mean) / high.mean >= CLEAR:
        return f"stronger where {high.name} ({high.mean:.1f}) than where {low.name} ({low.mean:.1f})"
    return f"about as strong where {sides[0].name} ({sides[0].mean:.1f}) as where {sides[1].name} ({sides[1].mean:.1f})"


def errors(places: Mapping[str, int], lost: float, total: int) -> str:
    """What the error nodes are worth."""
    at = listed([f"{count} at {name}" for name, count in places.items()])
    kind = "is a reconstruction error" if total == 1 else "are reconstruction errors"
    return (f"{counted(total, 'node')} {kind} ({at}): what is there but not in the dictionary. Without "
            f"{'it' if total == 1 else 'them'} {percent(lost)} of the effect is lost.")


def edges(kind: str, inside: float, targets: int) -> str:
    """How much of what nodes receive comes from the circuit."""
    how = {"integrated": "along the path from their own value to the ablated one",
           "effect": "to first order, times what the target does to the metric", "activation": "to first order"}.get(kind, kind)
    return (f"An edge is the share of what its target receives from the site before, {how}. On average nodes of the circuit give "
            f"{percent(inside)} of what {counted(targets, 'target')} receive; the rest comes from nodes that are not in it.")
