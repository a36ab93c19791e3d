"""A planted chain (V8 of the verification cases): what the task needs is known node by node."""

from dataclasses import dataclass

import pytest
import torch

from reprbasis.interfaces.learner import Dictionary
from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import TokenBatch, TokenSequence
from reprbasis.runtime.basis import Basis, Normaliser
from reprbasis.sites import Site
from reprbasis.testing.toys import LinearModel, ToyDictionary, contrast_batches, margin, toy_model, toy_registry

SITES = (Site("resid", 0), Site("resid", 1))
T, K, PLANTED, MOVED, WHERE = 5, 64, (3, 17, 40), (5, 21, 50), 2
WEIGHTS = (1.5, 1.0, 0.8)


@dataclass
class Chain:
    """Latents `PLANTED` at position `WHERE` of resid.0 are moved to `MOVED` at the last position of resid.1, and read there."""

    model: LinearModel
    basis: Basis
    batches: list[ContrastBatch]
    held_out: list[ContrastBatch]
    metric: object

    @property
    def truth(self) -> set[tuple[Site, int, int]]:
        return {(SITES[0], WHERE, k) for k in PLANTED} | {(SITES[1], T - 1, k) for k in MOVED}


@pytest.fixture(scope="session")
def chain() -> Chain:
    generator = torch.Generator().manual_seed(0)
    prompts, batch = 96, 16
    vocab = 2 * prompts * T + 8
    model = toy_model(layers=2, width=K, vocab=vocab)
    model.weights = {k: torch.zeros_like(v, dtype=torch.float64) for k, v in model.weights.items()}
    embed = model.weights["embed"]
    free = [k for k in range(K) if k not in (*PLANTED, *MOVED)]
    ids = torch.arange(8, vocab).view(2, prompts, T)  # a token of its own for every place, so that activations can be anything
    embed[8:, free] = torch.rand(vocab - 8, len(free), generator=generator, dtype=torch.float64) * (
        torch.rand(vocab - 8, len(free), generator=generator) < 0.1)  # nuisance
    on = 2 + 0.1 * torch.randn(prompts, 3, generator=generator, dtype=torch.float64)
    for b in range(prompts):
        embed[ids[0, b, WHERE], list(PLANTED)] = on[b]
    move = torch.zeros(K, K, dtype=torch.float64)
    for a, b in zip(PLANTED, MOVED, strict=True):
        move[b, a] = T  # uniform attention divides by T at the last position
    model.weights["1.W_V"], model.weights["1.W_O"] = move, torch.eye(K, dtype=torch.float64)
    yes, no = 4, 5
    model.weights["unembed"][yes, list(MOVED)] = torch.tensor(WEIGHTS, dtype=torch.float64)
    learner = toy_registry().create("learner", "toy-dictionary", width=K, rectify=True)
    eye = torch.eye(K, dtype=torch.float64)
    dictionary = ToyDictionary(eye, eye.clone(), torch.zeros(K, dtype=torch.float64), rectify=True)
    normaliser = Normaliser(torch.zeros(2, K, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    basis = Basis(SITES, normaliser, dictionary, learner, capabilities=frozenset({"affine-decoder"}))

    def made(rows: range) -> list[ContrastBatch]:
        out = []
        for first in range(rows.start, rows.stop, batch):
            sides = [TokenBatch.pad([TokenSequence(ids[side, b], sequence=b) for b in range(first, first + batch)])
                     for side in (0, 1)]
            targets = Targets(torch.full((batch, 1), yes), torch.full((batch, 1), no))
            roles = {"subject": torch.full((batch, 1), WHERE), "last": torch.full((batch, 1), T - 1)}
            out.append(ContrastBatch(sides[0], sides[1], targets, roles))
        return out

    return Chain(model, basis, made(range(64)), made(range(64, 96)), margin())


def rectified(model, width=6, dtype=torch.float64):
    """A lossy dictionary with ReLU codes at every residual site."""
    generator = torch.Generator().manual_seed(3)
    sites = model.info.select("resid.*")
    rows = torch.randn(width, model.info.d_model, generator=generator, dtype=dtype)
    bias = torch.randn(model.info.d_model, generator=generator, dtype=dtype)
    dictionary: Dictionary = ToyDictionary(rows, rows / 4, bias, rectify=True)
    normaliser = Normaliser(torch.randn(len(sites), model.info.d_model, generator=generator, dtype=dtype),
                            torch.rand(len(sites), generator=generator, dtype=dtype) + 0.5)
    return Basis(sites, normaliser, dictionary, toy_registry().create("learner", "toy-dictionary", width=width),
                 capabilities=frozenset({"affine-decoder"}))


@pytest.fixture
def world():
    """A random model, a lossy dictionary and prompts."""
    model = toy_model(layers=3)
    model.weights = {k: v.double() for k, v in model.weights.items()}
    return model, rectified(model), contrast_batches(model)
