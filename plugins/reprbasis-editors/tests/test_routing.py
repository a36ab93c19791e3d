"""Editors that look inside one component, and editors of activations: what they promise."""

from contextlib import contextmanager

import pytest
import torch
from reprbasis_editors.config import ComponentSGDConfig
from reprbasis_editors.local import ComponentSGD
from reprbasis_editors.localise import heads_that_matter
from reprbasis_editors.routing import towards_sink
from reprbasis_editors.scaled import folds, together
from reprbasis_editors.search import Judge, Limit, batched, margins, merged, search, some

import reprbasis as rb
from reprbasis.errors import DataError, ShapeError
from reprbasis.interfaces.editor import Codebook, EditPlan, EditRequest
from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.model import Sampling, Start
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import Example, TokenBatch, TokenSequence
from reprbasis.kits.components import heads_in_context, stream_before
from reprbasis.kits.weights import delta_of
from reprbasis.sites import Site
from reprbasis.testing.models import tiny_checkpoint, tiny_config
from reprbasis.testing.toys import toy_basis


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def model(request, tmp_path_factory):
    """Tiny models with tied unembedding; Qwen3 norms queries and keys."""
    config = tiny_config(request.param, tie_word_embeddings=True)
    folder = tiny_checkpoint(tmp_path_factory.mktemp("model"), config)
    return rb.create("model", "llama" if request.param == "llama" else "qwen", checkpoint=str(folder))


def tokens(seed, rows=4, length=8):
    g = torch.Generator().manual_seed(seed)
    return TokenBatch.pad([TokenSequence(torch.randint(5, 300, (length,), generator=g), sequence=i) for i in range(rows)])


def request_of(model, lengths=(8,)):
    items = []
    for seed, length in enumerate(lengths):
        clean, corrupt = tokens(seed, length=length), tokens(seed + 50, length=length)
        way = model.forward(clean, logits="last").logits[:, 0] - model.forward(corrupt, logits="last").logits[:, 0]
        items.append(ContrastBatch(clean, corrupt, Targets(way.argmax(-1)[:, None], way.argmin(-1)[:, None])))
    return EditRequest(items, [Example(text="The keys to the cabinet."), Example(text="Numbers: 0 1 2 3 4 5.")])


def log_odds(model, layer, batch):
    """[H, B] of attending the first token."""
    x = model.forward(batch, capture=[stream_before(layer)], logits="none")[stream_before(layer)]
    return heads_in_context(model.attention(layer), x, batch, batch.last()).attention[..., 0].double().logit()


def test_e4_the_query_moves_as_the_slope_says_and_no_other_head_does(model):
    """Strength 1e-2 raises the log-odds of attending the first token by 1e-2, through rotation and norms of queries."""
    batch, layer, head = tokens(1), 1, 2
    weights, site = model.attention(layer), stream_before(layer)
    x = model.forward(batch, capture=[site], logits="none")[site]
    read, wanted = towards_sink(weights, head, x, batch, batch.last())
    change = torch.linalg.lstsq(read.double(), wanted.double()).solution.T
    before = log_odds(model, layer, batch)
    plan = EditPlan(dict([delta_of(model, weights.W_Q[head], 1e-2 * change)]))
    with plan.applied(model):
        moved = log_odds(model, layer, batch) - before
    assert torch.allclose(moved[head], torch.full_like(moved[head], 1e-2), rtol=0.05)
    assert not bool(moved[[0, 1, 3]].any())


def test_e4_the_gradient_of_the_local_loss_is_the_one_on_paper():
    """d/dD of max(0, |v| - <v/|v|, D k>)^2 / 2 + w tr(D C D^T) is -short v/|v| k^T + 2 w D C; orthogonal to all else."""
    g = torch.Generator().manual_seed(0)
    v, k, c = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((5, 1), (7, 1), (7, 30)))
    c, change = c @ c.T / 30, 0.1 * torch.randn(5, 7, generator=g, dtype=torch.float64).requires_grad_()
    unit = v / v.norm()
    short = (v.norm() - (unit * (change @ k)).sum()).clamp_min(0)
    [slope] = torch.autograd.grad(short**2 / 2 + 3.0 * ((change @ c) * change).sum(), change)
    with torch.no_grad():
        assert float((slope - (-short * unit @ k.T + 6.0 * change @ c)).abs().max()) <= 1e-8


def test_e4_the_slope_of_a_preference_does_not_touch_its_length():
    g = torch.Generator().manual_seed(0)
    z, t = torch.randn(6, generator=g, dtype=torch.float64), torch.randn(9, generator=g, dtype=torch.float64)
    w = torch.randn(9, 6, generator=g, dtype=torch.float64).requires_grad_()
    y = w @ z
    p = (y @ t) / (y.norm() * t.norm())
    [slope] = torch.autograd.grad(p, w)
    with torch.no_grad():
        paper = (t / t.norm() - p * y / y.norm()) / y.norm()
        assert float((slope - torch.outer(paper, z)).abs().max()) <= 1e-8
        assert abs(float(paper @ y)) <= 1e-12


def test_gradient_steps_reach_what_is_wanted_and_spare_what_is_kept():
    g = torch.Generator().manual_seed(0)
    wanted, keys, kept = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((6, 3), (20, 3), (20, 8)))
    unit = wanted / wanted.norm(dim=0)
    for rank in (None, 4):
        change = ComponentSGD(ComponentSGDConfig(steps=400, rank=rank, keep_weight=20.0)).solve(wanted, keys, kept @ kept.T / 8)
        reached = (unit * (change @ keys)).sum(0) / wanted.norm(dim=0)
        assert float(reached.min()) > 0.8
        assert float((change @ kept).norm(dim=0).mean() / (change @ keys).norm(dim=0).mean()) < 0.4


@contextmanager
def nothing_beyond(model, most):
    """No forward of the model runs with gradients, and nothing larger than `most` values is kept for a backward pass."""
    forward = model.forward

    def watched(*args, **options):
        assert not torch.is_grad_enabled(), "the model runs with gradients"
        assert not options.get("grad")
        return forward(*args, **options)

    def keep(tensor):
        assert tensor.numel() <= most, f"{tuple(tensor.shape)} was kept for a backward pass"
        return tensor

    model.forward = watched
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            yield
    finally:
        del model.forward


@pytest.mark.parametrize(("name", "options"), [
    ("routing", {"top": 2, "layers": 2}), ("component-sgd", {"components": ["mlp.1"], "steps": 5}),
    ("component-sgd", {"components": ["head.1.2"], "steps": 5, "rank": 2})])
def test_e5_the_graph_is_that_of_one_component(model, name, options):
    request = request_of(model)
    read = max(model.info.d_model, model.mlp(0).W_out.shape[1], model.attention(0).W_O.shape[2])
    with nothing_beyond(model, read**2):  # the moment of what one component reads, or one weight
        plan = rb.create("editor", name, budget=50.0, goal=None, **options).edit(model, toy_basis(model), request)
    assert plan.details["locality"] == "component"
    assert not any("embed" in n or "lm_head" in n for n in plan.deltas)
    assert all(p.grad is None and not p.requires_grad for p in model.parameters().values())


@pytest.mark.parametrize(("name", "options"), [("steer", {}), ("codebook", {}), ("feature-rows", {"latents": [3]})])
def test_e5_closed_editors_build_no_graph(model, name, options):
    request = request_of(model)
    with nothing_beyond(model, 0):
        plan = rb.create("editor", name, budget=50.0, goal=None, **options).edit(model, toy_basis(model, "resid.*"), request)
    assert plan.details["locality"] == "closed"


def test_heads_are_found_by_exchange(model):
    """The head with the largest effect is that whose exchange really moves the logits most."""
    request = request_of(model)
    found = heads_that_matter(Judge(model, request.change), layers=3)
    assert len(found) == 3 * model.info.n_heads
    assert list(found.values()) == sorted(found.values(), reverse=True)
    again = heads_that_matter(Judge(model, [ContrastBatch(b.clean, b.clean, b.targets) for b in request.change]), layers=1)
    assert max(map(abs, again.values())) < 1e-4


def test_few_large_batches_say_the_same(model):
    change = request_of(model, (8, 11, 8)).change
    [(one, origins)] = merged(change)
    assert one.clean.ids.shape == (12, 11)
    assert origins == [0] * 4 + [1] * 4 + [2] * 4
    apart = [margin for item in change for margin in [Judge(model, [item]).margin()] * len(item.clean.ids)]
    assert abs(Judge(model, [one]).margin() - sum(apart) / 12) < 1e-4


def test_layouts_stay_together_in_folds():
    items = [ContrastBatch(tokens(i, length=n), None, Targets(None)) for i, n in enumerate((8, 9, 8, 9, 10))]
    turns = folds(items, 2)
    assert sorted(i for _, out in turns for i in out) == list(range(5))
    for seen, out in turns:
        assert not {items[i].clean.ids.shape[1] for i in seen} & {items[i].clean.ids.shape[1] for i in out}
    assert folds(items[:1], 2) == []


def test_the_search_comes_back_from_an_overshoot():
    editor = rb.create("editor", "ridge", strength=8.0, tries=12)
    found = search(lambda s: 5.0 - s, lambda s: 0.0, 5.0, editor.config)
    assert 5.0 <= found.strength <= 5.3
    assert found.about["reached"]


def test_a_cheap_stand_in_is_set_right_by_whole_measurements():
    """The stand-in sees half of what the edit does; few whole measurements, and the strength is right all the same."""
    asked = []

    def whole(s):
        asked.append(s)
        return 5.0 - s

    config = rb.create("editor", "ridge", strength=8.0, tries=12).config
    found = search(whole, lambda s: 0.0, 5.0, config, lambda s: 5.0 - 0.5 * s)
    assert abs(found.about["margin"]) <= 0.25
    assert len(asked) <= 3


def test_some_texts_are_every_so_many_of_all():
    texts = [tokens(0, rows=4), tokens(1, rows=1), tokens(2, rows=6)]  # 8 tokens a row, 88 together
    chosen, others = some(texts, 30)
    assert [len(b.ids) for b in chosen] == [4]
    assert [len(b.ids) for b in others] == [7]
    both = torch.cat([*(b.ids for b in chosen), *(b.ids for b in others)])
    assert sorted(both.tolist()) == sorted(torch.cat([b.ids for b in texts]).tolist())
    assert sum(len(b.ids) for b in some(texts, 1000)[0]) == 11


def test_texts_go_by_length_into_batches_of_little_padding():
    sequences = [TokenSequence(torch.arange(n), sequence=n) for n in (3, 60, 61, 62, 4, 59, 58, 57, 56, 5)]
    found = batched(sequences)
    assert [tuple(b.ids.shape) for b in found] == [(6, 62), (4, 56)]
    assert sorted(int(s) for b in found for s in b.sequences[:, 0]) == sorted(map(len, sequences))
    assert [tuple(b.ids.shape) for b in batched(sequences[1:4] * 2 + sequences[5:6])] == [(7, 62)]
    assert batched([]) == []


def test_all_other_tokens_can_be_rivals():
    logits, targets = torch.tensor([[3.0, 1.0, 2.5, 0.0]]), Targets(torch.tensor([[0]]), torch.tensor([[1, -1]]))
    assert float(margins(logits, targets)) == 2.0
    assert float(margins(logits, Targets(torch.tensor([[3]]), torch.tensor([[1, -1]])), "all")) == 2.0
    assert float(margins(logits, Targets(torch.tensor([[1]]), torch.tensor([[0, 2]])), "all")) == -2.0


def test_over_the_budget_the_search_goes_back():
    """KL grows with the square: about the largest strength within the budget, and the goal is not reached."""
    config = rb.create("editor", "ridge", strength=8.0, tries=12, budget=0.01).config
    found = search(lambda s: 5.0 - s, lambda s: 0.01 * s**2, 5.0, config)
    assert 0.8 <= found.strength <= 1.0
    assert not found.about["reached"]
    with pytest.raises(DataError, match="weakest edit tried"):
        search(lambda s: 5.0 - s, lambda s: 1.0, 5.0, config)


def test_the_loss_on_what_is_said_twice_has_a_budget_of_its_own():
    config = rb.create("editor", "routing", strength=8.0, tries=12, induction=0.2).config
    limit = Limit(lambda s: 0.02 * s**2, 0.2, "induction", "")
    found = search(lambda s: 5.0 - s, lambda s: 0.0, 5.0, config, None, {"rise": limit})
    assert 0.15 <= found.about["rise"] <= 0.2
    assert not found.about["reached"]
    limit = Limit(lambda s: 1.0, 0.2, "induction", "costs {:g} nats")
    with pytest.raises(DataError, match="weakest edit tried costs 1 nats"):
        search(lambda s: 5.0 - s, lambda s: 0.0, 5.0, config, None, {"rise": limit})


@pytest.mark.parametrize("layer", [0, 1])
def test_the_loss_on_what_is_said_twice_is_that_of_whole_forwards(model, layer):
    half = tokens(9).ids
    doubled = TokenBatch.pad([TokenSequence(torch.cat([row, row]), sequence=i) for i, row in enumerate(half)])
    judge = Judge(model, request_of(model).change, [tokens(3, length=16)], 20, layer, doubled=doubled)
    weights = model.attention(1).W_O
    name, delta = delta_of(model, weights, 0.3 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)))

    def loss():
        log_p = model.forward(doubled).logits.log_softmax(-1)
        return float(torch.stack([-log_p[:, t - 1].gather(1, doubled.ids[:, t, None]) for t in range(9, 16)]).mean())

    before = loss()
    with EditPlan({name: delta}).applied(model):
        assert abs(judge.rise() - (loss() - before)) < 1e-4
        assert abs(judge.rise()) > 1e-2
        kl = judge.kl()
    texts = Judge(model, (), [tokens(3, length=16)], 20, layer)
    with EditPlan({name: delta}).applied(model):
        assert abs(kl - texts.kl()) < 1e-6


@pytest.mark.parametrize("layer", [0, 1])
def test_what_is_likeliest_after_others_is_watched(model, layer):
    others = [tokens(5, rows=6), tokens(6, rows=3, length=11)]
    judge = Judge(model, request_of(model).change, layer=None)
    judge.spare = others
    judge.begin(layer)
    assert judge.changed() == 0
    weights = model.attention(1).W_O
    name, delta = delta_of(model, weights, torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)))

    def tops():
        return torch.cat([model.forward(batch, logits="last").logits[:, 0].argmax(1) for batch in others])

    before = tops()
    with EditPlan({name: delta}).applied(model):
        share = float((tops() != before).double().mean())
        assert judge.changed() == pytest.approx(share)
    assert share > 0.3


def test_streams_that_were_read_serve_the_trials(model):
    change, texts = request_of(model, (8, 11)).change, [tokens(3, length=16), tokens(4, length=12)]
    once, again = (Judge(model, change, texts, 40, layer) for layer in (None, 1))
    once.read([stream_before(1)])
    once.begin(1)
    weights = model.attention(1).W_O
    name, delta = delta_of(model, weights, 0.3 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)))
    with EditPlan({name: delta}).applied(model):
        assert abs(once.kl() - again.kl()) < 1e-6
        for quick in (True, False):
            assert abs(once.margin(quick=quick) - again.margin(quick=quick)) < 1e-5


def test_the_last_token_alone_says_the_same_of_an_edit_that_acts_there(model):
    change = request_of(model, (8, 11)).change
    layer = model.info.n_layers - 1  # nothing later reads what earlier tokens get
    judge = Judge(model, change, layer=layer, groups=[[0], [1]])
    weights = model.attention(layer).W_O
    name, delta = delta_of(model, weights, 0.1 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)))
    with EditPlan({name: delta}).applied(model):
        for group in (0, 1, None):
            assert abs(judge.margin(group, quick=True) - judge.margin(group)) < 1e-3


def test_a_role_that_is_not_in_the_prompt_is_told(model):
    request = request_of(model)
    with pytest.raises(DataError, match="no role 'subject'"):
        rb.create("editor", "ridge", components=["mlp.1"], at="subject").edit(model, toy_basis(model), request)
    with pytest.raises(DataError, match="nothing to change"):
        rb.create("editor", "ridge").edit(model, toy_basis(model), EditRequest([]))


def book(site, width=32, *, everywhere=False, seed=0):
    g = torch.Generator().manual_seed(seed)
    keys, shift = torch.randn(2, width, generator=g), torch.randn(2, width, generator=g)
    return Codebook(site, keys, torch.tensor([torch.inf if everywhere else 1.0, 1.0]), shift)


def test_a_codebook_shifts_what_is_near_and_spares_the_first_token():
    batch, entries = tokens(0, rows=1, length=4), book(Site("resid", 1))
    x = torch.stack([entries.keys[0], entries.keys[0] + 0.1, entries.keys[1], entries.keys[1] + 5])[None]
    moved = entries(x, batch) - x
    none = torch.zeros(32)
    assert torch.allclose(moved[0], torch.stack([none, entries.shift[0], entries.shift[1], none]), atol=1e-5)


def test_standing_edits_hold_everywhere_once_and_leave(model):
    batch, site = tokens(0), Site("resid", 1)
    plan = EditPlan(books=[Codebook(site, torch.zeros(1, 32), torch.tensor([torch.inf]), 3 * torch.ones(1, 32))])
    before = model.forward(batch, capture=[site])
    said = model.generate([TokenSequence(batch.ids[0])], sampling=Sampling(max_new=6))[0].ids
    with plan.applied(model):
        after = model.forward(batch, capture=[site])
        assert torch.allclose(after[site][:, 1:] - before[site][:, 1:], torch.full_like(after[site][:, 1:], 3.0), atol=1e-5)
        assert torch.equal(after[site][:, 0], before[site][:, 0])
        again = model.forward(batch, start=Start(site, after[site]))
        assert torch.allclose(again.logits, after.logits, atol=1e-5)
        assert not torch.equal(model.generate([TokenSequence(batch.ids[0])], sampling=Sampling(max_new=6))[0].ids, said)
    assert model.standing == ()
    assert torch.equal(model.forward(batch).logits, before.logits)
    with pytest.raises(ShapeError, match="of width 5"), EditPlan(books=[book(site, 5)]).applied(model):
        pass


def test_e10_revert_is_exact_also_when_applying_fails_midway(model, monkeypatch):
    names = [n for n in model.parameters() if n.endswith("weight")][3:6]
    kept = {n: p.clone() for n, p in model.parameters().items()}
    plan = EditPlan({n: torch.randn_like(kept[n]) for n in names}, books=[book(Site("resid", 1), everywhere=True)])
    done = plan.apply(model)
    assert not torch.equal(model.parameters()[names[0]], kept[names[0]])
    assert len(model.standing) == 1
    done.revert()
    done.revert()
    assert model.standing == ()
    assert all(torch.equal(p, kept[n]) for n, p in model.parameters().items())

    add, calls = torch.Tensor.add_, []

    def failing(self, *args, **options):
        calls.append(self)
        if len(calls) == 3:
            raise MemoryError("on purpose")
        return add(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "add_", failing)
    with pytest.raises(MemoryError):
        plan.apply(model)
    monkeypatch.undo()
    assert len(calls) == 3
    assert all(torch.equal(p, kept[n]) for n, p in model.parameters().items())


def test_together_adds_up():
    one, two = EditPlan({"a": torch.ones(2)}), EditPlan({"a": torch.ones(2), "b": torch.zeros(1)}, books=[book(Site("embed"))])
    both = together(one, two)
    assert torch.equal(both.deltas["a"], 2 * torch.ones(2))
    assert both.deltas.keys() == {"a", "b"}
    assert len(both.books) == 1
