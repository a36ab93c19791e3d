"""Masked runs at their ends (V1, V2, V10), and that nothing is left behind."""

import pytest
import torch
from reprbasis_circuits.config import NodesConfig
from reprbasis_circuits.nodes import Nodes, prepare

import reprbasis as rb
from reprbasis.errors import DataError
from reprbasis.interfaces.finder import Setup
from reprbasis.kits.circuits import NodeEdit, Runner, common_prefix
from reprbasis.testing.toys import contrast_batches, margin


@pytest.mark.parametrize("error", ["own", "node"])
@pytest.mark.parametrize("latents", ["active", "all"])
def test_all_nodes_on_is_the_model(world, error, latents):
    model, basis, batches = world
    runner = Runner(model, basis, Setup(basis.sites, error=error), batches, margin(), latents=latents)
    value = runner.values(runner.full(latents=True, errors=True))[0]
    assert torch.allclose(value, runner.model_values, rtol=0, atol=1e-10)


def test_own_error_does_not_undo_the_mask(world):
    model, basis, batches = world
    runner = Runner(model, basis, Setup(basis.sites, error="own"), batches, margin())
    value = runner.values(runner.full(latents=False, errors=True))[0]
    assert float((value - runner.model_values).abs().min()) > 1e-3


@pytest.mark.parametrize("error", ["own", "node", "mean", "none"])
def test_empty_circuit_is_the_baseline(world, error):
    """With every node off at the last site, what the model reads there is the same for all prompts (but for kept errors)."""
    model, basis, batches = world
    runner = Runner(model, basis, Setup(basis.sites, error=error), batches[:1], margin())
    masks = runner.full(latents=False, errors=False)
    final = model.forward(runner.prompts[0].item.clean, edits=runner.edits(runner.prompts[0], masks), capture=[basis.sites[-1]])
    x = final.sites[basis.sites[-1]]
    rows = runner.prompts[0].rows.expand(len(x), -1)
    same = [x[rows == t] for t in range(int(rows.max()) + 1)]
    spread = max(float((v - v[0]).abs().max()) for v in same if len(v))
    assert (spread > 1e-3) if error == "own" else (spread < 1e-12)


def test_balanced_prompts_have_an_empty_value_of_zero(world):
    """Both directions of every pair: under full mean ablation their logit differences cancel (V11)."""
    model, basis, batches = world
    item = batches[0]
    swapped = type(item)(item.corrupt, item.clean, type(item.targets)(item.targets.wrong, item.targets.answer))
    runner = Runner(model, basis, Setup(basis.sites), [item, swapped], margin())
    lengths = [int(m.sum()) for m in item.clean.mask]  # the same in both directions
    assert lengths == [int(m.sum()) for m in swapped.clean.mask]
    assert abs(float(runner.values(runner.full(latents=False, errors=False)).mean())) < 1e-6


@pytest.mark.parametrize("error", ["own", "node", "mean", "none"])
@pytest.mark.parametrize("ablation", ["mean", "corrupt", "zero"])
def test_protected_tokens_are_untouched(world, error, ablation):
    model, basis, batches = world
    runner = Runner(model, basis, Setup(basis.sites, ablation, error, protect=2), batches, margin())
    generator = torch.Generator().manual_seed(0)
    for p in runner.prompts:
        masks = {s: torch.rand(2, len(runner.places), len(c.directions) + 1, generator=generator, dtype=torch.float64)
                 for s, c in runner.coders.items()}
        for edit in runner.edits(p, masks):
            x = torch.randn(2 * len(p.model), p.item.clean.shape[1], model.info.d_model, generator=generator, dtype=torch.float64)
            out = edit(x, p.item.clean)
            assert isinstance(edit, NodeEdit)
            assert torch.equal(out[:, :2], x[:, :2])
            assert not torch.equal(out[:, 2:4], x[:, 2:4])
            pad = ~p.item.clean.mask.repeat(2, 1)
            assert torch.equal(out[pad], x[pad])


def test_shared_beginnings_are_protected(world):
    model, basis, batches = world
    assert common_prefix(batches) == 0
    for item in batches:
        for side in (item.clean, item.corrupt):
            side.ids[:, :2] = 9
    assert common_prefix(batches) == 2
    runner = prepare(NodesConfig(), model, basis, batches, margin())
    assert runner.setup.protect == 2
    nodes = Nodes.of(runner)
    assert all(int(place.min()) >= 2 * nodes.widths[s] for s, place in nodes.places.items())


def test_means_are_exact_and_do_not_depend_on_batches(world):
    model, basis, _ = world
    many = contrast_batches(model, sizes=[16] * 40, seed=5)
    setup = Setup(basis.sites)
    one = Runner(model, basis, setup, many, margin()).fill
    other = Runner(model, basis, setup, many[::-1], margin()).fill
    site = basis.sites[1]
    codes, rows = [], []
    for item in many:
        z, _ = basis.states(model.forward(item.corrupt, capture=[site]))[site]
        codes.append(z[item.corrupt.mask])
        rows.append(item.corrupt.positions[item.corrupt.mask])
    z, at = torch.cat(codes), torch.cat(rows)
    for t in range(int(at.max()) + 1):
        assert torch.allclose(one.codes[site][t], z[at == t].mean(0), rtol=0, atol=1e-12)
    assert torch.allclose(one.codes[site], other.codes[site], rtol=0, atol=1e-12)


def test_a_failing_search_leaves_nothing_behind(world):
    model, basis, batches = world
    before = {k: v.clone() for k, v in model.parameters().items()}

    class Broken(type(margin())):
        calls = 0

        def __call__(self, *args):
            Broken.calls += 1
            if Broken.calls > 6:
                raise RuntimeError("broken")
            return super().__call__(*args)

    with pytest.raises(RuntimeError, match="broken"):
        rb.create("finder", "mask", steps=20).find(model, basis, batches, Broken(margin().config))
    assert all(torch.equal(v, before[k]) and not v.requires_grad for k, v in model.parameters().items())
    assert not any(p.requires_grad for p in basis.dictionary.parameters())


def test_masks_of_other_sites_are_refused(world):
    model, basis, batches = world
    found = rb.create("finder", "mask", steps=3, sites="resid.0").find(model, basis, batches, margin())
    runner = Runner(model, basis, Setup(basis.sites), batches, margin())
    with pytest.raises(rb.errors.UserError, match="sites"):
        runner.dense([found])


def test_positions_that_do_not_mean_the_same_are_refused(world):
    model, basis, _ = world
    items = [rb.batches(model, rb.create("task", "toy-pairs", pairs=4, words=n), batch=4)[0] for n in (5, 6)]
    with pytest.raises(DataError, match="layouts"):
        prepare(NodesConfig(), model, basis, items, margin())
    assert prepare(NodesConfig(index="role"), model, basis, items, margin()).setup.roles == ("changed", "last", "rest")
