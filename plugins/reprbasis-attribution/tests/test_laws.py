"""What scorers must satisfy beyond their contract: closed forms, planted circuits, agreement with interventions."""

from dataclasses import replace

import pytest
import torch

import reprbasis as rb
from reprbasis.errors import ReprBasisError
from reprbasis.interfaces.model import Replace, Unembedding
from reprbasis.kits.nodes import Means
from reprbasis.testing.toys import PLANTED, PLANTED_SITES, contrast_batches, interventions, margin, toy_basis, toy_model

RULES = ("midpoint", "left", "right", "trapezoid", "gauss")
FAITHFUL = ("patching", "attribution", "ig", "iterative-ig")


def scored(name, world, metric, **options):
    model, basis, batches = world
    return rb.create("scorer", name, **options).score(model, basis, batches, metric)


def values(table):
    return torch.cat([v.flatten() for v in table.nodes.values()])


@pytest.mark.parametrize("lossy", [False, True])
def test_on_a_linear_model_all_agree_with_patching(worlds, lossy):
    """V3: dictionary [I, -I], everything after it linear: attribution = ig (any N, any rule) = patching, to 1e-12."""
    world = worlds.linear_world(lossy=lossy)
    truth = scored("patching", world, margin())
    found = [scored("attribution", world, margin())]
    found += [scored("ig", world, margin(), steps=n, rule=rule) for n in (1, 4) for rule in RULES]
    found += [scored("iterative-ig", world, margin(), steps=2, rounds=1)]
    for table in found:
        assert torch.allclose(values(table), values(truth), atol=1e-12), table.details["options"]
        for row in table.details["completeness"].values():
            assert abs(row["residual"]) < 1e-12
    error = torch.stack([v[-1] for v in truth.nodes.values()]).abs()
    assert bool((error > 1e-3).all()) if lossy else bool((error < 1e-12).all())


def test_completeness_error_falls_as_the_rule_says(worlds):
    """V4: with a curved (GELU) metric a tenth of the step is a hundredth of the midpoint error, a tenth of the left error."""
    g = torch.Generator().manual_seed(1)
    a, b = (torch.randn(s, generator=g).double() for s in ((6, 16), (16,)))
    metric = worlds.Curve(lambda x: torch.nn.functional.gelu(x[:, :6] @ a / 2) @ b)
    clean, corrupt = (torch.randn(3, 6, generator=g).tolist() for _ in range(2))
    world = worlds.wire_world(clean, corrupt)

    def row(**options):
        [found] = scored("ig", world, metric, **options).details["completeness"].values()
        return found

    def residual(rule, steps):
        return abs(row(rule=rule, steps=steps)["residual"])

    assert residual("midpoint", 10) / residual("midpoint", 100) == pytest.approx(100, abs=15)
    assert residual("left", 10) / residual("left", 100) == pytest.approx(10, abs=1.5)
    assert residual("trapezoid", 10) / residual("trapezoid", 100) == pytest.approx(100, abs=15)
    assert residual("midpoint", 20) < 0.002 * abs(row()["effect"])
    assert residual("gauss", 20) < 1e-4 * residual("midpoint", 20)


def test_saturation(worlds):
    """V5: m = min(z, 1), z from 2.1 to 0: the gradient is blind, integrated gradients see the fall of 1."""
    world, metric = worlds.wire_world([[2.1]], [[0.0]]), worlds.Curve(lambda x: x[:, 0].clamp(max=1))
    assert float(values(scored("attribution", world, metric))[0]) == 0
    for rule, steps, expected in (("left", 10, 0.84), ("midpoint", 10, 1.05), ("left", 100, 0.987), ("midpoint", 100, 1.008)):
        assert float(values(scored("ig", world, metric, rule=rule, steps=steps))[0]) == pytest.approx(expected, abs=1e-9)
    assert float(values(scored("patching", world, metric))[0]) == 1


def test_redundancy(worlds):
    """V6: m = 1 - (1 - z1)(1 - z2), both 1: neither matters alone; integrated gradients share the effect."""
    world = worlds.wire_world([[1.0, 1.0]], [[0.0, 0.0]])
    metric = worlds.Curve(lambda x: 1 - (1 - x[:, 0]) * (1 - x[:, 1]))
    for name, options, expected in (("attribution", {}, 0), ("patching", {}, 0), ("ig", {}, 0.5),
                                    ("ig", {"rule": "left", "steps": 10}, 0.45)):
        assert values(scored(name, world, metric, **options))[:2].tolist() == pytest.approx([expected] * 2, abs=1e-12)


@pytest.mark.parametrize("path", ["site", "joint"])
def test_a_shrinking_circuit_keeps_one_of_two_redundant_nodes(worlds, path):
    """A third node is worth 0.4 whatever the others do; of two redundant ones (0.5 each together) one alone is worth 1."""
    world = worlds.wire_world([[1.0, 1.0, 1.0]], [[0.0, 0.0, 0.0]])
    metric = worlds.Curve(lambda x: 1 - (1 - x[:, 0]) * (1 - x[:, 1]) + 0.4 * x[:, 2])
    found = scored("iterative-ig", world, metric, nodes=1, rounds=3, steps=20, rule="gauss", path=path)
    assert [r["nodes"] for r in found.details["rounds"]] == [3, 2, 1, 1]
    top = values(found).abs().topk(3)
    assert top.indices[0] in (0, 1)
    assert float(top.values[0]) == pytest.approx(1.0, abs=1e-6)
    assert float(top.values[1]) < float(top.values[0])


def planted_world():
    model = toy_model(planted=PLANTED)
    return model, toy_basis(model, PLANTED_SITES, identity=True), contrast_batches(model)


@pytest.mark.parametrize(("name", "options"), [
    ("patching", {}), ("attribution", {}), ("ig", {"steps": 4}), ("iterative-ig", {"nodes": 4, "rounds": 3, "steps": 4}),
    ("iterative-ig", {"nodes": 4, "rounds": 3, "steps": 8, "path": "joint"})])
def test_the_planted_circuit_is_on_top(name, options):
    found = scored(name, planted_world(), margin(), **options)
    assert {(str(site), node) for site, node, _ in found.top(4)} == {(s, n) for s in ("resid.0", "resid.1") for n in PLANTED}


def test_controls_do_not_find_the_planted_circuit():
    """Of 16 latents 4 are planted, so a random choice of 4 finds one on average; 60 seeds find 0.6 to 1.4 of them."""
    world, truth = planted_world(), {(s, n) for s in ("resid.0", "resid.1") for n in PLANTED}
    hits = [len(truth & {(str(s), n) for s, n, _ in scored("random", world, margin(), seed=i).top(4)}) for i in range(60)]
    assert 0.6 < sum(hits) / len(hits) < 1.4


def test_patching_does_not_depend_on_how_many_nodes_share_a_forward(worlds):
    world = worlds.linear_world(lossy=True)
    one, many = (scored("patching", world, margin(), rows=rows, index="token") for rows in (1, 200))
    assert torch.allclose(values(one), values(many), atol=1e-12)


def test_patching_only_the_most_promising(worlds):
    world = worlds.linear_world(lossy=True)
    whole, part = scored("patching", world, margin()), scored("patching", world, margin(), most=3)
    for site, value in part.nodes.items():
        best = whole.nodes[site].abs().topk(3).indices
        assert torch.allclose(value[best], whole.nodes[site][best], atol=1e-12)
        assert int((value != 0).sum()) <= 3


@pytest.mark.parametrize("name", FAITHFUL)
@pytest.mark.parametrize("index", ["token", "role"])
def test_scores_by_place_add_up(worlds, name, index):
    model, basis, batches = worlds.linear_world(lossy=True)
    batches = [replace(b, roles={"start": b.clean.positions[:, :1], "next": b.clean.positions[:, 1:3]}) for b in batches]
    options = {"rounds": 1, "steps": 2} if name == "iterative-ig" else {}
    whole, parts = (scored(name, (model, basis, batches), margin(), index=i, **options) for i in ("shared", index))
    assert parts.details["rows"] == (["start", "next", "rest"] if index == "role" else [str(i) for i in range(8)])
    for site, value in parts.nodes.items():
        assert value.shape == (len(parts.details["rows"]), basis.d_dict + 1)
        assert torch.allclose(value.sum(0), whole.nodes[site], atol=1e-12)


def test_tokens_that_do_not_differ_score_nothing(worlds):
    """Before the first changed word a causal model sees the same, so per-token scores there are 0 (V2 for tasks)."""
    model, basis, batches = worlds.linear_world(lossy=True)
    item = batches[0]
    first = int((item.clean.ids != item.corrupt.ids).any(0).nonzero()[0])
    assert first == 0
    same = item.clean.ids.clone()
    same[:, 0] = item.corrupt.ids[:, 0]
    item = replace(item, clean=replace(item.clean, ids=same))
    for name in FAITHFUL:
        found = scored(name, (model, basis, [item]), margin(), index="token")
        assert all(not v[0].any() and v[1:].any() for v in found.nodes.values())


@pytest.mark.parametrize("name", FAITHFUL)
@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_protected_tokens_score_nothing(worlds, name, baseline):
    """V2: exactly 0."""
    options = {"rounds": 2, "steps": 2} if name == "iterative-ig" else {}
    found = scored(name, worlds.linear_world(), margin(), baseline=baseline, protect=2, index="token", **options)
    assert all(not v[:2].any() and v[2:].any() for v in found.nodes.values())


def test_the_mean_baseline_is_the_mean_over_corrupted_prompts(worlds):
    model, basis, batches = worlds.linear_world(lossy=True)
    found = scored("patching", (model, basis, batches), margin(), baseline="mean", mean_over="shared")
    means = Means.of(model, basis, batches, "shared")
    site = basis.sites[3]
    total = 0.0
    for item in batches:
        result = model.forward(item.clean, capture=basis.sites)
        z, error = basis.states(result)[site]
        new = z.clone()
        new[..., 2] = means.codes[site][0, 2]
        edit = Replace(site, basis.decode(site, new) + error)
        after = margin()(model.forward(item.clean, edits=[edit]), item.clean, item.targets)
        total += float((margin()(result, item.clean, item.targets) - after).sum())
    assert float(found.nodes[site][2]) == pytest.approx(total / 7, abs=1e-12)


def test_random_scores_belong_to_nodes_and_seeds(worlds):
    model, basis, batches = worlds.linear_world(lossy=True)
    one, again, other = (values(scored("random", (model, basis, b), margin(), seed=s))
                         for b, s in ((batches, 0), (batches[:1], 0), (batches, 1)))
    both = (one > 0) & (again > 0)
    assert both.any()
    assert torch.equal(one[both], again[both])
    assert not torch.equal(one, other)
    assert float(one.max()) <= 1


def test_random_and_magnitude_leave_out_what_never_moves(worlds):
    world = worlds.wire_world([[1.0, 2.0, 5.0]], [[0.0, 4.0, 5.0]])
    metric = worlds.Curve(lambda x: x[:, 0])
    assert values(scored("magnitude", world, metric)).tolist() == [1, 2, 0, 0]
    assert (values(scored("random", world, metric)) > 0).tolist() == [True, True, False, False]


def test_a_metric_without_gradient_is_refused_where_it_matters(worlds):
    world, metric = worlds.linear_world(), rb.create("metric", "forced-choice")
    for name in ("attribution", "ig", "iterative-ig", "direct"):
        with pytest.raises(ReprBasisError, match="gradient"):
            scored(name, world, metric)
    assert values(scored("patching", world, metric)).isfinite().all()
    with pytest.raises(ReprBasisError, match="no batches"):
        scored("patching", (*world[:2], []), metric)


def test_rankings_of_a_shrinking_circuit_are_nested():
    model = toy_model(seed=3)
    basis, batches = toy_basis(model, "resid.*", width=6), contrast_batches(model)
    found = scored("iterative-ig", (model, basis, batches), margin(), nodes=2, rounds=4, steps=2)
    counts = [r["nodes"] for r in found.details["rounds"]]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 2
    assert len(set(values(found).abs().tolist()) - {0.0}) == counts[0]
    small = scored("iterative-ig", (model, basis, batches), margin(), nodes=4, rounds=1, steps=2)
    plain = scored("ig", (model, basis, batches), margin(), steps=2)
    assert torch.allclose(values(small), values(plain), atol=1e-6)


# -- a model with attention, norms and gated MLPs -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    from transformers import LlamaConfig

    from reprbasis.testing.models import tiny_checkpoint

    shape = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 256, "tie_word_embeddings": False}
    model = rb.create("model", "llama", checkpoint=str(tiny_checkpoint(tmp_path_factory.mktemp("model"), LlamaConfig(**shape))))
    return model, contrast_batches(toy_model())


def test_patching_is_the_intervention(llama):
    model, batches = llama
    basis = toy_basis(model, ("embed", "attn_out.1", "resid.1", "mlp_out.2", "final"), width=12)
    for baseline in ("corrupt", "zero"):
        truth = interventions(model, basis, batches, margin(), baseline=baseline)
        found = scored("patching", (model, basis, batches), margin(), baseline=baseline)
        assert torch.allclose(values(found), values(truth), atol=1e-4)
        for site, row in found.details["completeness"].items():
            assert row["effect"] == pytest.approx(truth.details["sites"][site], abs=1e-4)


@pytest.mark.parametrize("path", ["site", "joint"])
def test_integrated_gradients_become_complete(llama, path):
    model, batches = llama
    basis = toy_basis(model, "resid.0::2", width=12)

    def residuals(steps):
        options = {"rule": "gauss", "steps": steps}
        if path == "joint":
            found = scored("iterative-ig", (model, basis, batches), margin(), path=path, nodes=8, rounds=3, **options)
        else:
            found = scored("ig", (model, basis, batches), margin(), **options)
        rows = found.details["completeness"].values()
        return sum(abs(r["residual"]) for r in rows), sum(abs(r["effect"]) for r in rows)

    (coarse, _), (fine, effect) = residuals(1), residuals(12)
    assert effect > 1e-2
    assert fine < 0.02 * effect
    assert fine < coarse


def test_a_first_round_in_the_whole_model_is_ig_and_later_rounds_are_complete(llama):
    model, batches = llama
    basis = toy_basis(model, ("attn_out.0", "resid.0", "mlp_out.1", "resid.1"), width=12)
    options = {"rule": "gauss", "steps": 8}
    first = scored("iterative-ig", (model, basis, batches), margin(), rounds=1, nodes=10_000, **options)
    assert torch.allclose(values(first), values(scored("ig", (model, basis, batches), margin(), **options)), atol=1e-4)
    later = scored("iterative-ig", (model, basis, batches), margin(), rounds=3, nodes=10, **options)
    for row in later.details["completeness"].values():
        assert row["residual"] == pytest.approx(0, abs=1e-2 + 0.02 * abs(row["effect"]))


def test_attribution_is_the_slope_of_patching(llama):
    """A node that moves a hundredth of the way has a hundredth of its first-order score."""
    model, batches = llama
    basis = toy_basis(model, ("resid.0", "attn_out.1", "resid.1"), width=12)
    found = scored("attribution", (model, basis, batches), margin())
    fine = scored("ig", (model, basis, batches), margin(), steps=1, rule="left")
    assert torch.allclose(values(found), values(fine), atol=1e-5)


def test_direct_is_exact_at_the_final_vector(llama):
    model, batches = llama
    basis = toy_basis(model, "final", width=12)
    for baseline in ("zero", "corrupt"):
        direct, truth = (scored(n, (model, basis, batches), margin(), baseline=baseline) for n in ("direct", "patching"))
        assert torch.allclose(values(direct), values(truth), atol=1e-4)


def test_direct_contributions_of_all_writers_add_up_to_the_logits(llama):
    """The final norm at its actual scale: what embedding, attention and MLPs write gives the clean metric, exactly."""
    model, batches = llama
    basis = toy_basis(model, ("embed", "attn_out.*", "mlp_out.*"), width=12, identity=True)  # decode(0) = 0
    found = scored("direct", (model, basis, batches), margin())
    assert float(values(found).sum()) == pytest.approx(found.details["clean"], abs=1e-4)


def test_direct_equals_patching_where_nothing_comes_between():
    model = toy_model()
    for name in ("W_O", "W_out"):
        for layer in range(2):
            model.weights[f"{layer}.{name}"].zero_()
    basis, batches = toy_basis(model, ("embed", "resid.*", "attn_out.*"), width=5), contrast_batches(model)
    direct, truth = (scored(n, (model, basis, batches), margin(), baseline="corrupt") for n in ("direct", "patching"))
    assert torch.allclose(values(direct), values(truth), atol=1e-5)


@pytest.mark.parametrize("kind", [torch.nn.RMSNorm, torch.nn.LayerNorm])
def test_the_norm_is_linear_at_its_scale(kind):
    from reprbasis_attribution.direct import through_norm

    norm = kind(16).double()
    torch.nn.init.normal_(norm.weight)
    x, g = torch.randn(2, 3, 16).double(), torch.randn(2, 3, 16).double()
    out = Unembedding(torch.randn(5, 16).double(), norm, norm.weight)
    whole = (norm(x) - norm(torch.zeros_like(x))) * g
    assert torch.allclose((through_norm(out, x, g) * x).sum(-1), whole.sum(-1), atol=1e-10)
    with pytest.raises(ReprBasisError, match="norm"):
        through_norm(Unembedding(out.weight, torch.tanh, norm.weight), x, g)
