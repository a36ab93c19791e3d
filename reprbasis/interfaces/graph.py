"""A graph to be looked at: nodes in levels and columns, signed edges, and words. What it is a graph of, its maker says.

A circuit (levels: sites, columns: token positions) and the interaction of features (levels: layers, edges through a head) are
the same thing to whoever draws them. Reporters draw every artifact of this type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias

from ..errors import DataError
from .artifact import Artifact
from .evaluator import FeatureCard

if TYPE_CHECKING:
    from torch import Tensor

    from ..registry import Registry

NodeKind: TypeAlias = Literal["latent", "error", "input", "output", "part", "rest"]


@dataclass(frozen=True)
class Column:
    """Where nodes stand from left to right.

    Args:
        name: of a token position, role or whatever; may be empty.
        text: shown with it, such as the token of an example.
        other: the same of the contrasted example, if it differs.
    """

    name: str
    text: str = ""
    other: str = ""


@dataclass(frozen=True)
class GraphNode:
    """One node.

    Args:
        id: unique in the graph.
        kind: `latent` of a basis; `error` of a reconstruction; `input` (a token) and `output` (what is measured); `part` of the
            model (a head, an MLP); `rest`, everything else at that place.
        level: which of the graph's levels it lies on.
        column: which of the graph's columns, or None where it has no place from left to right.
        label: a few words; made from data.
        weight: what it matters, signed, in the graph's `node_unit`; the slider for nodes works on its absolute value.
        group: supernode it belongs to, a key of the graph's `groups`; or empty.
        site, latent: where it is in a basis, for latents.
        card: key of its card in the graph's `cards`, or empty.
        facts: further numbers and words that are shown with it.
    """

    id: str
    kind: NodeKind
    level: int
    column: int | None = None
    label: str = ""
    weight: float = 0.0
    group: str = ""
    site: str = ""
    latent: int | None = None
    card: str = ""
    facts: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class GraphEdge:
    """One edge.

    Args:
        source, target: ids of nodes.
        weight: signed, in the graph's `edge_unit`; the slider for edges works on its absolute value.
        label: what it runs through (`head 5.3`), or empty.
        facts: further numbers and words that are shown with it.
    """

    source: str
    target: str
    weight: float
    label: str = ""
    facts: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph(Artifact):
    """Nodes, edges, supernodes, cards and notes.

    Args:
        title: one line.
        levels: names from the bottom up, such as sites in execution order.
        columns: from left to right; empty if nothing has a place along.
        nodes, edges: see there.
        groups: key of a supernode -> what it is, in words.
        cards: key -> what a person sees of a latent; nodes refer to them.
        notes: paragraphs that say what is seen; made from data.
        node_unit, edge_unit: what the weights are, in words.
        details: whatever else must stand beside it; JSON values.

    Raises:
        DataError: ids twice, an edge, level, column, group or card that is not there.
    """

    type: ClassVar[str] = "graph"
    title: str = ""
    levels: Sequence[str] = ()
    columns: Sequence[Column] = ()
    nodes: Sequence[GraphNode] = ()
    edges: Sequence[GraphEdge] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    cards: Mapping[str, FeatureCard] = field(default_factory=dict)
    notes: Sequence[str] = ()
    node_unit: str = ""
    edge_unit: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = [n.id for n in self.nodes]
        known = set(ids)
        wrong = [f"two nodes '{i}'" for i in sorted(known) if ids.count(i) > 1] if len(known) < len(ids) else []
        for n in self.nodes:
            wrong += [f"node '{n.id}' on level {n.level} of {len(self.levels)}"] * (not 0 <= n.level < len(self.levels))
            wrong += [f"node '{n.id}' in column {n.column} of {len(self.columns)}"] * (
                n.column is not None and not 0 <= n.column < len(self.columns))
            wrong += [f"node '{n.id}' in no known group '{n.group}'"] * bool(n.group and n.group not in self.groups)
            wrong += [f"node '{n.id}' with no known card '{n.card}'"] * bool(n.card and n.card not in self.cards)
        wrong += [f"edge {e.source} > {e.target}" for e in self.edges if not {e.source, e.target} <= known]
        if wrong:
            raise DataError(f"the graph '{self.title}' does not hang together: {'; '.join(wrong[:4])}",
                            do="give every node one id, and name only nodes, levels, columns, groups and cards that exist")

    def node(self, id: str) -> GraphNode:
        """The node of that id; KeyError if there is none."""
        for n in self.nodes:
            if n.id == id:
                return n
        raise KeyError(f"no node '{id}' in the graph '{self.title}'")

    def strongest(self, *, nodes: int | None = None, edges: int | None = None) -> Graph:
        """The part with the nodes and edges of largest absolute weight; inputs and outputs always stay."""
        ends = [n for n in self.nodes if n.kind in ("input", "output")]
        inner = sorted((n for n in self.nodes if n.kind not in ("input", "output")), key=lambda n: -abs(n.weight))
        kept = {n.id for n in [*ends, *inner[:nodes]]}
        links = sorted((e for e in self.edges if {e.source, e.target} <= kept), key=lambda e: -abs(e.weight))[:edges]
        used = {n.card for n in self.nodes if n.id in kept}
        return replace(self, nodes=[n for n in self.nodes if n.id in kept], edges=[e for e in self.edges if e in links],
                       cards={k: v for k, v in self.cards.items() if k in used})

    def tensors(self) -> Mapping[str, Tensor]:
        """None."""
        return {}

    def facts(self) -> Mapping[str, Any]:
        """Everything."""
        return {"title": self.title, "levels": list(self.levels), "columns": [asdict(c) for c in self.columns],
                "nodes": [asdict(n) for n in self.nodes], "edges": [asdict(e) for e in self.edges], "groups": dict(self.groups),
                "cards": {k: asdict(c) for k, c in self.cards.items()}, "notes": list(self.notes), "node_unit": self.node_unit,
                "edge_unit": self.edge_unit, "details": dict(self.details)}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """Inverse of `facts`."""
        given = dict(facts)
        cards = {k: FeatureCard.of(c) for k, c in given.pop("cards").items()}
        columns = [Column(**c) for c in given.pop("columns")]
        nodes, edges = [GraphNode(**n) for n in given.pop("nodes")], [GraphEdge(**e) for e in given.pop("edges")]
        return cls(columns=columns, nodes=nodes, edges=edges, cards=cards, **given)

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], registry: Registry) -> Self:
        """Inverse of `facts`."""
        return cls.of(facts)
