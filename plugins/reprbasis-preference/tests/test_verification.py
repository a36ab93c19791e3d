"""The numbered cases that a preference score must pass, on tiny random models. Shapes: N, M, H, E, D as in heads.py."""

from dataclasses import replace

import pytest
import torch
from reprbasis_preference.context import ctx, ctx_src, rank
from reprbasis_preference.heads import Background, background, ov, ov_directions, pair, qk
from reprbasis_preference.measures import isotropic, largest_by_chance, measure, q_values, ratio, unit, z_values
from reprbasis_preference.mlps import mlp, mlp_bg, mlp_lin, neuron
from reprbasis_preference.table import factored_ov, preferred
from scipy.stats import kstest

import reprbasis as rb
from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import TokenBatch, TokenSequence
from reprbasis.kits.components import answer_rows, heads_in_context, read, unembedded
from reprbasis.sites import Site
from reprbasis.testing.models import tiny_checkpoint, tiny_config
from reprbasis.testing.toys import contrast_batches, margin, toy_model

FAMILIES = {"qwen3": ("qwen", "qwen3", {"head_dim": 12}), "qwen2": ("qwen", "qwen2", {}), "llama": ("llama", "llama", {})}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    adapter, kind, changes = FAMILIES[request.param]
    folder = tiny_checkpoint(tmp_path_factory.mktemp("model"), tiny_config(kind, **changes))
    return rb.create("model", adapter, checkpoint=str(folder), dtype="float64", attention="eager")


def rows(n, d=32, seed=0):
    return unit(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def item_of(lengths=(7, 5, 9)):
    g = torch.Generator().manual_seed(3)
    sequences = [TokenSequence(torch.randint(5, 300, (n,), generator=g), sequence=i) for i, n in enumerate(lengths)]
    answer, wrong = (torch.randint(5, 300, (len(lengths), 1), generator=g) for _ in range(2))
    return ContrastBatch(TokenBatch.pad(sequences, side="left"), None, Targets(answer, wrong))


def test_p1_heads_and_constant_add_up_to_the_attention_output(model):
    """Grouped keys, norms of queries and keys, head width other than D / H, biases, left padding."""
    item = item_of()
    sites = [Site("attn_out", i) for i in range(3)]
    result = model.forward(item.clean, capture=sites)
    at = item.clean.last()
    for part in ctx(model, item):
        truth = result[sites[part.layer]][torch.arange(3), at]
        assert float((part.y[:-2].sum(0) + part.y[-1] - truth).abs().max()) <= 1e-6
    streams = [p.x for p in ctx(model, item)]
    assert all(torch.allclose(x + p.y.sum(0), end, atol=1e-6)
               for x, p, end in zip(streams, ctx(model, item), [*streams[1:], next(ctx(model, item)).end], strict=True))


def test_p1_attention_is_the_models_own(model):
    """Probabilities against those of the eager kernel, at every query position."""
    item = item_of((8, 8))
    x = model.forward(item.clean, capture=[Site("embed")])[Site("embed")]
    module = model.network.model.layers[0].self_attn
    kept = []
    handle = module.register_forward_hook(lambda m, args, out: kept.append(out[1]))
    model.forward(item.clean)
    handle.remove()
    for t in range(8):
        found = heads_in_context(model.attention(0), x, item.clean, torch.tensor([t, t])).attention
        assert float((found.transpose(0, 1) - kept[0][:, :, t]).abs().max()) <= 1e-6


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_p2_factored_preference_is_the_direct_one(model, dtype, most):
    weights = model.attention(1)
    if dtype == torch.float32:
        weights = replace(weights, **{n: getattr(weights, n).float() for n in ("W_Q", "W_K", "W_V", "W_O")})
    f, t = rows(20).to(dtype), rows(30, seed=1).to(dtype)
    y = ov(weights, f)
    direct = measure(y[:, :, None], t)
    out = factored_ov(weights, f)
    assert float((ratio(out.gain(t), out.size[..., None]).transpose(0, 1) - direct.p).abs().max()) <= most
    found = preferred(out, t, torch.arange(30), top=5, chunk=7)
    assert torch.equal(found.target, direct.gain.transpose(0, 1).abs().topk(5).indices)
    assert torch.allclose(found.p, direct.p.transpose(0, 1).gather(-1, found.target), atol=most)


def test_p3_heads_are_odd_and_ignore_length_and_mlps_are_not(model):
    f, t = rows(6), rows(6, seed=1)[:, None]
    weights, gated = model.attention(2), model.mlp(2)
    p = measure(ov(weights, f), t).p
    assert float((measure(ov(weights, -f), t).p + p).abs().max()) <= 1e-6
    assert float((measure(ov(weights, 7 * f), t).p - p).abs().max()) <= 1e-6
    both = measure(mlp(gated, f), mlp(gated, -f)).p
    assert float(both.min()) > -0.9


def planted(weights, head, f, t, alpha=1.0):
    """The layer with `head` writing alpha t f^T and noise on top of what was there, at a thousandth of it."""
    g = torch.Generator().manual_seed(0)
    out, value = weights.W_O.clone(), weights.W_V.clone()
    group = int(weights.kv_of[head])
    out[head] = 1e-3 * torch.randn(out[head].shape, generator=g).to(out)
    value[group] = 1e-3 * torch.randn(value[group].shape, generator=g).to(value)
    gain = weights.norm(torch.ones_like(f))
    out[head, :, 0] += alpha * t
    value[group, 0] += f / gain * alpha
    return replace(weights, W_O=out, W_V=value)


def test_p4_a_planted_head_comes_first(model):
    [f], [t] = rows(1), rows(1, seed=5)
    weights = planted(model.attention(1), 2, f, t, alpha=3.0)
    for sign in (1, -1):
        p = measure(ov(weights, sign * f[None])[0], t).p
        assert int((sign * p).argmax()) == 2
        assert float(sign * p[2]) > 0.99


def test_p5_random_targets_follow_the_beta_law(model):
    d = 32
    y = ov(model.attention(0), rows(1))[0, 0]
    p = measure(y, rows(2000, seed=9)).p
    assert kstest(isotropic(p, d).numpy(), "uniform").pvalue > 0.01
    assert float(p.std()) == pytest.approx(d**-0.5, rel=0.05)
    assert float(isotropic(torch.tensor(0.0), d)) == pytest.approx(0.5)
    assert largest_by_chance(270, 576) == pytest.approx(0.139, abs=0.001)


def test_p6_one_key_two_equal_keys_and_a_far_background(model):
    weights, f_q, f_k = model.attention(1), rows(4), rows(4, seed=1)
    alone = ov(weights, f_k)
    y, share = pair(weights, f_q, f_k)
    assert torch.allclose(y, alone, atol=1e-6)
    assert bool((share == 1).all())
    one = pair(weights, f_q[:1], f_k[:1], Background(f_k[:1] * 32**0.5, torch.tensor([0])))
    assert torch.allclose(one[0], alone[:1], atol=1e-6)
    assert torch.allclose(one[1], torch.tensor(0.5, dtype=torch.float64), atol=1e-6)
    other = rows(1, seed=8)
    y, share = pair(weights, f_q, f_k, Background(other * 32**0.5, torch.tensor([3])))
    assert bool((share < 1).all())
    towards = ov(weights, other)
    assert bool((measure(y, towards).p > measure(alone, towards).p).all())


def test_p6_shares_are_an_explicit_softmax(model):
    weights, f_q, f_k = model.attention(2), rows(3), rows(3, seed=1)
    against = background(model, item_of((6,)).clean, 2)
    assert against.gaps.tolist() == [6, 5, 4, 3, 2, 1]
    one_by_one = torch.stack([qk(weights, f_q, x[None], offset=int(gap))[..., 0] for x, gap in zip(*vars(against).values(),
                                                                                               strict=True)], dim=-1)
    own = qk(weights, f_q, f_k, offset=2).diagonal(dim1=1, dim2=2)
    _, share = pair(weights, f_q, f_k, against, offset=2)
    assert torch.allclose(share.mT, torch.cat([own[..., None], one_by_one], -1).softmax(-1)[..., 0], atol=1e-5)
    margins = qk(weights, f_q, f_k, offset=2, against=against).diagonal(dim1=1, dim2=2)
    assert torch.allclose(share.mT, torch.sigmoid(margins - torch.tensor(6.0).log()), atol=1e-5)


def test_p8_a_planted_neuron_needs_its_gate(model):
    [f], [t] = rows(1), rows(1, seed=5)
    weights = model.mlp(1)
    gain = weights.norm(torch.ones_like(f))
    gate, up, down = (torch.zeros_like(w) for w in (weights.W_gate, weights.W_in, weights.W_out))
    gate[7], up[7], down[:, 7] = f / gain, -f / gain, t
    made = replace(weights, W_gate=gate, W_in=up, W_out=down,
                   function=lambda x: (weights.activation(x @ gate.T) * (x @ up.T)) @ down.T)
    assert float(measure(mlp(made, f[None]), t).p) < -0.9
    ungated = weights.activation(made.norm(f[None] * 32**0.5) @ gate.T) @ down.T
    assert float(measure(ungated, t).p) > 0.9
    active = neuron(made, f[None])
    assert float(active[0, 7]) < 0
    assert torch.allclose(active @ down.T, mlp(made, f[None]))


def test_mlp_in_context_is_its_derivative_for_small_steps(model):
    weights, f, x = model.mlp(0), rows(5), 3 * rows(1, seed=4)[0]
    step = 1e-3
    numeric = (mlp_bg(weights, f, x, step) - mlp_bg(weights, -f, x, step)) / (2 * step)
    assert float((mlp_lin(weights, f, x) - numeric).norm() / numeric.norm()) < 1e-3  # the norm works in float32
    assert float(mlp_bg(weights, f, x, 2.0).norm()) > 0


def test_singular_directions_give_the_same_preference_and_the_read_share(model):
    weights, f, t = model.attention(2), rows(8), rows(8, seed=1)
    found, normed = ov_directions(weights), read(weights.norm, f)
    assert torch.allclose(found.preference(normed, t), measure(ov(weights, f), t[:, None]).p, atol=1e-10)
    assert torch.allclose(found.writes @ found.writes.mT, torch.eye(found.strength.shape[1]).double(), atol=1e-10)
    share = found.read_share(normed)
    assert bool(((share > 0) & (share <= 1)).all())
    into = found.reads[0, :1]  # a direction that is read whole
    assert float(found.read_share(into)[0, 0]) == pytest.approx(1)


def test_sources_of_a_head_add_up_to_its_gain(model):
    item = item_of()
    target = unit(answer_rows(unembedded(model), item.targets))
    for part in ctx(model, item):
        by_token = ctx_src(model, item, part.layer)
        assert torch.allclose(by_token.gain.sum(-1).mT, (part.y[:-2] * target).sum(-1), atol=1e-6)
        assert bool((by_token.p.abs() <= 1 + 1e-9).all())


def test_direct_attribution_of_all_components_is_the_logit_difference(model):
    """Heads, MLPs and constants, with the embedding's own share, add up to the logits' difference."""
    item = item_of()
    found = rank(model, [item], null=200)
    difference = margin()(model.forward(item.clean), item.clean, item.targets).mean()
    first = rank(model, [item], null=200)
    assert all(torch.equal(found.values[n], first.values[n]) for n in found.values)
    from reprbasis.kits.components import through_norm
    part = next(ctx(model, item))
    embedded = (part.x * through_norm(model.unembedding(), part.end, answer_rows(model.unembedding().weight, item.targets)))
    assert float(found.values["dla"].sum() + embedded.sum(-1).mean()) == pytest.approx(float(difference), abs=1e-5)
    assert found.n == 3


def test_the_planted_toy_ranks_what_pushes_the_answer():
    """In the planted toy every component writes the planted coordinates; the constant writes nothing and gets no discovery."""
    model = toy_model(planted=(1, 4))
    found = rank(model, contrast_batches(model), null=200)
    assert bool((found.values["gain"][:, :2] > 0).all())
    assert not bool(found.values["p"][:, 2].any())
    assert not bool(found.values["z"][:, 2].any())
    assert found.name(*found.top(1)[0]).split(".")[0] in ("head", "mlp")


def test_nulls_and_discoveries():
    g = torch.Generator().manual_seed(0)
    null = torch.randn(400, 100, generator=g)
    value = torch.randn(100, generator=g)
    value[:5] = 8.0
    q = q_values(z_values(value, null))
    assert bool((q[:5] < 1e-6).all())
    assert int((q[5:] > 0.05).sum()) >= 93
    by_hand = q_values(torch.tensor([1.9599640, 2.5758293, 0.0]))
    assert by_hand.tolist() == pytest.approx([0.075, 0.03, 1.0], abs=1e-4)
    assert bool((q_values(torch.tensor([3.0]), tests=1000) >= q_values(torch.tensor([3.0]))).all())
