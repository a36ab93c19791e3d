"""Nodes: places, means, and that runs with other values do what their formulas say. Shapes as in `reprbasis.kits.nodes`."""

from dataclasses import replace

import pytest
import torch

import reprbasis
from reprbasis.errors import DataError, SiteError
from reprbasis.interfaces.model import ModelAdapter, Replace
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import TokenBatch, TokenSequence
from reprbasis.kits.nodes import Means, Nodes, Places, pull, repeated, stream_before
from reprbasis.runtime.basis import Basis, Normaliser
from reprbasis.sites import Site
from reprbasis.testing.toys import ToyDictionary, contrast_batches, margin, toy_basis, toy_model, toy_registry

SITES = ("embed", "attn_out.1", "mlp_out.0", "resid.*", "final")


@pytest.fixture(scope="module")
def model(checkpoint) -> ModelAdapter:
    return reprbasis.create("model", "llama", checkpoint=str(checkpoint))


def relu_basis(model, sites=SITES, *, width=24, seed=0) -> Basis:
    g = torch.Generator().manual_seed(seed)
    chosen, d = model.info.select(sites), model.info.d_model
    encoder, decoder = (torch.randn(width, d, generator=g) / d**0.5 for _ in range(2))
    dictionary = ToyDictionary(encoder, decoder, 0.1 * torch.randn(d, generator=g), rectify=True)
    learner = toy_registry().create("learner", "toy-dictionary", width=width)
    normaliser = Normaliser(0.1 * torch.randn(len(chosen), d, generator=g), 0.5 + torch.rand(len(chosen), generator=g))
    return Basis(chosen, normaliser, dictionary, learner, capabilities=frozenset({"affine-decoder"}))


def pair(rows=3, length=6, *, special=False, side="right", roles=None, seed=0) -> ContrastBatch:
    """Random prompts of one length; clean and corrupted ones differ at positions 1 and 3."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 300, (rows, length), generator=g)
    other = ids.clone()
    other[:, [1, 3]] += 7
    flags = {"special": torch.arange(length) == 0} if special else {}
    clean, corrupt = (TokenBatch.pad([TokenSequence(i, flags, n) for n, i in enumerate(x)], side=side, length=length + 2)
                      for x in (ids, other))
    answers = torch.arange(5, 5 + rows)[:, None]
    return ContrastBatch(clean, corrupt, replace(contrast_batches(toy_model())[0].targets, answer=answers, wrong=answers + 9),
                         roles or {})


def logits(nodes, edits) -> torch.Tensor:
    return nodes.run(edits).logits


@pytest.mark.parametrize("side", ["left", "right"])
def test_places_say_which_token_belongs_to_which_node(side):
    item = pair(side=side, roles={"verb": torch.tensor([[2, 3]] * 3), "end": torch.tensor([[5]] * 3)})
    assert Places.of("shared", [item]).names == ("all",)
    tokens, roles = Places.of("token", [item]), Places.of("role", [item])
    assert tokens.names == tuple("012345")
    assert roles.names == ("verb", "end", "rest")
    real = item.clean.mask[0]
    assert tokens.index(item)[0][real].tolist() == [0, 1, 2, 3, 4, 5]
    assert roles.index(item)[0][real].tolist() == [2, 2, 0, 0, 2, 1]
    assert (roles.index(item)[0][~real] == -1).all()
    values = torch.randn(3, 4)
    spread = roles.spread(values, item, outside=9.0)
    assert spread.shape == (1, 8, 4)
    assert torch.equal(spread[0, real], values[[2, 2, 0, 0, 2, 1]])
    assert (spread[0, ~real] == 9).all()
    x = torch.randn(3, 8, 4, dtype=torch.float64)
    for places in (tokens, roles):
        assert torch.allclose(places.total(x, item).sum(0), x[item.clean.mask].sum(0), atol=1e-12)


def test_roles_have_to_be_there():
    with pytest.raises(DataError, match="roles"):
        Places.of("role", [pair()])


def test_a_token_with_two_roles_belongs_to_the_last():
    item = pair(roles={"a": torch.tensor([[1, 2]] * 3), "b": torch.tensor([[2, 0, 3, 4, 5]] * 3)})
    places = Places.of("role", [item])
    assert places.names == ("a", "b", "rest")
    assert places.index(item)[0].tolist() == [1, 0, 1, 1, 1, 1, -1, -1]


def test_means_are_exact_whatever_the_batches(model):
    basis, item = relu_basis(model, "resid.*"), pair(rows=7)
    parts = [ContrastBatch(_rows(item.clean, at), _rows(item.corrupt, at), item.targets) for at in ([4, 1], [0, 6, 2, 3], [5])]
    one, many = Means.of(model, basis, [item]), Means.of(model, basis, parts)
    x = model.forward(item.corrupt, capture=basis.sites).sites
    for site in basis.sites:
        z = basis.encode(site, x[site])[:, :6]
        assert torch.allclose(one.codes[site], z.mean(0), atol=1e-5)
        assert torch.allclose(one.errors[site], (x[site][:, :6] - basis.decode(site, z)).mean(0), atol=1e-5)
        assert torch.allclose(one.codes[site], many.codes[site], atol=1e-5)
    assert one.counts.tolist() == many.counts.tolist() == [7] * 6


def _rows(batch, at) -> TokenBatch:
    return TokenBatch.pad([TokenSequence(batch.ids[i][batch.mask[i]], sequence=i) for i in at], length=batch.shape[1])


@pytest.mark.parametrize("baseline", ["corrupt", "zero", "mean"])
def test_with_all_nodes_kept_the_run_is_the_clean_run(model, baseline):
    """V1: exact, and with all nodes off something happens (the error does not bring everything back)."""
    basis, item = relu_basis(model), pair()
    nodes = Nodes.of(model, basis, item, Means.of(model, basis, [item]) if baseline == "mean" else baseline)
    on, off = ({s: torch.full((basis.d_dict + 1,), v) for s in basis.sites} for v in (1.0, 0.0))
    assert torch.equal(logits(nodes, nodes.edits(on)), nodes.result.logits)
    latents_off = {s: torch.cat([torch.zeros(basis.d_dict), torch.ones(1)]) for s in basis.sites}
    for share in (off, latents_off):
        assert float((logits(nodes, nodes.edits(share)) - nodes.result.logits).abs().max()) > 1e-3


def test_with_all_nodes_off_every_site_has_its_baseline(model):
    basis, item = relu_basis(model), pair()
    nodes = Nodes.of(model, basis, item)
    off = {s: torch.zeros(basis.d_dict + 1) for s in basis.sites}
    found = nodes.run(nodes.edits(off), capture=basis.sites)
    other = model.forward(item.corrupt, capture=basis.sites)
    real = item.clean.mask
    for site in basis.sites:
        assert torch.allclose(found[site][real], other[site][real], atol=2e-5), site
    assert torch.allclose(found.logits[real], other.logits[real], atol=2e-5)


def test_without_error_the_model_sees_what_the_dictionary_explains(model):
    basis, item = relu_basis(model, "resid.1"), pair()
    nodes = Nodes.of(model, basis, item, error="zero")
    share = {s: torch.cat([torch.ones(basis.d_dict), torch.zeros(1)]) for s in basis.sites}
    expected = model.forward(item.clean, edits=basis.splice(error="none")).logits
    assert torch.allclose(logits(nodes, nodes.edits(share))[item.clean.mask], expected[item.clean.mask], atol=2e-5)


def test_the_first_special_token_and_padding_are_never_touched(model):
    """V2: bit for bit, whatever the mask; `protect` keeps more; without a special token nothing is kept."""
    basis = relu_basis(model)
    for special, protect, kept in ((True, 0, 1), (False, 0, 0), (False, 2, 2)):
        item = pair(special=special)
        nodes = Nodes.of(model, basis, item, "zero", protect=protect)
        off = {s: torch.zeros(basis.d_dict + 1) for s in basis.sites}
        found = nodes.run(nodes.edits(off), capture=basis.sites)
        for site in basis.sites:
            same = (found[site] == nodes.result[site]).all(-1)
            assert same[:, :kept].all()
            assert not same[:, kept:6].any()
            state = nodes.state(site)
            for now, base in ((state.codes, state.base_codes), (state.error, state.base_error)):
                assert not (now - base)[:, :kept].any()
                assert not (now - base)[:, 6:].any()


def test_replicas_take_masks_of_their_own(model):
    basis, item = relu_basis(model, "resid.*"), pair()
    nodes = Nodes.of(model, basis, item)
    shares = [{s: (torch.rand(basis.d_dict + 1, generator=torch.Generator().manual_seed(i)) < 0.5).float() for s in basis.sites}
              for i in range(3)]
    together = {s: torch.stack([share[s] for share in shares])[:, None, None] for s in basis.sites}
    found = nodes.measure(margin(), nodes.run(nodes.edits(together), n=3))
    for i, share in enumerate(shares):
        alone = nodes.measure(margin(), nodes.run(nodes.edits(share)))
        assert torch.allclose(found[i], alone[0], atol=1e-5)


def test_masks_are_differentiable(model):
    basis, item = relu_basis(model, "resid.*"), pair()
    nodes = Nodes.of(model, basis, item)
    share = {s: torch.full((basis.d_dict + 1,), 0.5, requires_grad=True) for s in basis.sites}

    def value() -> torch.Tensor:
        return nodes.measure(margin(), nodes.run(nodes.edits(share), grad=True)).sum()

    site = basis.sites[0]
    value().backward()
    gradient = share[site].grad
    node = int(gradient.abs().argmax())
    with torch.no_grad():
        share[site][node] += 1e-2
        up = value()
        share[site][node] -= 2e-2
        slope = (up - value()) / 2e-2
    assert float(slope) == pytest.approx(float(gradient[node]), rel=0.05)


@pytest.mark.parametrize("name", ["embed", "attn_out.1", "mlp_out.0", "resid.1", "final"])
def test_resuming_equals_replacing(model, name):
    basis, item = relu_basis(model), pair()
    nodes, site = Nodes.of(model, basis, item, metric=margin()), Site.parse(name)
    assert nodes.logits == "last"
    x = torch.cat([nodes.result[site] * f for f in (1.0, 0.7, 0.2)])
    found = nodes.resume(site, x)
    assert found.logits.shape[:2] == (9, 1)
    expected = model.forward(repeated(item.clean, 3), edits=[Replace(site, x)], logits="last").logits
    assert torch.allclose(found.logits, expected, atol=1e-5)
    assert torch.allclose(nodes.measure(margin(), found)[0], nodes.measure(margin())[0], atol=1e-5)
    state = nodes.state(site)
    assert torch.allclose(nodes.value(site, *state.at(torch.ones(1))), state.x, atol=1e-5)
    base = nodes.value(site, state.base_codes, state.base_error)
    assert torch.allclose(nodes.value(site, *state.at(torch.zeros(1))), base, atol=1e-6)


def test_streams_to_start_from(model):
    found = {s: str(stream_before(model.info, Site.parse(s))) for s in ("embed", "attn_out.0", "mlp_out.2", "resid.1", "final")}
    assert found == {"embed": "embed", "attn_out.0": "embed", "mlp_out.2": "resid.1", "resid.1": "resid.1", "final": "resid.2"}


def test_pull_agrees_with_autograd_for_any_decoder(model):
    basis = relu_basis(model, "resid.1")

    class Curved(ToyDictionary):
        def decode(self, z):
            return super().decode(z).tanh()

        def directions(self):
            return None

    d = basis.dictionary
    curved = basis.with_dictionary(Curved(d.encoder.data, d.decoder.data, d.bias.data, rectify=True))
    z, g = torch.randn(2, 3, basis.d_dict), torch.randn(2, 3, basis.d_in)
    for each in (basis, curved):
        leaf = z.clone().requires_grad_()
        each.decode(each.sites[0], leaf).backward(g)
        assert torch.allclose(pull(each, each.sites[0], g, z), leaf.grad, atol=1e-5)


def test_a_metric_that_reads_every_position_gets_all_logits(model):
    basis, item = relu_basis(model, "resid.1"), pair()
    assert Nodes.of(model, basis, item, metric=reprbasis.create("metric", "ce")).logits == "all"
    assert Nodes.of(model, basis, item, metric=reprbasis.create("metric", "logit-diff")).logits == "last"


def test_sites_that_the_model_lacks_are_named(model):
    basis = relu_basis(model, "resid.1")
    stranger = Basis([Site("vision.resid", 0)], basis.normaliser, basis.dictionary, basis.learner)
    with pytest.raises(SiteError, match="vision"):
        Nodes.of(model, stranger, pair())


def test_contrast_is_needed_for_a_corrupted_baseline():
    toy = toy_model()
    item = replace(contrast_batches(toy)[0], corrupt=None)
    with pytest.raises(DataError, match="corrupted"):
        Nodes.of(toy, toy_basis(toy), item)
    assert Nodes.of(toy, toy_basis(toy), item, "zero").n == 4


def test_a_basis_at_some_of_its_sites(model):
    basis = relu_basis(model)
    part = basis.at("resid.0::2")
    assert [str(s) for s in part.sites] == ["resid.0", "resid.2"]
    x = torch.randn(4, basis.d_in)
    for site in part.sites:
        assert torch.equal(part.encode(site, x), basis.encode(site, x))
        assert torch.equal(part.directions(site), basis.directions(site))
