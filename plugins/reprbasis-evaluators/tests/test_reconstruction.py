"""The numbers of `reconstruction` where they are known beforehand."""

import pytest
import torch
from reprbasis_evaluators.heldout import kinds_of

import reprbasis as rb
from reprbasis.interfaces.evaluator import EvaluationInputs
from reprbasis.interfaces.tokens import TokenBatch, TokenSequence
from reprbasis.kits.tokenwise import cross_entropy
from reprbasis.runtime.basis import Basis, Normaliser
from reprbasis.testing.toys import ToyDictionary, toy_activations, toy_basis, toy_model, toy_registry


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    model = toy_model()
    return model, toy_activations(model, tmp_path_factory.mktemp("activations"))


def made_of(activations, encoder, decoder, *, rectify=False):
    """A basis with these weights and an affine normaliser at every site."""
    normaliser = Normaliser.fit("affine", activations.sites, activations.stats)
    learner = toy_registry().create("learner", "toy-dictionary", width=len(encoder), rectify=rectify)
    dictionary = ToyDictionary(encoder, decoder, torch.zeros(encoder.shape[1]), rectify=rectify)
    return Basis(activations.sites, normaliser, dictionary, learner)


def evaluate(world, basis, **options):
    model, activations = world
    evaluator = rb.create("evaluator", "reconstruction", **{"tokens": 90, "resamples": 200, "untrained": False, **options})
    return evaluator.evaluate(EvaluationInputs(model, basis, activations))


def eye(d):
    return torch.eye(d)


def test_the_identity_loses_nothing(world):
    model, activations = world
    d = model.info.d_model
    split = torch.cat([eye(d), -eye(d)])  # relu(x) and relu(-x): exact, and half of the latents fire on every token
    found = evaluate(world, made_of(activations, split, split.clone(), rectify=True))
    for site in map(str, model.info.sites):
        def value(name, site=site):
            return found.get(name, condition="global", site=site).value

        assert value("ev") == pytest.approx(1, abs=1e-6)
        assert value("fvu") == pytest.approx(0, abs=1e-6)
        assert value("fvu_first") == pytest.approx(0, abs=1e-6)
        assert value("ce_increase") == pytest.approx(0, abs=1e-5)
        assert value("kl") == pytest.approx(0, abs=1e-6)
        assert value("l0") == d
        assert value("ce_recovered") == pytest.approx(1, abs=1e-3)
    assert found.get("kl_recovered", condition="global", site="all resid.*").value == pytest.approx(1, abs=1e-4)
    assert any("DENSITY ALARM" in note for note in found.notes)  # half of the latents is not sparse


def test_the_mean_dictionary_is_mean_ablation(world):
    model, activations = world
    d = model.info.d_model
    found = evaluate(world, made_of(activations, torch.zeros(4, d), torch.zeros(4, d)))
    for site in map(str, model.info.sites):
        assert found.get("ev", condition="global", site=site).value == pytest.approx(0, abs=1e-6)
        assert found.get("l0", condition="global", site=site).value == 0
        assert found.get("alive", condition="global", site=site).value == 0
        for name in ("ce_recovered", "kl_recovered"):
            assert found.get(name, condition="global", site=site).value == pytest.approx(0, abs=1e-4)
        for name in ("ce_increase", "kl"):
            of = [found.get(name, condition=c, site=site).value for c in ("global", "mean")]
            assert of[0] == pytest.approx(of[1], rel=1e-4, abs=1e-6)
    of = [found.get("kl", condition=c, site="all resid.*").value for c in ("global", "mean")]
    assert of[0] == pytest.approx(of[1], rel=1e-4)


def test_explained_variance_by_hand(world):
    """A dictionary that keeps three coordinates explains their share of the variance; position 0 stands apart."""
    model, activations = world
    keep = eye(model.info.d_model)[:3]
    found = evaluate(world, made_of(activations, keep, keep.clone()))
    sequences = activations.sequences("held-out", 90)
    for site in model.info.sites:
        x = torch.cat([model.forward(TokenBatch.pad([s]), capture=[site])[site][0] for s in sequences])
        off = (x - activations.stats.mean[site]).double().square()
        first = torch.cat([torch.arange(len(s)) == 0 for s in sequences])
        for name, rows in (("fvu", ~first & torch.cat(activations.unseen(sequences))), ("fvu_first", first)):
            m = found.get(name, condition="global", site=str(site))
            assert m.value == pytest.approx(float(off[rows, 3:].sum() / off[rows].sum()), rel=1e-4), site
            assert m.n == int(rows.sum())


def test_behaviour_by_hand(world):
    """One text at a time, without packing: an edit of one site, and the loss of what follows."""
    model, activations = world
    keep = eye(model.info.d_model)[:3]
    basis = made_of(activations, keep, keep.clone())
    found = evaluate(world, basis)
    for site in model.info.sites:
        more, count = 0.0, 0
        for sequence in activations.sequences("held-out", 90):
            batch, fresh = TokenBatch.pad([sequence]), activations.unseen([sequence])[0][:-1]
            runs = [model.forward(batch, edits=e).logits for e in ((), basis.splice([site], error="none"))]
            before, after = (cross_entropy(x, batch)[fresh] for x in runs)
            more, count = more + float((after - before).sum()), count + len(before)
        m = found.get("ce_increase", condition="global", site=str(site))
        assert m.value == pytest.approx(more / count, rel=1e-3, abs=1e-5), site
        assert m.n == count


def test_l0_and_its_interval_by_hand(world):
    """With two texts a bootstrap draws one of them twice often enough: the interval ends at their two means."""
    model, activations = world
    sequences = activations.sequences("held-out")[:2]
    latents = eye(model.info.d_model)[:5]
    basis = made_of(activations, latents, latents.clone(), rectify=True)
    found = evaluate(world, basis, tokens=sum(map(len, sequences)))
    for site in model.info.sites:
        codes = [basis.encode(site, model.forward(TokenBatch.pad([s]), capture=[site])[site][0]) for s in sequences]
        fresh = [new & (torch.arange(len(new)) > 0) for new in activations.unseen(sequences)]
        counts = [(z != 0).float().sum(1)[new] for z, new in zip(codes, fresh, strict=True)]
        m = found.get("l0", condition="global", site=str(site))
        assert m.value == pytest.approx(float(torch.cat(counts).mean()))
        assert [m.low, m.high] == pytest.approx(sorted(float(c.mean()) for c in counts))
        assert m.n == sum(map(len, counts))
        alive = found.get("alive", condition="global", site=str(site)).value
        assert alive == int((torch.cat(codes) != 0).any(0).sum())


def test_random_directions_do_worse_than_the_right_ones(world):
    model, activations = world
    split = torch.cat([eye(model.info.d_model), -eye(model.info.d_model)])
    found = evaluate(world, made_of(activations, split, split.clone(), rectify=True))
    assert all(found.get("ev", condition="random", site=str(s)).value < 0.999 for s in model.info.sites)


def test_leads_are_the_differences_between_the_conditions(world):
    model, activations = world
    keep = eye(model.info.d_model)[:3]
    found = evaluate(world, made_of(activations, keep, keep.clone()))
    for site in map(str, model.info.sites):
        value = lambda name, condition, at=site: found.get(name, condition=condition, site=at).value  # noqa: E731
        assert value("lead_ev", "random") == pytest.approx(value("ev", "global") - value("ev", "random"), abs=1e-5)
        for name, loss in (("lead_ce", "ce_increase"), ("lead_kl", "kl")):
            assert value(name, "mean") == pytest.approx(value(loss, "mean") - value(loss, "global"), rel=1e-3, abs=1e-6)
    sites = len(model.info.sites)
    better = sum(m.value > 0 for m in found.measurements if m.name == "lead_kl" and m.condition == "mean")
    assert any(f"KL, `global` against `mean`: better at {better} of {sites} sites" in note for note in found.notes)


def test_kinds_of_token_are_measured_apart_and_add_up():
    """On images and questions: the whole is the mean of image tokens and text."""
    model = rb.create("model", "lvlm")
    scenes = rb.create("corpus", "scenes", count=40)
    activations = rb.harvest(model, scenes, sites="resid.1", tokens=1500, held_out=0.5)
    found = evaluate((model, activations), toy_basis(model, "resid.1"), tokens=400, together="resid.1")
    for name, exact in (("kl", True), ("ce_increase", True), ("kl_recovered", False)):
        whole, image, text = (found.get(f"{name}{s}", condition="global", site="resid.1") for s in ("", "_image", "_text"))
        assert whole.n == image.n + text.n
        if exact:
            assert whole.value * whole.n == pytest.approx(image.value * image.n + text.value * text.n, rel=1e-4)
    for condition in ("global", "random"):
        whole, image, text = (found.get(f"ev{s}", condition=condition, site="resid.1") for s in ("", "_image", "_text"))
        assert whole.n == image.n + text.n
        assert min(image.value, text.value) < whole.value < max(image.value, text.value)
    assert found.get("l0_image", condition="global", site="resid.1").n == image.n
    assert not [m for m in found.measurements if m.name.endswith(("_thinking", "_answer"))], "nothing was thought"


def test_thoughts_and_answers_are_kinds_of_token():
    ids = torch.arange(6)
    thinking, assistant = (torch.tensor(x).bool() for x in ([0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]))
    one = TokenSequence(ids, {"thinking": thinking, "assistant": assistant})
    batch, plain = TokenBatch.pad([one]), TokenBatch.pad([TokenSequence(ids, {"assistant": assistant})])
    kinds = kinds_of(lambda name: batch.flag(name)[batch.mask])
    assert {k: v.nonzero()[:, 0].tolist() for k, v in kinds.items()} == {"thinking": [2, 3], "answer": [4]}
    assert kinds_of(lambda name: plain.flag(name)[plain.mask]) == {}
