"""A graph as the JSON that circuit-tracer's viewer and Neuronpedia read (Ameisen et al. 2025; Hanna et al. 2025).

The format is that of https://github.com/safety-research/circuit-tracer and the schema in
https://github.com/hijohnnylin/neuronpedia (apps/webapp/app/api/graph/graph-schema.json); `schema.json` beside this file says the
same in our words, with what their viewers need beyond it. What a node becomes:

    latent j at layer l, column t     node `l_j_t`, feature: Cantor's number of (l, j), so that their feature pages are found
    error, rest, part                 node `err_...`, feature -1 (their own form for errors collides with latents of layer 0)
    input                             node `E_...`, layer E
    output "a over b"                 two logit nodes, one for each answer: half the weight of an edge goes to a, minus half to b

A viewer draws a node only if it has a column; nodes without one stand at the last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

from reprbasis.errors import DataError
from reprbasis.interfaces.graph import Graph, GraphNode

GENERATOR = {"name": "reprbasis-graphs", "version": "0.1.0"}


def cantor(a: int, b: int) -> int:
    """One number for two (Cantor's pairing): (a + b)(a + b + 1) / 2 + b."""
    return (a + b) * (a + b + 1) // 2 + b


def slug(text: str) -> str:
    """Letters, digits, `_`, `.` and `-` alone."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-") or "graph"


def attribution_graph(graph: Graph, *, name: str = "", scan: str = "", source_set: str = "") -> dict[str, Any]:
    """The graph as JSON values.

    Args:
        graph: what to write. `details["outputs"]`, if there, lists the answers: `{"token", "id", "p"}`, the right one first;
            `details["prompt"]` is the text of the example.
        name: of the graph; by default its title.
        scan: name of the model on Neuronpedia.
        source_set: source set there that holds the latents, if any.
    """
    columns = graph.columns or ()
    last = max(len(columns) - 1, 0)
    top = max([_layer(n.site) for n in graph.nodes if n.site] or [0]) + 1
    answers = graph.details.get("outputs") or [{"token": "output", "id": 0, "p": 1.0}]
    share = _influence(graph)
    names: dict[str, list[tuple[str, float]]] = {}
    nodes = []
    for node in graph.nodes:
        made = _outputs(node, answers, top, last) if node.kind == "output" else [_inner(node, last, columns)]
        names[node.id] = _parts([m["node_id"] for m in made])
        for m in made:
            nodes.append({**m, "influence": share.get(node.id), "activation": node.facts.get("activation")})
    _unique(nodes)
    links = [{"source": a, "target": b, "weight": edge.weight * wa * wb} for edge in graph.edges
             for a, wa in names[edge.source] for b, wb in names[edge.target]]
    metadata: dict[str, Any] = {
        "slug": slug(name or graph.title), "scan": slug(scan or "unknown"), "prompt_tokens": [c.text for c in columns],
        "prompt": str(graph.details.get("prompt", "".join(c.text for c in columns))), "schema_version": 1, "node_threshold": 1.0,
        "info": {"description": " ".join(graph.notes), "generator": GENERATOR},
        "generation_settings": {"node_unit": graph.node_unit, "edge_unit": graph.edge_unit}}
    if source_set:
        metadata["feature_details"] = {"neuronpedia_source_set": source_set}
    groups: dict[str, list[str]] = {}
    for node in graph.nodes:
        if node.group:
            groups.setdefault(graph.groups[node.group], []).extend(n for n, _ in names[node.id])
    params = {"pinnedIds": [n["node_id"] for n in nodes], "supernodes": [[label, *ids] for label, ids in groups.items()],
              "linkType": "both", "clickedId": "", "sg_pos": ""}
    return {"metadata": metadata, "qParams": params, "nodes": nodes, "links": links}


def text(graph: Graph, **options: str) -> str:
    """`attribution_graph` as the text of a file."""
    return json.dumps(attribution_graph(graph, **options), ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def _inner(node: GraphNode, last: int, columns: Iterable[Any]) -> dict[str, Any]:
    layer, at = _layer(node.site), last if node.column is None else node.column
    family = node.site.rpartition(".")[0] or node.site
    mark = "" if family in ("resid", "") else f"-{family}"
    if node.kind == "input":
        made = {"node_id": f"E_{at}_{at}", "feature": at, "layer": "E", "feature_type": "embedding", "jsNodeId": f"E_{at}-{at}"}
    elif node.kind == "latent" and node.latent is not None:
        made = {"node_id": f"{layer}_{node.latent}_{at}{mark}", "feature": cantor(layer, node.latent), "layer": str(layer),
                "feature_type": "cross layer transcoder", "jsNodeId": f"{layer}_{node.latent}-0"}
    else:
        kind = "mlp reconstruction error" if node.kind == "error" else f"{node.kind} (error)"
        made = {"node_id": f"err_{layer}_{at}{mark}-{slug(node.id)}", "feature": -1, "layer": str(layer), "feature_type": kind,
                "jsNodeId": f"err_{layer}_{at}-0"}
    return {**made, "ctx_idx": at, "clerp": "" if node.kind == "input" else node.label}


def _outputs(node: GraphNode, answers: Iterable[Mapping[str, Any]], top: int, last: int) -> list[dict[str, Any]]:
    at = last if node.column is None else node.column
    return [{"node_id": f"{top}_{a['id']}_{at}", "feature": int(a["id"]), "layer": str(top), "ctx_idx": at,
             "feature_type": "logit", "jsNodeId": f"L_{a['id']}-{at}",
             "clerp": f"Output \"{a['token']}\" (p={float(a['p']):.3f})",
             "is_target_logit": index == 0, "token_prob": float(a["p"])} for index, a in enumerate(answers)]


def _parts(ids: list[str]) -> list[tuple[str, float]]:
    """What share of an edge each stands for: of two answers the first gets half and the second minus half."""
    return [(ids[0], 0.5), (ids[1], -0.5)] if len(ids) == 2 else [(i, 1.0) for i in ids[:1]]


def _influence(graph: Graph) -> dict[str, float]:
    """For each inner node the share of all weight that it and heavier ones have (small: important), as circuit-tracer writes."""
    inner = sorted((n for n in graph.nodes if n.kind not in ("input", "output")), key=lambda n: -abs(n.weight))
    total = sum(abs(n.weight) for n in inner) or 1.0
    return {n.id: share / total for n, share in zip(inner, accumulate(abs(n.weight) for n in inner), strict=True)}


def _unique(nodes: list[dict[str, Any]]) -> None:
    """Ids are made from what a node is; two that agree would be one node to a viewer."""
    ids = [n["node_id"] for n in nodes]
    if len(set(ids)) < len(ids):
        twice = sorted({i for i in ids if ids.count(i) > 1})
        raise DataError(f"two nodes of the graph stand for the same latent and place: {', '.join(twice[:4])}",
                        do="give them different columns or sites")


def _layer(site: str) -> int:
    tail = site.rpartition(".")[2]
    return int(tail) if tail.isdecimal() else 0
