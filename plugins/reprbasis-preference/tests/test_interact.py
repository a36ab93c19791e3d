"""A planted head is the edge that is drawn. Shapes: N features, D residual width."""

import torch
from reprbasis_preference.evaluator import Typical
from reprbasis_preference.interact import _strongest, edges_of, graph_of

import reprbasis as rb
from reprbasis.testing.models import tiny_checkpoint, tiny_config


def test_a_planted_head_feeds_one_feature_from_another(tmp_path):
    """Head 2 of block 1 reads feature 5 and writes feature 9, four times its typical length; nothing else is as strong."""
    model = rb.create("model", "llama", checkpoint=str(tiny_checkpoint(tmp_path, tiny_config("llama"))))
    width = model.info.d_model
    features = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0))).Q[:30].contiguous()
    weights = model.attention(1)
    read = weights.norm(features[5] * width**0.5)
    with torch.no_grad():
        weights.W_V[weights.kv_of[2]][0] = 100 * read / read.square().sum()
        weights.W_O[2][:, 0] = 2 * features[9]
    usual = Typical(torch.zeros(width), torch.full((30,), 3.0), 50.0, torch.full((30,), 0.1))
    null = torch.randint(10, 30, (200,), generator=torch.Generator().manual_seed(1))
    found = [edges_of(model, n, features, usual, usual.scale, null, top=2, chunk=5) for n in (0, 1)]
    best = int(found[1].weight.abs().argmax())
    assert [int(x[best]) for x in (found[1].part, found[1].source, found[1].target)] == [2, 5, 9]
    assert abs(float(found[1].weight[best]) - 2 * 100 * 3 / 50 / 3) < 0.5
    kept = _strongest(found, 6, 10 * 30**2)
    graph = graph_of(model, kept, torch.arange(100, 130), {}, ["a note"])
    edge = max(graph.edges, key=lambda e: abs(e.weight))
    assert (edge.source, edge.target, edge.label) == ("resid.0/105", "resid.1/109", "head 1.2")
    assert sum(len(e.weight) for e in kept) == len(graph.edges) <= 6
    assert graph.node("resid.1/109").weight >= abs(edge.weight)
