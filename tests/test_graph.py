"""The graph artifact: it hangs together, and it is saved and loaded whole."""

import json

import pytest

import reprbasis as rb
from reprbasis.errors import DataError
from reprbasis.interfaces.evaluator import Context, FeatureCard
from reprbasis.interfaces.graph import Column, Graph, GraphEdge, GraphNode


def made(**changes):
    given = {
        "title": "demo", "levels": ("tokens", "resid.2", "out"), "columns": (Column("subject", " girls", " girl"), Column("end")),
        "nodes": (GraphNode("in", "input", 0, 0, " girls"),
                  GraphNode("a", "latent", 1, 0, "plural", 0.7, "subject", "resid.2", 7, "7", {"on": 0.9}),
                  GraphNode("b", "error", 1, 1, "error", -0.1, "subject"), GraphNode("out", "output", 2, 1, "are")),
        "edges": (GraphEdge("in", "a", 1.0), GraphEdge("a", "out", 0.6, "head 5.3", {"sd": 0.1}), GraphEdge("b", "out", -0.1)),
        "groups": {"subject": "at the subject"},
        "cards": {"7": FeatureCard(7, 0.1, 2.0, {"resid.2": 1.0}, [Context([" girls"], [2.0], 0, "resid.2")])},
        "notes": ("It says so.",), "node_unit": "share", "edge_unit": "share", "details": {"n": 3},
    }
    return Graph(**{**given, **changes})


def test_what_is_saved_is_loaded(tmp_path):
    graph = made()
    back = rb.load(rb.save(graph, tmp_path / "g"))
    assert isinstance(back, Graph)
    assert back.facts() == json.loads(json.dumps(graph.facts()))
    assert back.cards["7"] == graph.cards["7"] or back.cards["7"].contexts[0].tokens == [" girls"]
    assert Graph.of(graph.facts()).facts() == graph.facts()


@pytest.mark.parametrize(("changes", "word"), [
    ({"nodes": (GraphNode("a", "latent", 0), GraphNode("a", "latent", 0)), "edges": ()}, "two nodes 'a'"),
    ({"edges": (GraphEdge("a", "nowhere", 1.0),)}, "a > nowhere"),
    ({"levels": ("tokens", "resid.2")}, "level 2 of 2"),
    ({"columns": (Column("subject"),)}, "column 1 of 1"),
    ({"groups": {}}, "group 'subject'"),
    ({"cards": {}}, "card '7'"),
])
def test_what_does_not_hang_together_is_refused(changes, word):
    with pytest.raises(DataError, match=word):
        made(**changes)


def test_the_strongest_part_keeps_ends_and_drops_what_hangs_in_the_air():
    part = made().strongest(nodes=1, edges=1)
    assert [n.id for n in part.nodes] == ["in", "a", "out"]
    assert [(e.source, e.target) for e in part.edges] == [("in", "a")]
    assert made().strongest(nodes=0).cards == {}


def test_a_node_by_its_id():
    assert made().node("a").latent == 7
    with pytest.raises(KeyError, match="no node 'z'"):
        made().node("z")
