"""Bases of every kind of code that the formats know, and the checkpoints that the real libraries wrote."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

import reprbasis as rb
from reprbasis.artifacts.store import read_tensors
from reprbasis.runtime.basis import Basis, Normaliser
from reprbasis.sites import Site

DATA = Path(__file__).parent / "data"
SITES = (Site("resid", 0), Site("attn_out", 1), Site("resid", 2))
KINDS = ("relu", "jumprelu", "topk", "gated")


def make(kind, *, sites=SITES, normaliser="affine", d=12, k=40, seed=0):
    """A random dictionary with codes of one kind behind a normaliser of very different scales."""
    g = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=g)

    learner = rb.create("learner", kind, width=k, **({"k": 5} if kind == "topk" else {}))
    state = {"W_enc": draw(k, d) / d**0.5, "b_enc": 0.3 * draw(k), "W_dec": normalize(draw(k, d), dim=1), "b_dec": 0.3 * draw(d)}
    if kind in ("relu", "jumprelu"):
        state["threshold"] = draw(k).abs() * (kind == "jumprelu")
    if kind == "topk":
        state["k"] = torch.tensor(5)
    if kind == "gated":
        state |= {"r_mag": 0.3 * draw(k), "b_mag": 0.3 * draw(k)}
    s = len(sites)
    mean, scale = draw(s, d), 10.0 ** torch.linspace(-1.5, 1.0, s)
    if normaliser == "none":
        mean, scale = torch.zeros(s, d), torch.ones(s)
    provides = rb.registry().component("learner", kind).component.provides
    return Basis(sites, Normaliser(mean, scale), learner.restore(d, state), learner, capabilities=frozenset(provides),
                 details={"activations": {"model": {"config": {"checkpoint": "tiny"}}, "max_tokens": 64}})


@pytest.fixture
def make_basis():
    return make


@pytest.fixture
def rows():
    """Raw activations that fit a site of a basis: N rows of the width."""
    def draw(basis, site, n=256):
        x = torch.randn(n, basis.d_in, generator=torch.Generator().manual_seed(1))
        return basis.normaliser.invert(2 * x, basis.index(site))

    return draw


def checkpoints(library):
    """Folders that the real library wrote, with what it computed on them."""
    return sorted(p for p in (DATA / library).iterdir() if p.is_dir()) if (DATA / library).is_dir() else []


@pytest.fixture
def expected():
    """The rows, codes and reconstruction that the library that wrote a checkpoint gave, and the version of the library."""
    def load(folder):
        return read_tensors(folder / "expected.safetensors"), json.loads((folder.parent / "made.json").read_text())

    return load


def pytest_generate_tests(metafunc):
    """`written_by_LIBRARY` runs once for each checkpoint of that library."""
    for name in metafunc.fixturenames:
        if name.startswith("written_by_"):
            found = checkpoints(name.removeprefix("written_by_"))
            metafunc.parametrize(name, found, ids=[p.name for p in found])
