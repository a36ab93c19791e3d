"""A small graph with everything that can be awkward in it."""

import pytest

from reprbasis.interfaces.evaluator import Context, FeatureCard
from reprbasis.interfaces.graph import Column, Graph, GraphEdge, GraphNode
from reprbasis.testing.contracts.reporter import HOSTILE


def sample(hostile=False):
    odd = HOSTILE if hostile else " girls"
    context = Context([odd, " near", "\n"], [2.0, float("nan"), 0.0], 0, "resid.2")
    cards = {"7": FeatureCard(7, 0.1, 2.0, {"resid.2": 1.0}, [context],
                              [(odd, 1.0), (" were", 0.5)], [(" is", -1.0)])}
    nodes = [GraphNode("t0", "input", 0, 0, "“girls”"), GraphNode("t1", "input", 0, 1, "“near”"),
             GraphNode("a", "latent", 1, 0, odd, 0.7, "subject", "resid.2", 7, "7", {"activation": 3.5}),
             GraphNode("a2", "latent", 2, 0, "girls", 0.6, "subject", "resid.6", 7, "7"),
             GraphNode("e", "error", 1, 1, "error", -0.1, "", "resid.2"),
             GraphNode("h", "part", 2, 1, "head 5.3", 0.2, "", "attn_out.5"),
             GraphNode("out", "output", 3, 1, "“are” over “is”")]
    edges = [GraphEdge("t0", "a", 1.0), GraphEdge("a", "a2", 0.8), GraphEdge("a", "h", -0.3, "head 5.3"),
             GraphEdge("e", "h", 0.05), GraphEdge("a2", "out", 0.6), GraphEdge("h", "out", 0.2)]
    return Graph(odd if hostile else "sva: a circuit", ("tokens", "resid.2", "resid.6", "output"),
                 (Column("subject", odd, " girl"), Column("end", " near")), nodes, edges, {"subject": "girls at subject"}, cards,
                 (odd, "It says so."), "share", "share",
                 {"prompt": "The girls near", "edges": "shares", "groups": {"subject": 0.9},
                  "outputs": [{"token": " are", "id": 30, "p": 0.4}, {"token": " is", "id": 31, "p": 0.1}]})


@pytest.fixture
def graph():
    return sample()


@pytest.fixture
def hostile():
    return sample(hostile=True)
