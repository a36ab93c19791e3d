"""Weight views back to parameters, and attention computed from views, on worlds that are known."""

import pytest
import torch

from reprbasis.errors import DataError, ShapeError, UserError
from reprbasis.interfaces.metric import Targets
from reprbasis.kits.components import answer_rows, heads_in_context, neurons, stream_before
from reprbasis.kits.weights import delta_of, parameter_of
from reprbasis.sites import Site
from reprbasis.testing.toys import contrast_batches, toy_model


def test_views_lead_back_to_their_parameter_however_sliced_or_turned():
    model = toy_model()
    weight = model.weights["1.W_O"]
    for view in (weight, weight.T, model.attention(1).W_O[0], weight[2:5], weight.T[1:3, 4:]):
        assert parameter_of(model, view) == "1.W_O"
        change = torch.randn(view.shape, generator=torch.Generator().manual_seed(0))
        name, delta = delta_of(model, view, change)
        assert (name, delta.shape) == ("1.W_O", weight.shape)
        before = view.clone()
        weight += delta
        assert torch.allclose(view, before + change, atol=1e-6)
        assert int(delta.count_nonzero()) == change.numel()
        weight -= delta


def test_what_is_no_parameter_and_the_unembedding_are_refused():
    model = toy_model()
    with pytest.raises(ShapeError, match="no view"):
        parameter_of(model, torch.zeros(2))
    with pytest.raises(UserError, match="unembedding"):
        parameter_of(model, model.unembedding().weight[3:])


def test_heads_and_neurons_of_the_linear_model_are_its_outputs():
    """Uniform attention over a token's own past, padding left out; one query or several."""
    model = toy_model()
    batch = contrast_batches(model)[0].clean
    sites = [stream_before(1), Site("attn_out", 1), Site("mlp_out", 1)]
    result = model.forward(batch, capture=sites)
    x, attn, mlp = (result[s] for s in sites)
    every = torch.arange(batch.shape[1]).expand(batch.shape)
    found = heads_in_context(model.attention(1), x, batch, every)
    assert torch.allclose(found.written.sum(0)[batch.mask], attn[batch.mask], atol=1e-5)
    last = heads_in_context(model.attention(1), x, batch, batch.last())
    rows = torch.arange(len(x))
    assert torch.allclose(last.written, found.written[:, rows, batch.last()], atol=1e-6)
    assert torch.allclose(last.attention.sum(-1), torch.ones(1, len(x)))
    assert not bool(last.constant.any())
    weights = model.mlp(1)
    assert torch.allclose((neurons(weights, x + attn) @ weights.W_out.T)[batch.mask], mlp[batch.mask], atol=1e-5)


def test_answer_rows_are_means_of_the_accepted_minus_the_wrong():
    matrix = torch.arange(12.0).view(6, 2)
    found = answer_rows(matrix, Targets(torch.tensor([[0, 2], [1, -1]]), torch.tensor([[5], [3]])))
    assert found.tolist() == [[-8.0, -8.0], [-4.0, -4.0]]
    assert answer_rows(matrix, Targets(torch.tensor([[0]]))).tolist() == [[-5.0, -5.0]]
    with pytest.raises(DataError, match="answers"):
        answer_rows(matrix, Targets())
