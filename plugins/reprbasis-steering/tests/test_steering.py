"""The parts of steering on models whose behaviour is known."""

from dataclasses import replace

import pytest
import torch
from reprbasis_steering.ranking import rank
from reprbasis_steering.scores import cliffs_delta, load_prompts, passes, repetition
from reprbasis_steering.steer import Steer, of_latent, scale
from reprbasis_steering.sweep import Bench, Limits, Outcome, sweep

import reprbasis as rb
from reprbasis.errors import DataError
from reprbasis.interfaces.model import Sampling
from reprbasis.interfaces.tokens import Example, Message, TokenBatch
from reprbasis.testing.activations import activations_of
from reprbasis.testing.toys import toy_activations, toy_basis, toy_model

SITE = rb.Site("resid", 0)


def dialogue(model):
    return model.tokenize([Example(messages=(Message("user", " w1 w2 w3"),), add_prompt=True)])


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "special"])
def test_the_residual_changes_by_the_vector_where_it_is_told(positions):
    """Case 19 of FAST's recipe: alpha d_k at the chosen positions, 0 elsewhere, nothing left behind."""
    model = toy_model()
    basis = toy_basis(model)
    [written] = model.generate(dialogue(model), sampling=Sampling(3))
    batch = TokenBatch.pad([written], length=len(written) + 2)
    vector = of_latent(basis, SITE, 3, 25.0)
    assert torch.equal(vector, 25.0 * basis.directions(SITE)[3])
    generated, special = batch.flag("generated"), batch.flag("special")
    where = batch.mask & {"all": batch.mask, "prompt": ~generated, "generated": generated, "special": special}[positions]
    assert where.any()
    plain = model.forward(batch, capture=[SITE])
    pushed = model.forward(batch, capture=[SITE], edits=[Steer(SITE, vector, positions)])
    change = pushed[SITE] - plain[SITE]
    assert torch.allclose(change[where], vector.expand_as(change[where]), atol=1e-5)
    assert not change[~where].any()
    assert torch.equal(model.forward(batch).logits, plain.logits)


def test_strength_zero_changes_no_bit():
    model = toy_model()
    none = Steer(SITE, torch.zeros(model.info.d_model))
    plain, zero = (model.generate(dialogue(model), edits=e, sampling=Sampling(8))[0].ids for e in ([], [none]))
    assert torch.equal(plain, zero)


def test_the_ranking_is_the_mean_of_maxima_at_tokens_in_template_position(tmp_path):
    """Three dialogues of four tokens; token 5 is special at places 1 and 2, and an ordinary word elsewhere."""
    model = toy_model()
    basis = toy_basis(model, [SITE], identity=True)
    x = torch.zeros(12, model.info.d_model)
    x[:, 0] = torch.tensor([90.0, 1, 4, 70, 90, 3, 2, 70, 90, 5, 0, 70])
    acts = activations_of({SITE: x}, tmp_path, shard=5)
    ids = torch.tensor([5, 5, 5, 5, 5, 5, 5, 9, 5, 6, 6, 5])
    special = torch.tensor([True, True, True, False] * 3)
    table = replace(acts.table, ids=ids, positions=torch.arange(12) % 4, sequences=torch.arange(12) // 4,
                    flags={"special": special})
    acts = replace(acts, table=table)
    found = rank(basis, acts, SITE)
    assert {i: float(z[0]) for i, z in found.scores.items()} == {5: (4 + 3) / 2, 6: 5.0}
    assert found.dialogues == {5: 2, 6: 1}
    assert found.top(1) == [0]
    assert float(found.overall[0]) == pytest.approx((3.5 + 5) / 2)
    assert float(rank(basis, acts, SITE, first_position=True).scores[5][0]) == 90
    assert set(rank(basis, acts, SITE, dialogues=2).scores) == {5}
    with pytest.raises(DataError, match="no special token"):
        rank(basis, replace(acts, table=replace(table, flags={})), SITE)


def test_strengths_are_shares_of_the_norm():
    model = toy_model()
    acts = toy_activations(model)
    x = torch.cat([acts.read(SITE, shard) for shard in range(len(acts.shards))])
    kept = (acts.table.positions > 0) & ~acts.table.repeats
    assert scale(acts, SITE) == pytest.approx(float(x[kept].square().sum(1).mean().sqrt()), rel=1e-4)


@pytest.mark.parametrize(("check", "good", "bad"), [
    ({"any": ["5", "five"]}, "It is Five.", "It is fifteen, or 15."),
    ({"all": ["red", "blue"]}, "Blue and red", "Blue and green"),
    ({"none": ["cat"]}, "A category of dogs", "A cat."),
    ({"starts": "yes"}, ' "Yes, it is.', "Oh yes"),
    ({"words_at_most": 3}, "one two three", "one two three four"),
    ({"words_at_most": 3}, "one", "  "),
    ({"lines_at_least": 2}, "a\n\nb", "a b\n\n"),
    ({"matches": "^[A-Z]+$"}, "LOUD", "Loud"),
    ({"any": ["sea"], "words_at_most": 2}, "the sea", "over the wide sea"),
])
def test_checks(check, good, bad):
    assert passes(good, check)
    assert not passes(bad, check)


def test_built_in_prompts_are_prompts_and_others_are_refused(tmp_path):
    assert len(load_prompts()) == 24
    assert len(load_prompts(most=6)) == 6
    assert not any(passes("", check) and "none" not in check for _, check in load_prompts())
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a", "check": {"any": ["b"]}}\n{"prompt": "a", "check": {"says": "b"}}\n')
    with pytest.raises(DataError, match=r"prompts.jsonl:2"):
        load_prompts(path)


def test_repetition_by_hand():
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([1, 2, 1, 2, 1, 2]) == pytest.approx(0.5)  # 121 212 121 212
    assert repetition([7] * 12) == pytest.approx(0.9)
    assert repetition([1, 2]) == 0


def test_cliffs_delta_by_hand():
    assert cliffs_delta(torch.tensor([3.0, 4]), torch.tensor([1.0, 2])) == 1
    assert cliffs_delta(torch.tensor([1.0, 2]), torch.tensor([1.0, 2])) == 0
    assert cliffs_delta(torch.tensor([1.0, 1, 1, 3]), torch.tensor([2.0])) == -0.5


class Linear(Bench):
    """A bench whose loss is the square of the strength, and whose other scores never change."""

    def __init__(self, n):
        self.prompts, self.tried = [("", {})] * n, []
        self.plain = self.outcome(0.0)

    def outcome(self, alpha):
        n = len(self.prompts)
        return Outcome(("",) * n, torch.full((n,), alpha**2), torch.zeros(n), torch.zeros(n), torch.zeros(n))

    def run(self, edits, *, kl=False):
        alpha = float(edits[0].vector[0])
        self.tried.append(alpha)
        return self.outcome(alpha)


@pytest.mark.parametrize(("alphas", "found", "bounded"), [((0.5, 1.0, 2.0), 1.25, True), ((2.0, 4.0), 1.25, True),
                                                          ((0.5, 1.0), 1.0, False)])
def test_the_search_finds_the_largest_strength(alphas, found, bounded):
    """Quality is kept up to a strength of 1.25; ten bisections come within a thousandth of it."""
    bench = Linear(4)
    one = sweep(bench, SITE, torch.ones(1), alphas, Limits(1.25**2, 0, 0), rounds=10)
    assert one.largest == pytest.approx(found, abs=3e-3)
    assert one.largest <= found
    assert one.bounded == bounded
    assert one.confirmed
    assert set(alphas) <= set(one.outcomes)
    assert list(one.outcomes) == sorted(one.outcomes)


def test_the_search_can_end_at_nothing():
    one = sweep(Linear(4), SITE, torch.ones(1), (1.0,), Limits(-0.1, 0, 0), rounds=3)
    assert one.largest == 0
    assert not one.confirmed  # no strength is better than none, and these limits ask for that


def test_answers_of_the_plain_model_are_its_likeliest():
    """Greedy answers of one token: none is likelier than the unsteered one, so steering can only raise the loss."""
    model = toy_model()
    bench = Bench(model, [(" w1 w2", {"any": ["w3"]}), (" w4", {"any": ["w5"]})], max_new=1)
    pushed = bench.run([Steer(SITE, 30 * torch.ones(model.info.d_model))], kl=True)
    assert bool((pushed.ce >= bench.plain.ce - 1e-6).all())
    assert bool((pushed.kl > 0).all())
    same = bench.run([], kl=True)
    assert torch.equal(same.ce, bench.plain.ce)
    assert float(same.kl.abs().max()) < 1e-6
