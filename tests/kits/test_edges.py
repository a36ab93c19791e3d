"""V12: edges add up, to what a node's own score and a target's true change say. Shapes as in `reprbasis.kits.edges`."""

import pytest
import torch

import reprbasis
from reprbasis.errors import ShapeError
from reprbasis.kits.edges import edges
from reprbasis.kits.nodes import Nodes, Places
from reprbasis.runtime.basis import Basis, Normaliser
from reprbasis.sites import Site
from reprbasis.testing.toys import ToyDictionary, contrast_batches, margin, toy_model, toy_registry


def relu_basis(model, sites, *, width=14, seed=0) -> Basis:
    """A random ReLU dictionary in float64, with an error."""
    g = torch.Generator().manual_seed(seed)
    chosen, d = model.info.select(sites), model.info.d_model
    encoder, decoder = (torch.randn(width, d, generator=g).double() / d**0.5 for _ in range(2))
    learner = toy_registry().create("learner", "toy-dictionary", width=width)
    normaliser = Normaliser(torch.zeros(len(chosen), d).double(), 0.5 + torch.rand(len(chosen), generator=g).double())
    return Basis(chosen, normaliser, ToyDictionary(encoder, decoder, torch.zeros(d).double(), rectify=True), learner)


@pytest.fixture(scope="module")
def world():
    """A linear model in float64 with three residual sites in a ReLU basis, and two batches."""
    model = toy_model(layers=3)
    model.weights = {name: w.double() for name, w in model.weights.items()}
    return model, relu_basis(model, "resid.*"), contrast_batches(model)


def everything(basis, rows=None) -> dict:
    shape = (basis.d_dict + 1,) if rows is None else (rows, basis.d_dict + 1)
    return {s: torch.ones(shape, dtype=torch.bool) for s in basis.sites}


def test_in_a_linear_segment_all_sums_are_exact(world):
    """Rows: what all sources give a target is its change. Columns: effect edges of a source are its first-order score."""
    model, basis, batches = world
    first = reprbasis.create("scorer", "attribution").score(model, basis, batches, margin())
    for kind in ("effect", "integrated"):
        found = edges(model, basis, batches, margin(), everything(basis), kind=kind, steps=1)
        assert [f"{a}>{b}" for a, b in found.edges] == ["resid.0>resid.1", "resid.1>resid.2"]
        for check in found.details["checks"].values():
            assert check["row_effect"] > 1e-3
            assert check["row_residual"] < 1e-12
        if kind == "effect":
            for (a, b), table in found.edges.items():
                assert torch.allclose(table.to_dense().sum(1), first.nodes[a], atol=1e-12)
                assert found.details["checks"][f"{a}>{b}"]["explained"] == pytest.approx(1, abs=1e-12)


def test_edges_are_the_jacobian(world):
    """One column of the Jacobian by forward differentiation, in the direction of one source latent at one token."""
    model, basis, batches = world
    item, (a, b), u = batches[0], basis.sites[:2], 3
    places = Places.of("token", [item])
    found = edges(model, basis, [item], margin(), everything(basis, len(places)), kind="activation", places=places)
    dense = found.edges[a, b].to_dense()
    nodes = Nodes.of(model, basis, item)
    state, t = nodes.state(a), 1

    def target(step: torch.Tensor) -> torch.Tensor:
        codes = state.codes.clone()
        codes[:, t, u] += step * state.codes[:, t, u]
        return basis.encode(b, nodes.resume(a, nodes.value(a, codes, state.error), stop_at=b, capture=[b])[b])

    slope = (target(torch.tensor(1e-6)) - target(torch.tensor(-1e-6))) / 2e-6
    assert float(slope.abs().max()) > 1e-2
    expected = slope.sum(0) / len(item.clean.ids)
    assert torch.allclose(dense[t, u, :, :-1], expected[:len(places)], atol=1e-6)
    assert not dense[t, u, :t].any()  # nothing flows back in time


def test_backward_and_forward_derivatives_agree(world):
    """All edges of a source in one forward derivative (a JVP), against one backward for each target, to 1e-10."""
    model, basis, batches = world
    item, (a, b) = batches[0], basis.sites[:2]
    dense = edges(model, basis, [item], margin(), everything(basis), kind="activation").edges[a, b].to_dense()
    nodes = Nodes.of(model, basis, item)
    state, real = nodes.state(a), item.clean.mask[..., None]

    def targets(codes: torch.Tensor) -> torch.Tensor:
        value = nodes.value(a, codes, state.error)
        return basis.encode(b, nodes.resume(a, value, stop_at=b, capture=[b], grad=True)[b])

    for u in (1, 7):
        along = torch.zeros_like(state.codes)
        along[..., u] = state.codes[..., u]
        _, change = torch.autograd.functional.jvp(targets, state.codes, along)
        assert torch.allclose(dense[u, :-1], (change * real).sum((0, 1)) / len(item.clean.ids), rtol=0, atol=1e-10)
        assert float(dense[u, :-1].abs().max()) > 1e-3


def test_places_add_up(world):
    model, basis, batches = world
    places = Places.of("token", batches)
    whole = edges(model, basis, batches, margin(), everything(basis), kind="effect")
    parts = edges(model, basis, batches, margin(), everything(basis, len(places)), kind="effect", places=places)
    for pair, table in parts.edges.items():
        assert torch.allclose(table.to_dense().sum((0, 2)), whole.edges[pair].to_dense(), atol=1e-12)


def test_batched_and_looped_are_the_same(world):
    model, basis, batches = world
    one, many = (edges(model, basis, batches, margin(), everything(basis), steps=3, rows=rows) for rows in (1, 64))
    for pair, table in one.edges.items():
        assert torch.allclose(table.to_dense(), many.edges[pair].to_dense(), atol=1e-12)


def test_only_nodes_of_the_circuit_have_edges_and_dead_targets_have_none(world):
    model, basis, batches = world
    chosen = {s: torch.zeros(basis.d_dict + 1, dtype=torch.bool) for s in basis.sites}
    for mask in chosen.values():
        mask[[0, 2, 5, basis.d_dict]] = True
    dead = relu_basis(model, "resid.*")
    dead.dictionary.bias.data[:] = 0
    dead.dictionary.encoder.data[2] = 0
    found = edges(model, dead, batches, margin(), chosen)
    for table in found.edges.values():
        sources, targets = table.coalesce().indices()
        assert set(sources.tolist()) <= {0, 2, 5, basis.d_dict}
        assert set(targets.tolist()) <= {0, 5, basis.d_dict}
        assert len(targets)
    with pytest.raises(ShapeError, match="mask"):
        edges(model, basis, batches, margin(), {basis.sites[0]: torch.ones(3, dtype=torch.bool)})


def test_edges_stop_at_the_sites_between(world):
    """attn_out.1 reaches resid.1 directly, with what the MLP makes of it held back; nothing jumps over a residual site."""
    model, _, batches = world
    basis = relu_basis(model, ("resid.0", "attn_out.1", "mlp_out.1", "resid.1", "resid.2"))
    found = edges(model, basis, batches, margin(), everything(basis), kind="integrated", steps=1)
    assert {f"{a}>{b}" for a, b in found.edges} == {
        "resid.0>attn_out.1", "resid.0>mlp_out.1", "resid.0>resid.1", "attn_out.1>mlp_out.1", "attn_out.1>resid.1",
        "mlp_out.1>resid.1", "resid.1>resid.2"}
    assert all(check["row_residual"] < 1e-12 for check in found.details["checks"].values())
    a, b = Site("attn_out", 1), Site("resid", 1)
    state = Nodes.of(model, basis, batches[0]).state(a)
    table = edges(model, basis, batches[:1], margin(), everything(basis), kind="activation").edges[a, b].to_dense()
    rows = basis.dictionary.encoder * basis.normaliser.scale[basis.index(b)]
    nodes = Nodes.of(model, basis, batches[0]).state(b)
    active = (nodes.codes > 0).double()
    jacobian = rows @ basis.directions(a).T  # into the stream by the identity
    expected = torch.einsum("btv,vu,btu->uv", active * batches[0].clean.mask[..., None], jacobian, state.codes) / 4
    assert torch.allclose(table[:-1, :-1], expected, atol=1e-12)


def test_integrated_edges_add_up_in_a_curved_segment(checkpoint):
    """Into pre-activations, through attention, norms and gated MLPs: the error falls with the square of the step."""
    model = reprbasis.create("model", "llama", checkpoint=str(checkpoint), dtype="float32")
    model.network.double()
    basis, batches = relu_basis(model, ("resid.0", "resid.1")), contrast_batches(toy_model())[:1]

    def residual(steps):
        [check] = edges(model, basis, batches, margin(), everything(basis), steps=steps).details["checks"].values()
        return check["row_residual"] / check["row_effect"]

    coarse, fine = residual(10), residual(40)
    assert coarse < 0.005
    assert fine < 0.0005
    assert coarse / fine == pytest.approx(16, rel=0.25)
