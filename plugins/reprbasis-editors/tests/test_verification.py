"""Numbered cases for closed-form editors, and what else they promise."""

from dataclasses import replace

import pytest
import torch
from reprbasis_editors.config import NullSpaceConfig, RidgeConfig
from reprbasis_editors.local import NullSpace, Ridge
from reprbasis_editors.online import ConflictError, Stream
from reprbasis_editors.parts import Part, candidates, elsewhere, place, targets_of

import reprbasis as rb
from reprbasis.errors import DataError, UserError
from reprbasis.interfaces.editor import EditRequest
from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import Example, TokenBatch, TokenSequence
from reprbasis.kits.components import heads_in_context
from reprbasis.kits.weights import delta_of, parameter_of
from reprbasis.sites import Site
from reprbasis.testing.models import tiny_checkpoint, tiny_config
from reprbasis.testing.toys import PLANTED, contrast_batches, toy_basis, toy_model


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A tiny Llama whose unembedding is its input embedding, with biases on every projection."""
    changes = {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}
    folder = tiny_checkpoint(tmp_path_factory.mktemp("model"), tiny_config("llama", **changes))
    return rb.create("model", "llama", checkpoint=str(folder))


def request_of(model):
    """Prompts whose wrong answer is what the model likes least, and two texts to keep."""
    g = torch.Generator().manual_seed(3)
    tokens = TokenBatch.pad([TokenSequence(torch.randint(5, 300, (8,), generator=g), sequence=i) for i in range(4)])
    order = model.forward(tokens, logits="last").logits[:, 0].argsort(-1)
    item = ContrastBatch(tokens, None, Targets(order[:, -1:], order[:, :1]))
    return EditRequest([item], [Example(text="The keys to the cabinet."), Example(text="What is the capital of France?")])


def test_e1_one_key_without_ridge_gets_its_value_exactly():
    weight, key, value, moment = draw(6, 9), draw(9, 1, seed=1), draw(6, 1, seed=2), draw(9, 40, seed=3)
    moment = moment @ moment.T / 40
    change = Ridge(RidgeConfig(ridge=1e-15, keep_weight=1e-9)).solve(value - weight @ key, key, moment)
    assert float(((weight + change) @ key - value).norm() / value.norm()) <= 1e-6
    rome = (value - weight @ key) @ torch.linalg.solve(moment, key).T / (key.T @ torch.linalg.solve(moment, key))
    assert float((change - rome).norm() / rome.norm()) <= 1e-4


def test_a_value_matrix_writes_along_the_contrast_what_its_heads_take_from_the_token(tied):
    """`wanted . W k` is the sum over heads of attention times what the token's value gives along the target."""
    item, part = request_of(tied).change[0], Part(1, values=True)
    assert Part.parse(str(part), tied) == part
    at = torch.full((4, 1), 3)
    run = tied.forward(item.clean, capture=part.sites, logits="none")
    target = targets_of(tied, item)
    heads = heads_in_context(tied.attention(1), run[part.sites[0]], item.clean, item.clean.last())
    written = torch.einsum("hb,hbe,hde->bd", heads.attention[:, :, 3], heads.values[:, :, 3], tied.attention(1).W_O)
    output = part.keys_in(tied, run, at)[:, 0] @ part.weight(tied).T
    along = (part.wanted(tied, run, at, target) * output).sum(1)
    assert torch.allclose(along, (written * target).sum(1), atol=1e-5)
    change = torch.zeros_like(part.weight(tied))
    change[0] = 1
    assert int((part.plan(tied, change).deltas["model.layers.1.self_attn.v_proj.weight"] != 0).sum()) == change.shape[1]


def test_other_places_of_a_subject_stand_after_other_texts(tied):
    item = request_of(tied).change[0]
    item = replace(item, roles={"subject": torch.tensor([[2, 3]]).expand(4, -1)})
    texts = [TokenBatch.pad([TokenSequence(torch.arange(10, 20)), TokenSequence(torch.arange(30, 36))])]
    found = elsewhere(item, "subject", texts, 2)
    assert [int(n) for n in found.mask.sum(1)] == [6, 7]
    for i in range(2):
        assert torch.equal(found.ids[i][found.mask[i]][-2:], item.clean.ids[0, 2:4])
    assert elsewhere(item, "answer", texts, 2) is None


def test_e2_a_null_space_edit_spares_the_keys_it_knows_and_no_others():
    kept, unseen, key = draw(12, 5), draw(12, 5, seed=4), draw(12, 1, seed=1)
    wanted = draw(6, 1, seed=2)
    change = NullSpace(NullSpaceConfig(share=1e-9)).solve(wanted, key, kept @ kept.T / 5)
    assert float((change @ kept).norm()) <= 1e-10
    assert float((change @ key - wanted).norm() / wanted.norm()) < 1e-4
    assert float((change @ unseen).norm() / (wanted.norm())) > 0.01


def test_a_null_space_without_room_is_refused():
    full = draw(4, 40)
    with pytest.raises(DataError, match="raise `share`"):
        NullSpace(NullSpaceConfig(share=1e-6)).solve(draw(6, 1), draw(4, 1, seed=1), full @ full.T)


def stream_and_edits(n=6):
    weight, cost = draw(5, 8), draw(8, 30, seed=9)
    stream = Stream(weight, cost @ cost.T / 30 + 0.01 * torch.eye(8).double())
    edits = {f"e{i}": (draw(1 + i % 2, 8, seed=20 + i), draw(1 + i % 2, 5, seed=40 + i)) for i in range(n)}
    return stream, edits, torch.linalg.inv(stream.first_free)


def batch_solution(stream, edits, cost):
    keys, values = (torch.cat([e[i] for e in edits.values()]) for i in (0, 1))
    wanted = (values - keys @ stream.start.T).T
    return stream.start + torch.linalg.solve(keys.T @ keys + cost, keys.T @ wanted.T).T


def test_e3_a_stream_is_the_batch_solution_and_forgetting_leaves_no_trace():
    stream, edits, cost = stream_and_edits()
    for name, (keys, values) in edits.items():
        stream.edit(name, keys, values)
    assert float((stream.weight - batch_solution(stream, edits, cost)).abs().max()) <= 1e-9
    stream.forget("e2")
    left = {n: e for n, e in edits.items() if n != "e2"}
    assert float((stream.weight - batch_solution(stream, left, cost)).abs().max()) <= 1e-9
    for name in left:
        stream.forget(name)
    assert float(stream.change().abs().max()) <= 1e-9
    assert float((stream.free - stream.first_free).abs().max()) <= 1e-9


def test_a_stream_keeps_earlier_edits_where_naive_steps_do_not():
    """Rank-one steps with a fixed covariance ruin the first edit; recursive least squares does not."""
    weight, rows = draw(16, 32), draw(32, 200, seed=9)
    cost = 1e-4 * (rows @ rows.T / 200)
    shared = draw(1, 32, seed=5)
    edits = [(shared + 0.5 * draw(1, 32, seed=60 + i), draw(1, 16, seed=80 + i)) for i in range(5)]
    stream, naive = Stream(weight, cost, conflict=1e-9), weight.clone()
    for i, (key, value) in enumerate(edits):
        stream.edit(f"e{i}", key, value)
        step = torch.linalg.solve(cost, key.T)
        naive = naive + (value - key @ naive.T).T @ (step / (key @ step)).T
    key, value = edits[0]
    assert float((key @ stream.weight.T - value).norm() / value.norm()) < 0.02
    assert float((key @ naive.T - value).norm() / value.norm()) > 0.5


def test_conflicts_are_named_and_the_same_name_is_not_added_twice():
    stream = Stream(draw(5, 8), 1e-3 * torch.eye(8).double())
    key = draw(1, 8, seed=1)
    stream.edit("paris", key, draw(1, 5, seed=2))
    before = stream.weight.clone()
    with pytest.raises(ConflictError, match=r"edit 'paris' settled"):
        stream.edit("lyon", 1.01 * key, draw(1, 5, seed=3))
    with pytest.raises(ConflictError, match="already"):
        stream.edit("paris", draw(1, 8, seed=7), draw(1, 5, seed=3))
    assert torch.equal(stream.weight, before)
    stream.forget("paris")
    other = draw(1, 5, seed=3)
    stream.edit("lyon", key, other)
    assert float((key @ stream.weight.T - other).norm() / other.norm()) < 1e-2
    with pytest.raises(DataError, match="there is no edit 'rome'"):
        stream.forget("rome")


@pytest.mark.parametrize(("name", "options"), [("erase", {}), ("ridge", {"tries": 3, "top": 2}), ("null-space", {
    "tries": 2, "components": ["mlp.1"]}), ("online", {"tries": 3})])
def test_e5_no_graph_is_ever_built(tied, name, options):
    """Every weight asks for gradients, and whatever would be kept for a backward pass raises."""
    def refuse(tensor):
        raise AssertionError("something was saved for a backward pass")

    request = request_of(tied)
    for p in tied.parameters().values():
        p.requires_grad_(True)
    try:
        with torch.autograd.graph.saved_tensors_hooks(refuse, lambda x: x):
            plan = rb.create("editor", name, budget=50.0, **options) if name != "erase" else rb.create("editor", name)
            plan = plan.edit(tied, toy_basis(tied), request)
        assert all(p.grad is None for p in tied.parameters().values())
    finally:
        for p in tied.parameters().values():
            p.requires_grad_(False)
    assert plan.details["locality"] == "closed"
    assert not any("embed" in n or "lm_head" in n for n in plan.deltas)
    assert not any(d.requires_grad for d in plan.deltas.values())


def test_e6_erased_directions_are_gone_and_others_untouched(tied):
    basis = toy_basis(tied, "resid.*", seed=4)
    plan = rb.create("editor", "erase", latents=(3, 8)).edit(tied, basis, EditRequest([]))
    rows = basis.directions(basis.sites[0])[[3, 8, 5]].double()
    rows = rows / rows.norm(dim=-1, keepdim=True)
    other = tied.mlp(1).W_out.double().T @ rows[2]
    with plan.applied(tied):
        for layer in range(3):
            attention, mlp = tied.attention(layer), tied.mlp(layer)
            for w in (*attention.W_O, mlp.W_out, attention.b_O[:, None], mlp.b_out[:, None]):
                assert float((rows[:2] @ w.double()).norm()) <= 1e-6 * float(w.norm())
        assert float((tied.mlp(1).W_out.double().T @ rows[2] - other).norm()) <= 1e-6 * float(other.norm())
        again = rb.create("editor", "erase", latents=(3, 8)).edit(tied, basis, EditRequest([]))
        assert all(float(d.abs().max()) <= 1e-6 for d in again.deltas.values())
        written = tied.forward(request_of(tied).change[0].clean, capture=[Site("resid", 2), Site("embed")])
        added = (written[Site("resid", 2)] - written[Site("embed")]).double() @ rows[:2].T
        assert float(added.abs().max()) <= 1e-4


def test_e10_applying_and_leaving_restores_logits_and_weights(tied):
    request = request_of(tied)
    plan = rb.create("editor", "ridge", budget=50.0, tries=3, top=2).edit(tied, toy_basis(tied), request)
    before = tied.forward(request.change[0].clean).logits
    weights = {n: p.clone() for n, p in tied.parameters().items()}
    with plan.applied(tied):
        assert not torch.equal(tied.forward(request.change[0].clean).logits, before)
    assert torch.equal(tied.forward(request.change[0].clean).logits, before)
    assert all(torch.equal(p, weights[n]) for n, p in tied.parameters().items())


def test_a_head_is_edited_alone_and_gives_the_wanted_output(tied):
    """Strength 1 without regard for texts: the head's output at the prompts loses exactly its part along the contrast."""
    request = replace(request_of(tied), keep=())
    item = request.change[0]
    options = {"components": ["head.1.2"], "goal": None, "ridge": 1e-9, "budget": 1e9}
    part = Part.parse("head.1.2", tied)
    key = part.keys(tied, item.clean, place(item))[:, 0].double()
    before = key @ part.weight(tied).double().T
    plan = rb.create("editor", "ridge", **options).edit(tied, toy_basis(tied), request)
    [(name, delta)] = plan.deltas.items()
    assert name == parameter_of(tied, part.weight(tied))
    others = delta.view(32, 4, -1)[:, [0, 1, 3]]
    assert not bool(others.any())
    with plan.applied(tied):
        after = key @ part.weight(tied).double().T
    from reprbasis_editors.parts import targets_of
    target = targets_of(tied, item)
    assert float((after * target).sum(-1).abs().max()) < 1e-4
    aside = (after - before) - ((after - before) * target).sum(-1, keepdim=True) * target
    assert float(aside.abs().max()) < 1e-4


def test_the_unembedding_is_refused(tied):
    with pytest.raises(UserError, match="unembedding"):
        delta_of(tied, tied.unembedding().weight, torch.zeros(1))


def test_components_are_chosen_for_a_reason():
    model = toy_model(planted=PLANTED)
    batches = contrast_batches(model)
    found = candidates(model, batches, "both")
    assert found
    assert all(c.gain > 0 and c.p > 0 for c in found)
    plan = rb.create("editor", "ridge", budget=9.0).edit(model, toy_basis(model, identity=True), EditRequest(batches))
    assert plan.details["reached"]
    assert plan.details["margin_fitted"] <= 0 < plan.details["margin_before"]
    assert all(why["ablation"] > 0 for why in plan.details["components"].values())


def test_a_small_budget_is_kept_or_the_edit_refused():
    model = toy_model(planted=PLANTED)
    request = EditRequest(contrast_batches(model), [Example(text=" w1 w2 w3 w4")])
    editor = rb.create("editor", "ridge", budget=0.01, tries=12)
    plan = editor.edit(model, toy_basis(model, identity=True), request)
    assert plan.details["kl_keep"] <= 0.01
    with pytest.raises(DataError, match="raise `budget`"):
        rb.create("editor", "ridge", budget=1e-9, tries=1, goal=None, strength=50.0).edit(
            model, toy_basis(model, identity=True), request)
    with pytest.raises(DataError, match="a lower goal"):
        rb.create("editor", "ridge", goal=1e6).edit(model, toy_basis(model, identity=True), request)
