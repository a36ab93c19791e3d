"""Where everything of a graph lies: levels up, columns along, nodes of one cell side by side; the same for page and SVG.

Units: pixels; y grows downwards.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from reprbasis.interfaces.graph import Graph, GraphEdge, GraphNode

WIDE, HIGH, GAP_X, GAP_Y = 128.0, 36.0, 8.0, 8.0
LEVEL_GAP, COLUMN_GAP, MARGIN, AXIS, HEAD = 34.0, 18.0, 12.0, 70.0, 18.0
EMPTY_LEVEL, EMPTY_COLUMN, LETTER = 16.0, 30.0, 7.2


@dataclass(frozen=True)
class Box:
    """Centre and size."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """Places of a graph.

    Args:
        width, height: of the drawing.
        nodes: id -> box.
        levels: height (centre) of each level, bottom first; columns: centre of each column.
        bands: left and right end of each column.
    """

    width: float
    height: float
    nodes: Mapping[str, Box]
    levels: Sequence[float]
    columns: Sequence[float]
    bands: Sequence[tuple[float, float]]


def layout(graph: Graph) -> Layout:
    """Places of all nodes; nodes without a column get one of their own at the right."""
    cells: dict[tuple[int, int], list[GraphNode]] = defaultdict(list)
    spare = len(graph.columns)
    for node in graph.nodes:
        cells[node.level, spare if node.column is None else node.column].append(node)
    free = any(column == spare for _, column in cells)

    def across(column: int) -> int:
        """Nodes side by side in the cells of a column before a new line begins."""
        most = max((len(c) for (_, k), c in cells.items() if k == column), default=0)
        return min(most, max(3, math.ceil(math.sqrt(most * (2 if column == spare else 0.7)))))

    bands, x = [], MARGIN + AXIS
    for column in range(spare + free):
        words = max(map(len, (graph.columns[column].name, graph.columns[column].text))) * LETTER + 8 if column < spare else 0
        inner = {n.kind for (_, k), c in cells.items() if k == column for n in c} - {"input"}
        wide = across(column) * (WIDE + GAP_X) - GAP_X if inner else 0.0
        wide = max(wide, words, EMPTY_COLUMN)
        bands.append((x, x + wide))
        x += wide + COLUMN_GAP
    width = x - COLUMN_GAP + MARGIN
    levels, nodes, y = [0.0] * len(graph.levels), {}, MARGIN + HEAD
    for level in reversed(range(len(graph.levels))):
        lines = max((math.ceil(len(c) / across(k)) for (at, k), c in cells.items() if at == level), default=0)
        high = lines * (HIGH + GAP_Y) - GAP_Y if lines else EMPTY_LEVEL
        levels[level] = y + high / 2
        for (at, column), members in cells.items():
            if at == level:
                nodes.update(_cell(members, bands[column], y + high / 2, across(column)))
        y += high + (LEVEL_GAP if lines else LEVEL_GAP / 3)
    return Layout(width, y - LEVEL_GAP + 52 + MARGIN, nodes, levels, [(a + b) / 2 for a, b in bands], bands)


def _cell(members: Sequence[GraphNode], band: tuple[float, float], middle: float, across: int) -> dict[str, Box]:
    lines = [members[i:i + across] for i in range(0, len(members), across)]
    out, centre = {}, (band[0] + band[1]) / 2
    for row, line in enumerate(lines):
        y = middle + (row - (len(lines) - 1) / 2) * (HIGH + GAP_Y)
        for k, node in enumerate(line):
            wide = WIDE if node.kind != "input" else min(WIDE, band[1] - band[0])
            out[node.id] = Box(centre + (k - (len(line) - 1) / 2) * (WIDE + GAP_X), y, wide, HIGH)
    return out


def curve(a: Box, b: Box) -> str:
    """SVG path from the top of one box to the bottom of another (or round the side, if the other is not higher)."""
    if b.y < a.y - 1:
        x0, y0, x1, y1 = a.x, a.y - a.height / 2, b.x, b.y + b.height / 2
        bend = max(14.0, (y0 - y1) * 0.5)
        return f"M{x0:.1f} {y0:.1f}C{x0:.1f} {y0 - bend:.1f} {x1:.1f} {y1 + bend:.1f} {x1:.1f} {y1:.1f}"
    side = 1 if b.x >= a.x else -1
    x0, x1 = a.x + side * a.width / 2, b.x - side * b.width / 2
    return f"M{x0:.1f} {a.y:.1f}C{x0 + side * 40:.1f} {a.y - 40:.1f} {x1 - side * 40:.1f} {b.y + 40:.1f} {x1:.1f} {b.y:.1f}"


def collapsed(graph: Graph) -> Graph:
    """The graph of its groups: one node for each, on the middle one of its members' levels.

    A group's weight is what its maker measured for it (`details["groups"][key]`), else the sum of its members' weights. Edges
    between two groups are added up; with `details["edges"]` = `shares` the sum is divided by the number of nodes in the target
    group that receive anything, so that it is the mean share.
    """
    measured, shares = graph.details.get("groups", {}), graph.details.get("edges") == "shares"
    members: dict[str, list[GraphNode]] = defaultdict(list)
    for node in graph.nodes:
        members[node.group or node.id].append(node)
    nodes, home = [], {}
    for key, some in members.items():
        home.update(dict.fromkeys((n.id for n in some), key))
        if key not in graph.groups:
            nodes += some
            continue
        levels = sorted(n.level for n in some)
        spread = " to ".join(dict.fromkeys((graph.levels[levels[0]], graph.levels[levels[-1]])))
        cards = {n.card for n in some}
        columns = {n.column for n in some}
        kinds = {n.kind for n in some}
        kind = kinds.pop() if len(kinds) == 1 else "part"
        nodes.append(GraphNode(
            key, kind, levels[len(levels) // 2], columns.pop() if len(columns) == 1 else None,
            graph.groups[key], float(measured.get(key, sum(n.weight for n in some))), card=cards.pop() if len(cards) == 1 else "",
            facts={"nodes": float(len(some)), "levels": spread}))
    total: dict[tuple[str, str], float] = defaultdict(float)
    receivers: dict[str, set[str]] = defaultdict(set)
    for edge in graph.edges:
        receivers[home[edge.target]].add(edge.target)
        if home[edge.source] != home[edge.target]:
            total[home[edge.source], home[edge.target]] += edge.weight
    edges = [GraphEdge(a, b, w / (len(receivers[b]) if shares else 1)) for (a, b), w in total.items()]
    unit = f"{graph.edge_unit}; {'mean over the nodes of a group' if shares else 'added up'}" if graph.edge_unit else ""
    return replace(graph, nodes=nodes, edges=edges, groups={}, edge_unit=unit)
