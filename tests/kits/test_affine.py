"""Folding, initialisation, gradient projection and dead latents of affine dictionaries."""

import pytest
import torch

from reprbasis.errors import ArtifactError, ShapeError
from reprbasis.kits.affine import (
    ThresholdDictionary,
    TrainingState,
    Weighted,
    auxk_loss,
    firing_threshold,
    follow_smallest,
    geometric_median,
    reach_loss,
)
from reprbasis.testing.planted import Planted, mmcs

D, K, N = 10, 40, 64


def dictionary(dtype=torch.float64, threshold=0.3, seed=0):
    g = torch.Generator().manual_seed(seed)
    make = lambda *size: torch.randn(*size, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    rows = torch.nn.functional.normalize(make(K, D), dim=1)
    return ThresholdDictionary(make(K, D), make(K), rows, make(D), torch.full((K,), threshold, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("keep", ["codes", "norms"])
@pytest.mark.parametrize("with_mean", [False, True])
def test_fold_is_exact(keep, with_mean, dtype):
    """A dictionary for x' = (x - mean) * scale, folded, gives on raw x what it gave on x'."""
    g = torch.Generator().manual_seed(5)
    trained, scale = dictionary(dtype), 7.5
    mean = torch.randn(D, generator=g, dtype=torch.float64).to(dtype) if with_mean else None
    raw = torch.randn(N, D, generator=g, dtype=torch.float64).to(dtype) / scale
    shift = 0 if mean is None else mean
    with torch.no_grad():
        z = trained.encode((raw - shift) * scale)
        want = trained.decode(z) / scale + shift
        folded = trained.folded(scale, mean, keep=keep)
        found = folded.encode(raw)
        relative = 1e-5 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(folded.decode(found), want, rtol=relative, atol=relative)
        h = (raw - shift) * scale @ trained.W_enc.T + trained.b_enc
        clear = (h - trained.threshold).abs() > 1e-5
        assert torch.equal((found > 0)[clear], (z > 0)[clear])
        torch.testing.assert_close(found, z if keep == "codes" else z / scale, rtol=relative * 10, atol=relative * 10)
        norms = folded.directions().norm(dim=1)
        torch.testing.assert_close(norms, torch.full_like(norms, 1 / scale if keep == "codes" else 1.0))
        assert torch.equal(folded.threshold, trained.threshold if keep == "codes" else trained.threshold / scale)


def test_fold_leaves_the_original_alone():
    trained = dictionary()
    before = {k: v.clone() for k, v in trained.state_dict().items()}
    trained.folded(3.0, torch.ones(D, dtype=torch.float64), keep="norms")
    assert all(torch.equal(v, before[k]) for k, v in trained.state_dict().items())


def test_threshold_is_strict():
    d = dictionary(threshold=0.5)
    h = torch.tensor([0.5, 0.5 + 1e-12, 0.4, -1.0], dtype=torch.float64)
    d.threshold.data = torch.full((4,), 0.5, dtype=torch.float64)
    assert (d.activate(h) > 0).tolist() == [False, True, False, False]


def test_misfitting_tensors_are_refused():
    with pytest.raises(ShapeError, match="shapes"):
        ThresholdDictionary(torch.zeros(4, 3), torch.zeros(4), torch.zeros(3, 4), torch.zeros(3), torch.zeros(4))
    state = dictionary().state_dict()
    del state["b_dec"]
    with pytest.raises(ArtifactError, match="b_dec"):
        ThresholdDictionary.from_tensors(state)


def test_auxk_reaches_dead_encoders_and_no_one_else():
    """Half of the latents dead: their encoders get gradient, the gradient of all others is exactly 0."""
    d, dead = dictionary(torch.float32), torch.arange(0, K, 2)
    d.b_enc.data.zero_()  # so that every dead latent is among the top of some row
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(2))
    batch = Weighted(x, torch.full((N,), 1 / N), torch.zeros(N, dtype=torch.long), N)
    auxk_loss(d, batch, x - d(x), dead, k=D // 2).backward()
    alive = torch.arange(1, K, 2)
    assert d.W_enc.grad[dead].norm(dim=1).min() > 1e-8
    assert d.W_dec.grad[dead].norm(dim=1).min() > 1e-8
    assert not d.W_enc.grad[alive].any()
    assert not d.W_dec.grad[alive].any()
    assert not d.b_enc.grad[alive].any()
    assert d.b_dec.grad is None


def test_auxk_equals_its_definition():
    d, dead, k = dictionary(), torch.arange(0, K, 4), 5
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    batch = Weighted(x, torch.full((N,), 1 / N, dtype=torch.float64), torch.zeros(N, dtype=torch.long), N)
    residual = (x - d(x)).detach()
    h = x @ d.W_enc[dead].T + d.b_enc[dead]
    top = h.topk(k, dim=1)
    z = torch.zeros_like(h).scatter(1, top.indices, top.values.relu())
    want = (residual - z @ d.W_dec[dead]).square().sum() / (residual - residual.mean(0)).square().sum()
    torch.testing.assert_close(auxk_loss(d, batch, residual, dead, k), want)


def test_reach_equals_the_mean_over_rows_for_silent_latents():
    d = dictionary(threshold=50.0)
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    batch = Weighted(x, torch.full((N,), 1 / N, dtype=torch.float64), torch.zeros(N, dtype=torch.long), N)
    dead = torch.tensor([1, 5, 7])
    h = x @ d.W_enc[dead].T + d.b_enc[dead]
    torch.testing.assert_close(reach_loss(d, batch, dead), (50.0 - h).relu().mean(0).sum())


def test_planted_data_keeps_its_promises():
    planted = Planted.make(32, 64, 4, scales=(1.0, 50.0))
    rows = planted.rows(20_000, torch.Generator().manual_seed(0))
    small, large = (rows.x[rows.site == s].square().mean() for s in (0, 1))
    assert abs(float(small) - 1) < 0.1
    assert abs(float(large / small) - 2500) < 100
    assert mmcs(planted.atoms, planted.atoms.flip(0)) == pytest.approx(1, abs=1e-6)
    assert mmcs(planted.atoms, torch.eye(32)) < 0.8
    for seed in range(3):  # a dictionary that starts with the same seed must not start with the atoms
        start = torch.randn(128, 32, generator=torch.Generator().manual_seed(seed))
        assert mmcs(Planted.make(32, 64, 4, seed=seed).atoms, start) < 0.6


def test_thresholds_keep_their_precision_when_the_rest_is_cast():
    """In bfloat16 a step of 1e-4 from 0.5 would be lost; a threshold cast to it would also move codes."""
    d = dictionary(torch.float32, threshold=0.5).to(torch.bfloat16)
    assert {n: p.dtype for n, p in d.named_parameters() if n != "threshold"} == dict.fromkeys(
        ("W_enc", "b_enc", "W_dec", "b_dec"), torch.bfloat16)
    assert d.threshold.dtype == torch.float32
    optimiser = torch.optim.SGD([d.threshold], lr=1e-4)
    for _ in range(100):
        d.threshold.grad = -torch.ones_like(d.threshold)
        optimiser.step()
    torch.testing.assert_close(d.threshold, torch.full_like(d.threshold, 0.51))
    h = torch.full((K,), 0.5078125, dtype=torch.bfloat16)  # rounding 0.51 to bfloat16 would let it through
    assert not d.activate(h).any()
    assert d.activate(h).dtype == torch.bfloat16
    assert ThresholdDictionary.from_tensors(d.state_dict()).threshold.dtype == torch.float32
    assert dictionary(torch.float64).to(torch.float64).threshold.dtype == torch.float64


def test_geometric_median():
    corners = torch.tensor([[0.0, 0], [1, 0], [0.5, 0.75**0.5]], dtype=torch.float64)
    torch.testing.assert_close(geometric_median(corners), corners.mean(0), rtol=0, atol=1e-6)
    cloud = torch.randn(400, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    with_outlier = torch.cat([cloud, torch.full((1, 5), 1e4, dtype=torch.float64)])
    median, mean = geometric_median(with_outlier), with_outlier.mean(0)
    assert float((median - 3).norm()) < 0.01 * float((mean - 3).norm())
    on_a_row = torch.tensor([[0.0], [0.0], [0.0], [5.0]])
    assert abs(float(geometric_median(on_a_row))) < 1e-6


def test_firing_threshold_lets_as_many_through():
    h = torch.randn(500, 40, generator=torch.Generator().manual_seed(0))
    assert float((h >= firing_threshold(h, 6)).sum(1).float().mean()) == pytest.approx(6, abs=0.01)
    assert firing_threshold(-h.abs() - 1, 6) == 0


def test_running_threshold_ignores_batches_without_codes():
    state = TrainingState(4, 1.0, threshold=0.0, batches=0.0)
    values = []
    for z in (torch.zeros(3, 4), torch.tensor([[0.0, 2.0, 3.0]]), torch.zeros(2, 2), torch.tensor([4.0, 0.0])):
        follow_smallest(state, z, 0.1)
        values.append(float(state["threshold"]))
    assert values == pytest.approx([0, 2, 2, 2.2])
