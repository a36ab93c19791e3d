"""The JSON is what circuit-tracer and Neuronpedia read."""

import json
from dataclasses import replace
from importlib.resources import files

import pytest
from reprbasis_graphs.neuronpedia import attribution_graph, cantor, text

from reprbasis.errors import DataError
from reprbasis.interfaces.graph import Column, Graph, GraphNode

jsonschema = pytest.importorskip("jsonschema")
SCHEMA = json.loads((files("reprbasis_graphs") / "schema.json").read_text("utf-8"))


def unpaired(z):
    """The inverse of Cantor's pairing."""
    w = int(((8 * z + 1) ** 0.5 - 1) / 2)
    while w * (w + 1) // 2 > z:
        w -= 1
    while (w + 1) * (w + 2) // 2 <= z:
        w += 1
    b = z - w * (w + 1) // 2
    return w - b, b


def test_it_obeys_the_schema(graph, hostile):
    for one in (graph, hostile, Graph()):
        made = json.loads(text(one, name="run/sva 1", scan="HuggingFaceTB/SmolLM2", source_set="res-4k"))
        jsonschema.validate(made, SCHEMA)
        ids = [n["node_id"] for n in made["nodes"]]
        assert len(set(ids)) == len(ids)
        assert {e[k] for e in made["links"] for k in ("source", "target")} <= set(ids)
        assert made["metadata"]["scan"] == "HuggingFaceTB-SmolLM2"


def test_what_breaks_the_schema_is_noticed(graph):
    made = attribution_graph(graph)
    made["nodes"][-1]["clerp"] = "Output without a probability"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(made, SCHEMA)


def test_latents_carry_cantor_numbers_and_layers_as_text(graph):
    node = next(n for n in attribution_graph(graph)["nodes"] if n["node_id"] == "2_7_0")
    assert (node["layer"], node["ctx_idx"], node["feature"], node["activation"]) == ("2", 0, cantor(2, 7), 3.5)
    assert all(unpaired(cantor(a, b)) == (a, b) for a in (0, 1, 30, 127) for b in (0, 5, 16_383, 2**20))


def test_the_weight_to_the_answers_is_their_difference(graph):
    made = attribution_graph(graph)
    logits = {n["clerp"]: n["node_id"] for n in made["nodes"] if n["feature_type"] == "logit"}
    assert list(logits) == ['Output " are" (p=0.400)', 'Output " is" (p=0.100)']
    weight = {e["target"]: e["weight"] for e in made["links"] if e["source"] == "6_7_0"}
    assert weight[logits['Output " are" (p=0.400)']] - weight[logits['Output " is" (p=0.100)']] == pytest.approx(0.6)


def test_errors_collide_with_nothing_and_supernodes_name_their_members(graph):
    made = attribution_graph(graph)
    assert [n["feature"] for n in made["nodes"] if "error" in n["feature_type"]] == [-1, -1]
    assert made["qParams"]["supernodes"] == [["girls at subject", "2_7_0", "6_7_0"]]
    influence = {n["node_id"]: n["influence"] for n in made["nodes"]}
    assert influence["2_7_0"] == pytest.approx(0.7 / 1.6)
    assert max(v for v in influence.values() if v is not None) == pytest.approx(1.0)


def test_two_nodes_of_one_latent_and_place_are_refused(graph):
    twin = GraphNode("twin", "latent", 1, 0, "again", 0.1, "", "resid.2", 7)
    with pytest.raises(DataError, match="2_7_0"):
        attribution_graph(replace(graph, nodes=[*graph.nodes, twin]))


def test_a_graph_without_columns_stands_at_one_place():
    made = attribution_graph(Graph("x", ("resid.1",), (), [GraphNode("a", "latent", 0, None, "a", 1.0, "", "resid.1", 3)]))
    jsonschema.validate(made, SCHEMA)
    assert made["nodes"][0]["ctx_idx"] == 0
    assert attribution_graph(Graph("x", (), (Column("", "a\n"),)))["metadata"]["prompt_tokens"] == ["a\n"]
