"""A graph as SVG: for a paper by itself, and as the drawing that the page makes interactive."""

from __future__ import annotations

from reprbasis.interfaces.graph import Graph, GraphEdge, GraphNode
from reprbasis.kits.pages import escape

from .layout import AXIS, LETTER, MARGIN, Box, Layout, curve, layout

THICK, THIN = 6.5, 0.8
STYLE = """
svg.graph{--ink:#1d1f24;--muted:#666b76;--line:#e3e1dc;--panel:#fff;--soft:#f2f0ec;--pos:#2457c5;--neg:#b3461e}
"""
PAINT = """
.graph text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:var(--ink)}
.graph .axis,.graph .small{font-size:10.5px;fill:var(--muted)}.graph .tokens{font-weight:600;white-space:pre}
.graph .rule{stroke:var(--line)}.graph .band{fill:var(--soft);opacity:.55}
.graph .edge{fill:none;stroke:var(--pos);opacity:.5}.graph .edge.neg{stroke:var(--neg);stroke-dasharray:5 3}
.graph .node rect{fill:var(--panel);stroke:var(--pos);stroke-width:1.2;rx:7}.graph .node.neg rect{stroke:var(--neg)}
.graph .node.error rect,.graph .node.rest rect{stroke-dasharray:4 3}.graph .node.input rect{stroke:none;fill:none}
.graph .node.output rect{fill:var(--soft);stroke:var(--ink)}.graph .node.part rect{fill:var(--soft)}
.graph .node .meter{fill:var(--pos);stroke:none;opacity:.16}.graph .node.neg .meter{fill:var(--neg)}
"""


def svg(graph: Graph, *, edges: int = 150) -> str:
    """A whole SVG file: the graph with its `edges` strongest edges, title and units."""
    part = graph.strongest(edges=edges)
    places = layout(part)
    return ('<?xml version="1.0" encoding="UTF-8"?>\n' + drawing(part, places, style=STYLE + PAINT, heading=True)).replace(
        'class="graph"', 'class="graph" xmlns="http://www.w3.org/2000/svg"', 1)


def drawing(graph: Graph, places: Layout, *, style: str = "", heading: bool = False) -> str:
    """The `svg` element. Every node has its id in `data-id`, every edge its ends in `data-source` and `data-target`, all their
    weight in `data-weight`.
    """
    top = 26 if heading else 0
    box = f"0 {-top} {places.width:.0f} {places.height + top:.0f}"
    out = [f'<svg class="graph" viewBox="{box}" width="{places.width:.0f}" height="{places.height + top:.0f}" role="img" '
           f'aria-label="{escape(graph.title)}">']
    if style:
        out.append(f"<style>{style}</style><rect x='0' y='{-top}' width='100%' height='100%' fill='#fff'/>")
    if heading:
        out.append(_text(MARGIN, -8, graph.title, "tokens"))
        if graph.edge_unit:
            out.append(_text(MARGIN, places.height - 8, f"Edges: {graph.edge_unit}. Blue: positive; dashed: negative.", "small"))
    out += _frame(graph, places)
    most = max((abs(e.weight) for e in graph.edges), default=0.0) or 1.0
    out.append('<g class="edges">')
    out += [_edge(e, places, most) for e in sorted(graph.edges, key=lambda e: abs(e.weight))]
    out.append('</g><g class="nodes">')
    most = max((abs(n.weight) for n in graph.nodes if n.kind not in ("input", "output")), default=0.0) or 1.0
    out += [_node(n, places.nodes[n.id], most) for n in graph.nodes]
    return "".join([*out, "</g></svg>"])


def amount(weight: float) -> str:
    """A weight in few characters."""
    return f"{weight:.2f}".replace("-", "−")


def _frame(graph: Graph, places: Layout) -> list[str]:
    """Names of levels at the left, bands and tokens of columns below."""
    out, used = [], {n.column for n in graph.nodes if n.kind not in ("input",)}
    bottom = places.height - 52
    for index, column in enumerate(graph.columns):
        left, right = places.bands[index]
        if index in used:
            out.append(f'<rect class="band" x="{left - 8:.1f}" y="{MARGIN:.1f}" width="{right - left + 16:.1f}" '
                       f'height="{bottom - MARGIN:.1f}" rx="8"/>')
        middle = places.columns[index]
        out.append(_text(middle, bottom + 16, _token(column.text), "tokens", middle=True))
        if column.other and column.other != column.text:
            out.append(_text(middle, bottom + 30, _token(column.other), "axis", middle=True))
        out.append(_text(middle, bottom + 44, column.name, "axis", middle=True))
    for name, y in zip(graph.levels, places.levels, strict=True):
        ends = f'x1="{MARGIN + AXIS - 12:.1f}" x2="{places.width - MARGIN:.1f}"'
        out.append(f'<line class="rule" {ends} y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(_text(MARGIN, y + 4, name, "axis"))
    return out


def _edge(edge: GraphEdge, places: Layout, most: float) -> str:
    a, b = places.nodes[edge.source], places.nodes[edge.target]
    thick = THIN + (THICK - THIN) * min(1.0, abs(edge.weight) / most)
    sign = "neg" if edge.weight < 0 else "pos"
    return (f'<path class="edge {sign}" d="{curve(a, b)}" stroke-width="{thick:.2f}" data-source="{escape(edge.source)}" '
            f'data-target="{escape(edge.target)}" data-weight="{edge.weight:.6g}"/>')


def _node(node: GraphNode, box: Box, most: float) -> str:
    sign = "neg" if node.weight < 0 else "pos"
    left, up = box.x - box.width / 2, box.y - box.height / 2
    ends = node.kind in ("input", "output")
    room = int((box.width - 10) / LETTER * 1.12)
    out = [f'<g class="node {node.kind} {sign}" data-id="{escape(node.id)}" data-weight="{node.weight:.6g}" tabindex="0">',
           f'<rect x="{left:.1f}" y="{up:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"/>']
    if not ends and node.weight:
        share = min(1.0, abs(node.weight) / most)
        out.append(f'<rect class="meter" x="{left:.1f}" y="{up:.1f}" width="{box.width * share:.1f}" height="{box.height:.1f}"/>')
    below = "" if ends else " · ".join(filter(None, [
        "" if node.latent is None else str(node.latent), amount(node.weight) if node.weight else ""]))
    out.append(_text(box.x, box.y + (-3 if below else 4), _cut(node.label, room), "", middle=True))
    if below:
        out.append(_text(box.x, box.y + 11, below, "small", middle=True))
    return "".join([*out, "</g>"])


def _text(x: float, y: float, text: str, kind: str, *, middle: bool = False) -> str:
    anchor = ' text-anchor="middle"' if middle else ""
    name = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{anchor}{name}>{escape(text)}</text>'


def _token(text: str) -> str:
    return text.replace("\n", "↵").replace("\t", "⇥") if text.strip() else text.replace("\n", "↵").replace(" ", "␣")


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[:max(1, room - 1)] + "…"
