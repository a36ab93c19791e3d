"""Cases with a known answer: where the lens is the model, where the stream is built from the unembedding, where it is not."""

import pytest
import torch
from reprbasis_lenses.lenses import Goal, last_site, way_out
from reprbasis_lenses.shadow import Null, Turns, concentration, frames, nulls, size, verdict, weighted
from torch.nn.functional import kl_div
from transformers import LlamaConfig

import reprbasis as rb
from reprbasis.interfaces.evaluator import EvaluationInputs
from reprbasis.interfaces.model import Unembedding
from reprbasis.kits.subspaces import covariance, haar, principal
from reprbasis.sites import Site
from reprbasis.testing.activations import activations_of
from reprbasis.testing.models import tiny_checkpoint
from reprbasis.testing.toys import toy_activations, toy_model, trained_basis

D, K, N = 64, 8, 4000


@pytest.fixture(scope="module")
def out():
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(500, D, generator=draw) * torch.linspace(3, 0.2, D) + 2.0  # a spectrum, and rows that share a mean
    return Unembedding(weight, lambda x: x, torch.rand(D, generator=draw) + 0.5)


@pytest.fixture(scope="module")
def frame(out):
    return frames(out)["centred"]


def judged(x, frame):
    null = nulls(covariance(x), frame, [K], K, Turns(D, 60, 0), 0)
    found = concentration(x, frame.vectors, K, torch.arange(len(x)) // 20, resamples=200)
    return found, null, verdict(found, [null.haar[K], null.permuted])


def test_l1_the_last_layer_reads_as_the_model(tmp_path):
    tiny_checkpoint(tmp_path / "m", LlamaConfig(vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
                                                num_attention_heads=4, num_key_value_heads=2))
    model = rb.create("model", "llama", checkpoint=str(tmp_path / "m"))
    batch = model.batch([rb.interfaces.tokens.Example(text="The keys to the cabinet are on the table.")])
    result = model.forward(batch, capture=[Site("resid", 2), Site("final")])
    for name in ("logit", "contrastive", "ridge", "tuned"):
        for site in ("resid.2", "final"):
            read = rb.create("lens", name).read(model, result[site], Site.parse(site))
            assert torch.equal(read.argmax(-1), result.logits.argmax(-1))
            assert kl_div(read.log_softmax(-1), result.logits.log_softmax(-1), log_target=True, reduction="sum") <= 1e-5


def test_l2_a_stream_made_of_the_first_directions_is_constrained(frame):
    draw = torch.Generator().manual_seed(1)
    x = (torch.randn(N, K, generator=draw) @ frame.vectors[:, :K].T.float() + 0.01 * torch.randn(N, D, generator=draw))
    found, _, answer = judged(x, frame)
    assert found.value >= 0.99
    assert found.value * D / K == pytest.approx(D / K, rel=0.01)
    assert answer == "holds"


def test_l3_an_isotropic_stream_is_not_constrained(frame):
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(2))
    found, null, answer = judged(x, frame)
    sd = (2 * K * (D - K) / D**2 / (D + 2) / N) ** 0.5 * D**0.5  # of a share estimated from N rows, generously
    assert abs(found.value - K / D) < 3 * sd
    assert answer != "holds"
    assert null.haar[K].mean == pytest.approx(K / D, abs=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_an_anisotropic_stream_without_relation_is_not_constrained(frame, seed):
    draw = torch.Generator().manual_seed(10 + seed)
    x = (torch.randn(N, D, generator=draw) * torch.linspace(4, 0.1, D)) @ haar(D, draw).float()
    assert judged(x, frame)[2] != "holds"


def test_l4_permuted_rows_are_no_null_and_a_rotation_is(out, frame):
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(N, D, generator=draw) * torch.linspace(4, 0.1, D)
    order = torch.randperm(len(out.weight), generator=draw)
    again = frames(Unembedding(out.weight[order], out.norm, out.gain))["centred"]
    group = torch.zeros(N, dtype=torch.long)
    one, two = (concentration(x, f.vectors, K, group).value for f in (frame, again))
    assert one == pytest.approx(two, abs=1e-6)
    turned = [concentration(x, haar(D, draw) @ frame.vectors, K, group).value for _ in range(60)]
    assert sum(turned) / 60 == pytest.approx(K / D, abs=0.02)


def test_a_turned_weight_is_a_random_frame_at_the_cost_of_a_matrix_product(frame):
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(4)) * torch.linspace(4, 0.1, D)
    cov = covariance(x)
    cheap = Turns(D, 400, 0).profiles(cov)
    draw = torch.Generator().manual_seed(5)
    direct = torch.stack([((q.T @ cov) * q.T).sum(1) for q in (haar(D, draw) for _ in range(400))]).float()
    for values in (cheap, direct):
        assert torch.allclose(values.sum(1), cov.trace().float().expand(400), rtol=1e-4)
    both = [v[:, :K].sum(1) / v.sum(1) for v in (cheap, direct)]
    assert both[0].mean() == pytest.approx(float(both[1].mean()), abs=0.005)
    assert both[0].std() == pytest.approx(float(both[1].std()), rel=0.15)
    assert weighted(cheap, frame.power).mean() == pytest.approx(1, abs=0.02)


def test_l5_all_directions_are_no_evidence(tmp_path):
    model = toy_model()
    activations = toy_activations(model, tmp_path)
    inputs = EvaluationInputs(model, trained_basis(activations), activations)
    test = rb.create("evaluator", "unembedding", judged=1.0, shares=[1.0], kept=[1.0], draws=8, tokens=80, read_tokens=60,
                     filtered="resid.*", resamples=100)
    found = test.evaluate(inputs)
    for m in found.measurements:
        if m.name == "share@1":
            assert m.value == pytest.approx(1, abs=1e-6)
        if m.name == "filter_kl@1":
            assert m.value == pytest.approx(0, abs=1e-5)
    assert "no evidence" in found.notes[0].replace("\n", " ") or "This is no" in found.notes[0]
    assert not [m for m in found.measurements if m.name == "holds"]


def test_l6_a_moved_stream_is_read_by_ridge_and_not_by_the_logit_lens(tmp_path):
    model = toy_model(width=16)
    draw = torch.Generator().manual_seed(6)
    last = torch.randn(1200, 16, generator=draw)
    matrix, bias = haar(16, draw).float() * 1.5, torch.randn(16, generator=draw)
    early = (last - bias) @ torch.linalg.inv(matrix)
    first, end = Site("resid", 0), last_site(model)
    activations = activations_of({first: early[:1000], end: last[:1000]}, tmp_path)
    lens = rb.create("lens", "ridge")
    lens = lens.restore(lens.fit(model, activations, [first]))
    truth = way_out(model, last[1000:], end).argmax(-1)
    assert (lens.read(model, early[1000:], first).argmax(-1) == truth).float().mean() >= 0.99
    assert (rb.create("lens", "logit").read(model, early[1000:], first).argmax(-1) == truth).float().mean() < 0.5


def test_tuned_learns_what_ridge_finds_in_closed_form(tmp_path):
    model = toy_model(width=16)
    draw = torch.Generator().manual_seed(6)
    last = torch.randn(1200, 16, generator=draw)
    early = (last - 0.5) @ torch.linalg.inv(haar(16, draw).float())
    first, end = Site("resid", 0), last_site(model)
    activations = activations_of({first: early[:1000], end: last[:1000]}, tmp_path)
    p = way_out(model, last[1000:], end).log_softmax(-1)

    def loss(name, **options):
        lens = rb.create("lens", name, **options)
        lens = lens.restore(lens.fit(model, activations, [first]))
        return float(kl_div(lens.read(model, early[1000:], first).log_softmax(-1), p, log_target=True, reduction="batchmean"))

    assert loss("tuned", steps=250, lr=2e-2, batch=128) < 0.1 * loss("logit")
    assert loss("tuned", steps=20, start="ridge", batch=128) < 0.01 * loss("logit")


def test_divergence_on_a_part_of_the_vocabulary_is_an_estimate_of_the_full_one():
    model = toy_model(width=16)
    draw = torch.Generator().manual_seed(7)
    last, guess = torch.randn(2, 200, 16, generator=draw)
    rows = torch.arange(200)
    full = Goal.of(model, last, None)
    exact = full.divergence(rows, guess, *full.draw(draw))
    p, q = (way_out(model, x, last_site(model)).log_softmax(-1) for x in (last, guess))
    assert exact == pytest.approx(float(kl_div(q, p, log_target=True, reduction="batchmean")), rel=1e-5)
    part = Goal.of(model, last, 32)
    assert len(part.often) == 16
    draws = torch.stack([part.divergence(rows, guess, *part.draw(draw)) for _ in range(300)])
    assert draws.mean() == pytest.approx(float(exact), rel=0.05)


def test_frames_are_the_singular_vectors_of_the_weight(out):
    found = frames(out)
    centred = (out.weight - out.weight.mean(0)) * out.gain
    for name, weight in (("raw", out.weight), ("gain", out.weight * out.gain), ("centred", centred)):
        _, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
        assert torch.allclose(found[name].power.sqrt(), s, rtol=1e-6)
        assert torch.allclose((found[name].vectors.T @ v.T).abs(), torch.eye(D, dtype=torch.float64), atol=1e-5)


def test_verdicts():
    def answer(low, value, high):
        found = concentration(torch.randn(10, 4), torch.eye(4), 2, torch.arange(10), resamples=100)
        return verdict(type(found)(value, low, high, 10, 10), [Null(0.2, 0.1, 0.3), Null(0.2, 0.1, 0.25)])

    assert answer(0.31, 0.4, 0.5) == "holds"
    assert answer(0.29, 0.4, 0.5) == "open"
    assert answer(0.05, 0.15, 0.4) == "fails"


def test_size_of_a_share():
    assert [size(s, 576) for s in (0.0625, 0.125, 1.0, 1e-9)] == [36, 72, 576, 1]


def test_principal_directions_come_largest_first():
    frame, values = principal(torch.diag(torch.tensor([1.0, 3.0, 2.0])))
    assert values.tolist() == [3.0, 2.0, 1.0]
    assert frame.abs().argmax(0).tolist() == [1, 2, 0]
