"""Sources taken out of real streams. Shapes: B rows, T tokens, D residual width."""

import torch
from reprbasis_preference.removal import removed, told

import reprbasis as rb
from reprbasis.interfaces.tokens import TokenSequence
from reprbasis.kits.components import stream_before
from reprbasis.testing.models import tiny_checkpoint, tiny_config


class Axes:
    """A basis whose latents are the axes of the stream, rectified."""

    def __init__(self, model, site):
        self.width, self.sites = model.info.d_model, [site]

    def directions(self, site):
        return torch.eye(self.width)

    def encode(self, site, x):
        return x.relu()


def test_a_source_that_is_taken_out_takes_what_the_component_made_of_it(tmp_path):
    """An MLP and a head that are planted to write along 9 what they read along 5; a token's own share and the rest of the text
    stay. What is written along other features, and what other features feed, is far less.
    """
    model = rb.create("model", "llama", checkpoint=str(tiny_checkpoint(tmp_path, tiny_config("llama"))))
    width, site = model.info.d_model, stream_before(1)
    weights, mlp = model.attention(1), model.mlp(1)
    with torch.no_grad():
        weights.W_V[weights.kv_of[2]][0] = 30 * torch.eye(width)[5]
        weights.W_O[2][:, 0] = torch.eye(width)[9]
        mlp.W_in[0] = 5 * torch.eye(width)[5]
        mlp.W_gate[0] = 5 * torch.eye(width)[5]
        mlp.W_out[:, 0] = 3 * torch.eye(width)[9]
    draw = torch.Generator().manual_seed(0)
    texts = [TokenSequence(torch.randint(5, 60, (12,), generator=draw), sequence=i) for i in range(3)]
    edges = {1: (torch.tensor([2, model.info.n_heads, 0]), torch.tensor([5, 5, 3]), torch.tensor([9, 9, 3]), torch.ones(3))}
    one = {1: torch.ones(width)}
    [found] = removed(model, Axes(model, site), texts, edges, torch.arange(width), one, one, occurrences=3).values()
    assert found.seen.tolist() == [3, 3, 3]
    for i in (0, 1):
        assert found.moved[i] > 5 * found.others[i] > 0
        assert found.moved[i] > 5 * found.decoys[i]
    assert 0 < found.predicted[0] <= float(found.predicted[1])  # a head pays at most all its attention
    again = removed(model, Axes(model, site), texts, edges, torch.arange(width), one, one, occurrences=3)[1]
    assert torch.equal(again.moved, found.moved)
    assert "3 of 3 edges" in told({1: found})


def test_a_source_that_is_nowhere_active_is_left_out(tmp_path):
    """NaN and no occurrence, and the sentence says so."""
    model = rb.create("model", "llama", checkpoint=str(tiny_checkpoint(tmp_path, tiny_config("llama"))))
    basis = Axes(model, stream_before(0))
    basis.encode = lambda site, x: torch.zeros_like(x)
    one = {0: torch.ones(model.info.d_model)}
    edges = {0: (torch.tensor([0]), torch.tensor([1]), torch.tensor([2]), torch.ones(1))}
    texts = [TokenSequence(torch.arange(5, 12))]
    found = removed(model, basis, texts, edges, torch.arange(model.info.d_model), one, one, occurrences=2)
    assert found[0].moved.isnan().all()
    assert found[0].seen.tolist() == [0]
    assert "No source" in told(found)
