"""The basis: every site in its own units, splices that change nothing unless told to."""

import pytest
import torch

import reprbasis as rb
from reprbasis.errors import CapabilityError, ShapeError, SiteError, UnknownComponentError
from reprbasis.interfaces.learner import Dictionary, DictionaryLearner
from reprbasis.interfaces.model import ForwardResult
from reprbasis.interfaces.tokens import TokenBatch, TokenSequence
from reprbasis.registry import Registry
from reprbasis.runtime.basis import Basis, Normaliser
from reprbasis.sites import Site

SITES = (Site("embed"), Site("resid", 0))
D, K = 6, 10


class Config(rb.ComponentConfig):
    bent: bool = False
    """Whether the decoder is not affine."""


class Bent(Dictionary):
    """ReLU codes and, on request, a decoder that is not affine."""

    def __init__(self, bent):
        super().__init__()
        self.d_in, self.d_dict, self.bent = D, K, bent
        self.weight = torch.nn.Parameter(torch.randn(K, D, generator=torch.Generator().manual_seed(0)))

    def encode(self, x):
        return torch.relu(x @ self.weight.T)

    def decode(self, z):
        return torch.tanh(z @ self.weight) if self.bent else z @ self.weight

    def directions(self):
        return None if self.bent else self.weight


class Learner(DictionaryLearner):
    def start(self, stats, generator):
        return Bent(self.config.bent)

    def loss(self, dictionary, rows, step):
        return {"mse": (dictionary(rows.x) - rows.x).square().mean()}

    def restore(self, d_in, tensors):
        out = Bent(self.config.bent)
        out.load_state_dict(dict(tensors))
        return out


class Plugin:
    @staticmethod
    @rb.hookimpl
    def reprbasis_register(register):
        register(rb.Component(kind="learner", name="bent", config=Config, factory=f"{__name__}:Learner", summary="for tests"))


def make(bent=False):
    norm = Normaliser(torch.randn(2, D, generator=torch.Generator().manual_seed(1)), torch.tensor([2.0, 0.1]))
    return Basis(SITES, norm, Bent(bent), Learner(Config(bent=bent)), details={"history": []})


def batch(t=5):
    return TokenBatch.pad([TokenSequence(torch.arange(t)), TokenSequence(torch.arange(t - 2), sequence=1)])


def x(seed=2):
    return torch.randn(2, 5, D, generator=torch.Generator().manual_seed(seed)) * 10


def test_codes_are_those_of_the_normalised_activation():
    basis = make()
    want = basis.dictionary.encode((x() - basis.normaliser.mean[1]) * 0.1)
    assert torch.equal(basis.encode(SITES[1], x()), want)


@pytest.mark.parametrize("bent", [False, True])
def test_a_splice_without_mask_changes_nothing_at_all(bent):
    for edit in make(bent).splice():
        assert torch.equal(edit(x(), batch()), x())


def test_a_splice_that_keeps_everything_changes_nothing():
    for edit in make().splice(mask={s: torch.ones(K, dtype=torch.bool) for s in SITES}):
        assert torch.equal(edit(x(), batch()), x())


def test_dropping_the_error_gives_the_reconstruction():
    basis = make()
    edit = basis.splice([SITES[0]], error="none")[0]
    assert torch.equal(edit(x(), batch()), basis.decode(SITES[0], basis.encode(SITES[0], x())))


def test_removing_one_latent_removes_its_direction():
    basis, site = make(), SITES[1]
    mask = torch.ones(K, dtype=torch.bool)
    mask[3] = False
    z = basis.encode(site, x())
    gone = x() - z[..., 3:4] * basis.directions(site)[3]
    assert torch.allclose(basis.splice([site], mask={site: mask})[0](x(), batch()), gone, atol=1e-4)


def test_removed_latents_take_the_fill():
    basis, site = make(), SITES[1]
    other = basis.encode(site, x(7))
    edit = basis.splice([site], mask={site: torch.zeros(K)}, fill={site: other}, error="none")[0]
    assert torch.allclose(edit(x(), batch()), basis.decode(site, other))


def test_states_add_up():
    basis = make()
    result = ForwardResult({SITES[0]: x(), Site("final"): x()}, None, batch())
    states = basis.states(result)
    z, error = states[SITES[0]]
    assert set(states) == {SITES[0]}
    assert torch.allclose(basis.decode(SITES[0], z) + error, x(), atol=1e-5)


def test_directions_are_in_the_units_of_the_site():
    basis = make()
    for site in SITES:
        step = torch.zeros(K)
        step[4] = 1
        assert torch.allclose(basis.decode(site, step) - basis.decode(site, torch.zeros(K)), basis.directions(site)[4], atol=1e-5)


def test_it_saves_and_loads(tmp_path):
    registry = Registry()
    registry.add(Plugin)
    basis = make()
    basis.learner.full_name = registry.component("learner", "bent").full_name
    folder = rb.save(basis, tmp_path / "b")
    from reprbasis.artifacts.store import load

    back = load(folder, registry)
    assert all(torch.equal(back.encode(s, x()), basis.encode(s, x())) for s in SITES)
    assert back.facts() == basis.facts()
    with pytest.raises(UnknownComponentError, match="bent"):
        load(folder, Registry())


def test_what_does_not_fit_is_said():
    basis = make(bent=True)
    with pytest.raises(SiteError, match=r"does not cover site 'final'"):
        basis.encode(Site("final"), x())
    with pytest.raises(ShapeError, match=r"have width 7, the dictionary takes 6"):
        basis.encode(SITES[0], torch.zeros(3, 7))
    with pytest.raises(CapabilityError, match="not affine"):
        basis.directions(SITES[0])
    with pytest.raises(ShapeError, match="the normaliser of 2 sites"):
        Basis(SITES, Normaliser(torch.zeros(2, 7), torch.ones(2)), Bent(False), Learner(Config()))
