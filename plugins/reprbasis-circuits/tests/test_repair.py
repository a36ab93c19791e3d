"""Local search on hard masks: laws on functions that can be searched whole, and on the planted chain."""

from itertools import product

import pytest
import torch
from reprbasis_circuits.repair import Problem, repair
from reprbasis_circuits.sparsify import Schedule, sparsify

import reprbasis as rb


def problem(loss, **options):
    """Of a loss of soft masks [M, N] in float64."""
    def slope(mask, part):
        leaf = mask.double().requires_grad_()
        loss(leaf[None]).sum().backward()
        return leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
    return Problem(lambda masks, part: loss(masks.double()), slope, 1, **options)


def interacting(seed, nodes=8):
    """Distance from 1 of a random polynomial with pairs and triples of nodes."""
    generator = torch.Generator().manual_seed(seed)
    one, two = torch.randn(nodes, generator=generator).double(), torch.randn(nodes, nodes, generator=generator).double()
    links = torch.randint(nodes, (3, 3), generator=generator)
    return lambda m: (m @ one + ((m @ two) * m).sum(1) + 2 * m[:, links].prod(2).sum(1) - 1).abs()


@pytest.mark.parametrize("seed", range(12))
def test_no_move_raises_the_objective_and_no_single_move_is_left(seed):
    loss, price = interacting(seed), 0.05
    every = torch.tensor(list(product([False, True], repeat=8)))
    starts = every[torch.randperm(256, generator=torch.Generator().manual_seed(seed))[:3]]
    found = repair(problem(loss, rounds=50), starts, loss(starts.double()), price)
    assert found.objective[-1] <= float((loss(starts.double()) + price * starts.sum(1)).min())
    assert all(a > b for a, b in zip(found.objective, found.objective[1:], strict=False))
    assert len(found.moves) == len(found.objective) - 1
    here = float(loss(found.mask[None].double())[0] + price * found.mask.sum())
    assert found.objective[-1] == pytest.approx(here)
    near = (every ^ found.mask).sum(1) == 1
    assert here <= float((loss(every.double()) + price * every.sum(1))[near].min()) + 1e-12


def chain(m):
    """1 if all of nodes 0 to 5 are on; 6 to 11 do nothing."""
    return 1 - m[:, :6].prod(1)


@pytest.mark.parametrize("broken", [[0, 1, 2, 4, 5], [0, 1, 2, 4, 5, 7], [0, 1, 3, 4, 5, 6, 9], [1, 2, 3, 4, 8]])
def test_a_broken_chain_is_mended(broken):
    start = torch.zeros(1, 12, dtype=torch.bool)
    start[0, broken] = True
    found = repair(problem(chain), start, chain(start.double()), 0.1)
    assert found.mask.nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_what_no_task_can_pay_is_left_empty():
    start = torch.tensor([[True] * 12, [False] * 12])
    found = repair(problem(chain), start, chain(start.double()), 0.2)  # six nodes for a gain of 1
    assert not found.mask.any()


def test_masks_that_are_optimal_are_left_alone():
    effects = torch.arange(1, 21, dtype=torch.float64) / 10

    def linear(m):
        return (effects.sum() - m @ effects).abs()

    kept = sparsify(lambda step, mask: linear(mask), 20, [0.75], Schedule.own(60), dtype=torch.float64).kept
    found = repair(problem(linear), kept, linear(kept.double()), 0.75)
    assert found.moves == []
    assert torch.equal(found.mask, kept[0])


@pytest.mark.parametrize(("remove", "add"), [(1, 0), (1, 3), (2, 3)])
def test_a_damaged_circuit_of_the_planted_chain_is_mended(chain_world, remove, add):
    task, truth, price = chain_world
    generator = torch.Generator().manual_seed(remove + add)
    mask = truth.clone()
    mask[truth.nonzero()[:, 0][torch.randperm(6, generator=generator)[:remove]]] = False
    mask[(~truth).nonzero()[:, 0][torch.randperm(int((~truth).sum()), generator=generator)[:add]]] = True
    found = repair(Problem(task.hard, task.slope, len(task.parts)), mask[None], task.hard(mask[None]), price)
    assert torch.equal(found.mask, truth)


@pytest.fixture(scope="module")
def chain_world(chain):
    from reprbasis_circuits.mask import _Task
    from reprbasis_circuits.nodes import Nodes, prepare

    config = rb.create("finder", "mask", protect=0, error="none", steps=4).config
    runner = prepare(config, chain.model, chain.basis, chain.batches[:2], chain.metric)
    nodes = Nodes.of(runner)
    wanted = {s: torch.zeros(1, len(runner.places), len(runner.coders[s].directions) + 1) for s in runner.setup.sites}
    for site, row, latent in chain.truth:
        wanted[site][0, row, (runner.coders[site].latents == latent).nonzero()[0]] = 1
    flat = torch.cat([wanted[s].flatten()[nodes.places[s]] for s in runner.setup.sites]).bool()
    return _Task(runner, nodes, config), flat, 0.05
