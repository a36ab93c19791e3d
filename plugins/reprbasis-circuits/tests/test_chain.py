"""The planted chain (V8) through the finders, and the fast path against the slow one (V14)."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from reprbasis_circuits.evaluation import Judge
from reprbasis_circuits.mask import _Task as MaskTask
from reprbasis_circuits.nodes import Nodes, prepare

import reprbasis as rb
from reprbasis.kits.circuits import Runner, fill_of
from reprbasis.kits.nodes import Means
from reprbasis.kits.nodes import Nodes as SlowNodes
from reprbasis.runtime.basis import Basis, Normaliser

COSTS = (0.001, 0.01, 0.1, 0.5)


def learn(chain, costs, *, batches=None, **options):
    finder = rb.create("finder", "mask", **{"steps": 120, "protect": 0, "rows": 64, "error": "none", "repair": 0, **options})
    return finder.search(chain.model, chain.basis, batches or chain.batches, chain.metric, costs)


@pytest.mark.parametrize("seed", range(5))
def test_planted_nodes_and_no_others(chain, seed):
    for found in learn(chain, [c / 2 for c in COSTS], seed=seed):  # published: price of a node times number of sites
        assert set(found.nodes()) == chain.truth


def test_repair_leaves_what_is_right(chain):
    for found in learn(chain, [c / 2 for c in COSTS], batches=chain.batches[:1], steps=60, repair=2):
        assert set(found.nodes()) == chain.truth
        assert found.details["moves"] == []


def test_prices_as_shares_of_what_there_is_to_gain(chain):
    """Without a node the loss is F(model) - F(empty), about 2 * 3.3; three chains of two nodes each gain 3, 2 and 1.6 of it."""
    some, none = learn(chain, [0.19, 0.24], unit="share", batches=chain.batches[:1], steps=60, repair=4)
    assert some.details["cost_per_node"] == pytest.approx(0.19 * 6.6, rel=0.05)
    assert (some.size(), none.size()) == (2, 0)


def test_parity_mode_finds_the_same(chain):
    for found in learn(chain, COSTS, parity="ssc", loss="abs-batch", target="basis", candidates="all", rows=16 * len(COSTS)):
        assert set(found.nodes()) == chain.truth


def test_high_prices_cost_recall(chain):
    published = {"parity": "ssc", "loss": "abs-batch", "target": "basis", "rows": 32}
    some, none = learn(chain, [3.0, 6.0], **published)
    assert set(some.nodes()) < chain.truth
    assert some.size() == 2  # one of three chains: recall 0.33
    assert none.size() == 0
    [own] = learn(chain, [1.5], lr=0.05)
    assert own.nodes() == some.nodes()


def test_faithful_and_complete_on_other_prompts(chain):
    [found] = learn(chain, [0.05])
    judge = Judge(chain.model, chain.basis, found.setup, chain.held_out, chain.metric, fill=fill_of(found), resamples=100)
    rows, _ = judge.circuits([found], "circuit")
    get = {m.name: m for m in rows}
    assert get["faithfulness"].value == pytest.approx(1, abs=0.01)
    assert get["faithfulness_model"].value == pytest.approx(1, abs=0.01)
    assert get["completeness"].value == pytest.approx(0, abs=0.01)
    assert get["same_choice"].value == 1
    assert {m.name: m.value for m in judge.minimality(found, "circuit")[0]} == {"idle_nodes": 0}
    assert {m.name: m.value for m in judge.subsets(found, "circuit")}["subset_gap"] == pytest.approx(0, abs=0.01)


def test_the_ends_of_the_scale(chain):
    """V11: with no node 0, with every node 1, without any circuit the whole model; with all latents alone F(basis)."""
    [found] = learn(chain, [0.05], error="node")
    judge = Judge(chain.model, chain.basis, found.setup, chain.held_out, chain.metric, fill=fill_of(found), resamples=100)
    none, every = (replace(found, masks={s: torch.full_like(m, on) for s, m in found.masks.items()})
                   for on in (False, True))
    latents = replace(every, masks={s: m.clone() for s, m in every.masks.items()})
    for mask in latents.masks.values():
        mask[:, -1] = False
    rows = {name: {m.name: m.value for m in judge.circuits([circuit], name)[0]}
            for name, circuit in (("none", none), ("every", every), ("latents", latents))}
    assert rows["none"]["faithfulness"] == pytest.approx(0, abs=1e-12)
    assert rows["none"]["completeness"] == pytest.approx(1, abs=1e-12)
    assert rows["every"]["faithfulness"] == pytest.approx(1, abs=1e-12)
    assert rows["every"]["completeness"] == pytest.approx(0, abs=1e-12)
    assert rows["latents"]["F"] == pytest.approx(float(judge.basis.mean()), abs=1e-12)
    assert rows["latents"]["faithfulness_basis"] == pytest.approx(1, abs=1e-12)
    assert rows["every"]["without_errors"] == pytest.approx(rows["latents"]["faithfulness"], abs=1e-12)


def test_costs_in_one_batch_equal_one_by_one(chain):
    together = learn(chain, COSTS, rows=16 * len(COSTS), steps=40)
    for cost, found in zip(COSTS, together, strict=True):
        [alone] = learn(chain, [cost], rows=16, steps=40)
        assert alone.nodes() == found.nodes()


@pytest.mark.parametrize("options", [{"candidates": "all"}, {"error": "node"}, {"error": "own"}, {"error": "mean"},
                                     {"ablation": "corrupt"}, {"ablation": "zero"}, {"loss": "square"}, {"loss": "abs-batch"}])
def test_every_option_keeps_the_planted_nodes(chain, options):
    [found] = learn(chain, [0.05], steps=60, repair=1, **options)
    latents = {n for n in found.nodes() if n[2] < chain.basis.d_dict}
    assert latents == chain.truth


def test_roles_are_rows(chain):
    [found] = learn(chain, [0.05], index="role")
    names = found.setup.roles
    assert names == ("subject", "last", "rest")
    truth = {(s, {2: 0, 4: 1}[t], k) for s, t, k in chain.truth}
    assert set(found.nodes()) == truth


def test_shared_masks_count_a_latent_once(chain):
    [found] = learn(chain, [0.05], index="shared")
    assert set(found.nodes()) == {(s, -1, k) for s, _, k in chain.truth}


def test_greedy_finds_the_chain(chain):
    finder = rb.create("finder", "greedy", nodes=6, protect=0, error="none", exact=10)
    assert set(finder.find(chain.model, chain.basis, chain.batches, chain.metric).nodes()) == chain.truth
    sizes = [2, 6, 20]
    family = rb.create("finder", "greedy", sizes=sizes, protect=0, error="none").family(
        chain.model, chain.basis, chain.batches, chain.metric)
    assert [c.size() for c in family] == sizes
    assert all(a.containment(b) == 1 for a, b in pairwise(family))


def test_cleanup_drops_what_does_not_matter(chain):
    still = {"steps": 2, "lr": 1e-4, "batches": chain.batches[:1]}  # nothing moves: every candidate stays
    [dirty] = learn(chain, [1e-9], **still)
    [clean] = learn(chain, [1e-9], **still, cleanup=0.01)
    assert dirty.size() > 100
    assert clean.details["size_before_cleanup"] == dirty.size()
    assert chain.truth <= set(clean.nodes())
    assert clean.size() <= len(chain.truth) + 1  # one dropped node may come back


@pytest.mark.parametrize("error", ["node", "own", "mean", "none"])
@pytest.mark.parametrize("ablation", ["mean", "corrupt", "zero"])
def test_fast_path_equals_slow_path(chain, error, ablation):
    """Prefix, candidates, batched masks and answers' rows alone against a whole run with every latent (V14)."""
    setup = learn(chain, [0.05], error=error, ablation=ablation, steps=3)[0].setup
    fast = Runner(chain.model, chain.basis, setup, chain.batches, chain.metric)
    generator = torch.Generator().manual_seed(1)
    masks = {s: torch.rand(3, len(fast.places), len(c.directions) + 1, generator=generator, dtype=torch.float64)
             for s, c in fast.coders.items()}
    zero = error == "none"
    for index, p in enumerate(fast.prompts):
        value, _ = fast.run(index, masks)
        means = Means(fast.fill_places, fast.fill.codes, fast.fill.errors, torch.ones(len(fast.fill_places)))
        baseline = means if ablation == "mean" else ablation
        slow = SlowNodes.of(chain.model, chain.basis, p.item, baseline, error="zero" if zero else None, metric=chain.metric)
        for m in range(3):
            share = {}
            for site, mask in masks.items():
                whole = torch.zeros(len(fast.places), chain.basis.d_dict + 1, dtype=torch.float64)
                whole[:, fast.coders[site].latents] = mask[m, :, :-1]
                whole[:, -1] = {"node": mask[m, :, -1], "own": 1.0, "mean": 0.0, "none": 0.0}[error]
                share[site] = fast.places.spread(whole, p.item)
            run = slow.run(slow.edits(share))
            truth = slow.measure(chain.metric, run)[0]
            assert torch.allclose(value[m], truth, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("model_type", "basis_type", "absolute", "relative"), [
    (torch.float32, torch.float32, 1e-4, 0.0), (torch.bfloat16, torch.float32, 0.1, 0.02)])
def test_lower_precision_stays_close(chain, model_type, basis_type, absolute, relative):
    """V14 in float32, and with a bfloat16 model whose answers' logits are float32."""
    model = copy.copy(chain.model)
    model.weights = {k: v.to(model_type) for k, v in chain.model.weights.items()}
    dictionary = copy.deepcopy(chain.basis.dictionary).to(basis_type)
    normaliser = Normaliser(chain.basis.normaliser.mean.to(basis_type), chain.basis.normaliser.scale.to(basis_type))
    basis = Basis(chain.basis.sites, normaliser, dictionary, chain.basis.learner, capabilities=chain.basis.capabilities)
    setup = learn(chain, [0.05], error="node", steps=3)[0].setup
    exact, low = (Runner(m, b, setup, chain.batches[:2], chain.metric) for m, b in ((chain.model, chain.basis), (model, basis)))
    generator = torch.Generator().manual_seed(1)
    whole = {s: torch.rand(4, len(exact.places), chain.basis.d_dict + 1, generator=generator, dtype=torch.float64)
             for s in exact.setup.sites}
    values = []
    for runner in (exact, low):
        masks = {s: torch.cat([whole[s][..., c.latents], whole[s][..., -1:]], -1).to(runner.dtype)
                 for s, c in runner.coders.items()}
        values.append(runner.values(masks).double())
    gap = (values[0] - values[1]).abs()
    assert bool((gap <= absolute + relative * values[0].abs()).all()), float(gap.max())


def test_gradients_equal_differences(chain):
    setup = learn(chain, [0.05], error="node", steps=3)[0].setup
    runner = Runner(chain.model, chain.basis, setup, chain.batches[:1], chain.metric)
    generator = torch.Generator().manual_seed(1)
    masks = {s: torch.rand(1, len(runner.places), len(c.directions) + 1, generator=generator, dtype=torch.float64)
             for s, c in runner.coders.items()}
    masks = {s: m.requires_grad_() for s, m in masks.items()}
    value, _ = runner.run(0, masks, grad=True)
    value.sum().backward()
    for site, mask in masks.items():
        flat = mask.grad.flatten()
        for index in flat.abs().topk(3).indices.tolist():
            ends = []
            for sign in (1, -1):
                moved = {s: m.detach().clone() for s, m in masks.items()}
                moved[site].view(-1)[index] += sign * 1e-6
                ends.append(float(runner.run(0, moved)[0].sum()))
            assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float(flat[index]), rel=1e-4, abs=1e-6)


def test_prompts_of_a_step_do_not_change_the_answer_when_batches_are_split(chain):
    small = learn(chain, [0.05], rows=4)
    assert small[0].details["prompts_per_step"] == 4
    assert set(small[0].nodes()) == chain.truth


@pytest.mark.parametrize("inner", [2, 3, 4])
def test_steps_between_runs_find_the_same(chain, inner):
    for found in learn(chain, [c / 2 for c in COSTS], inner=inner):
        assert set(found.nodes()) == chain.truth


def test_the_expansion_is_exact_where_it_starts(chain):
    finder = rb.create("finder", "mask", protect=0, error="node", inner=2, steps=4)
    runner = prepare(finder.config, chain.model, chain.basis, chain.batches, chain.metric)
    nodes = Nodes.of(runner)
    mask = torch.rand(2, len(nodes), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses, slopes = [], []
    for inner in (1, 2):
        leaf = mask.clone().requires_grad_()
        loss = MaskTask(runner, nodes, finder.config.model_copy(update={"inner": inner}))(0, leaf)
        loss.sum().backward()
        losses.append(loss.detach())
        slopes.append(leaf.grad)
    assert torch.allclose(losses[0], losses[1], rtol=0, atol=1e-12)
    assert torch.allclose(slopes[0], slopes[1], rtol=0, atol=1e-12)
