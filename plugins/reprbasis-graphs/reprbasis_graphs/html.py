"""The page of a graph: one file, nothing fetched. The drawing is in it as SVG; its script only makes it interactive."""

from __future__ import annotations

from dataclasses import asdict
from importlib.resources import files
from typing import Any

from reprbasis.interfaces.graph import Graph, GraphNode
from reprbasis.kits.pages import embed, escape, fill

from .layout import collapsed, layout
from .svg import PAINT, drawing


def page(graph: Graph, *, edges: int = 150) -> str:
    """The page; `edges`: how many there can be drawn."""
    source = files(__package__) / "page"

    def read(name: str) -> str:
        return (source / name).read_text("utf-8")

    views = {"nodes": graph.strongest(edges=edges)}
    if graph.groups:
        views["supernodes"] = collapsed(graph).strongest(edges=edges)
    drawings = [drawing(g, layout(g)) for g in views.values()]
    data = {"views": [_view(name, g) for name, g in views.items()], "node_unit": graph.node_unit,
            "cards": {k: asdict(c) for k, c in graph.cards.items()}, "details": graph.details}
    return fill(read("template.html"), {
        "TITLE": escape(graph.title), "STYLE": read("graph.css") + PAINT, "DRAWINGS": "\n".join(drawings),
        "NOTES": "\n".join(f"<p>{escape(note)}</p>" for note in graph.notes), "DATA": embed(data), "SCRIPT": read("graph.js")})


def _view(name: str, graph: Graph) -> dict[str, Any]:
    inner = sum(n.kind not in ("input", "output") for n in graph.nodes)
    return {"name": name, "nodes": [_shown(n, graph) for n in graph.nodes], "edge_unit": graph.edge_unit,
            "edges": {f"{e.source}\0{e.target}": {"label": e.label, "facts": dict(e.facts)} for e in graph.edges},
            "shown": max(30, 3 * inner)}


def _shown(node: GraphNode, graph: Graph) -> dict[str, Any]:
    at = "" if node.column is None else graph.columns[node.column].name or graph.columns[node.column].text
    place = ", ".join(filter(None, [graph.levels[node.level] if node.kind != "input" else "", at]))
    return {**asdict(node), "place": place, "group": graph.groups.get(node.group, "")}
