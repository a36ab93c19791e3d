"""What each map finds, and what none may claim."""

import pytest
import torch

import reprbasis as rb
from reprbasis.errors import ShapeError
from reprbasis.kits.moments import PairMoments
from reprbasis.kits.similarity import centred_cosine, retrieval

ALL = ("procrustes", "procrustes-scaled", "procrustes-pca", "l-ortho", "affine", "ridge", "cca", "relative")


def gaussians(n, d, seed, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotation(d):
    return torch.linalg.qr(gaussians(d, d, 99)).Q


def r2(found, a, b):
    return 1 - float((found.forward(a) - b).square().sum() / (b - b.mean(0)).square().sum())


@pytest.mark.parametrize("name", ALL)
def test_independent_spaces_do_not_align(name):
    """n = 2 d: on held-out rows the cosine is nothing, R² is negative, retrieval is at chance, and the map warns."""
    d, held = 64, 1000
    found = rb.create("aligner", name).fit(gaussians(2 * d, d, 0), gaussians(2 * d, d, 1))
    a, b = gaussians(held, d, 2), gaussians(held, d, 3)
    guess = found.forward(a)
    assert abs(float(centred_cosine(guess, b, b.mean(0)).mean())) < 0.02
    assert r2(found, a, b) < 0
    assert float((retrieval(guess - guess.mean(0), b - b.mean(0)) == 0).double().mean()) < 5 / held
    assert "fewer than 8" in found.details["warning"]
    assert not any("r2" in key or "cos" in key for key in found.details)


@pytest.mark.parametrize("name", ["procrustes", "procrustes-scaled", "l-ortho", "ridge", "relative"])
def test_a_rotation_under_noise_is_found(name):
    d = 48
    spread = torch.linspace(0.5, 2, d, dtype=torch.float64)
    draw = lambda n, s: gaussians(n, d, s) * spread  # noqa: E731
    a = draw(8 * d, 0)
    found = rb.create("aligner", name).fit(a, a @ rotation(d) + 0.1 * gaussians(8 * d, d, 1))
    x = draw(2000, 2)
    y = x @ rotation(d) + 0.1 * gaussians(2000, d, 3)
    assert float(centred_cosine(found.forward(x), y, y.mean(0)).mean()) > 0.99
    assert float((found.matrix - rotation(d)).norm() / rotation(d).norm()) < 0.1
    assert "warning" not in found.details


def test_procrustes_is_exact_without_noise():
    a = gaussians(200, 32, 0)
    found = rb.create("aligner", "procrustes").fit(a, a @ rotation(32) + 5)
    assert float((found.matrix - rotation(32)).abs().max()) < 1e-12
    scaled = rb.create("aligner", "procrustes-scaled").fit(a, 3 * a @ rotation(32))
    assert scaled.details["scale"] == pytest.approx(3)
    assert torch.allclose(scaled.backward(scaled.forward(a)), a)


def test_procrustes_is_no_regression():
    """A stretched space is no rotated copy: Procrustes says so, least squares does not."""
    a = gaussians(2000, 16, 0)
    stretch = torch.linspace(0.2, 5, 16, dtype=torch.float64)
    b = a @ rotation(16) * stretch
    maps = {name: rb.create("aligner", name).fit(a, b) for name in ("procrustes", "l-ortho", "affine")}
    x = gaussians(1000, 16, 1)
    y = x @ rotation(16) * stretch
    assert r2(maps["affine"], x, y) > 0.999
    assert r2(maps["procrustes"], x, y) < 0.8
    for name in ("procrustes", "l-ortho"):
        assert torch.allclose(maps[name].matrix @ maps[name].matrix.T, torch.eye(16, dtype=torch.float64), atol=1e-10)


def test_widths_96_and_128():
    """Y holds X rotated into 96 of 128 dimensions beside noise: the signal is found, the variance kept is told."""
    x, noise = gaussians(3000, 96, 0), 0.3 * gaussians(3000, 32, 1)
    turn = rotation(128)
    y = torch.cat([x, noise], 1) @ turn
    found = rb.create("aligner", "procrustes-pca").fit(x[:2000], y[:2000])
    signal = turn[:96].T @ turn[:96]
    guess, truth = found.forward(x[2000:]) @ signal, y[2000:] @ signal
    assert float(centred_cosine(guess, truth, truth.mean(0)).mean()) > 0.95
    assert found.details["variance_a"] >= 0.95
    assert found.details["variance_b"] >= 0.95
    with pytest.raises(ShapeError, match="96 and 128"):
        rb.create("aligner", "procrustes").fit(x, y)
    with pytest.raises(ShapeError, match="at most 96"):
        rb.create("aligner", "procrustes-pca", rank=100).fit(x, y)


@pytest.mark.parametrize("name", [*ALL, "unembedding"])
def test_batches_give_what_all_rows_give(name):
    """Streamed batches against one fit: the same to 1e-8 (float64 moments)."""
    a = gaussians(5000, 24, 0)
    b = a @ rotation(24) + 0.5 * gaussians(5000, 24, 1)
    aligner = rb.create("aligner", name)
    parts = 5 if name == "ridge" else 13
    one, two = aligner.fit(a, b), aligner.fit_stream(zip(a.tensor_split(parts), b.tensor_split(parts), strict=True))
    assert float((one.matrix - two.matrix).abs().max()) < 1e-8
    assert float((one.inverse - two.inverse).abs().max()) < 1e-8


def test_least_squares_is_the_direct_solution():
    a = gaussians(4000, 40, 0) * torch.logspace(-2, 1, 40, dtype=torch.float64)
    b = a @ gaussians(40, 30, 1) + gaussians(4000, 30, 2)
    direct = torch.linalg.lstsq(a - a.mean(0), b - b.mean(0)).solution
    assert torch.allclose(rb.create("aligner", "affine").fit(a, b).matrix, direct, rtol=1e-8, atol=1e-8)


def test_ridge_chooses_by_left_out_error():
    """Noise asks for a penalty, a clean map for none; errors from moments equal errors from rows."""
    a = gaussians(120, 60, 0)
    clean = a @ rotation(60)
    ridge = rb.create("aligner", "ridge")
    assert ridge.fit(a, clean).details["penalty"] == min(ridge.config.penalties)
    noisy = ridge.fit(a, clean + 3 * gaussians(120, 60, 1))
    assert noisy.details["penalty"] > 0.01
    moments = PairMoments.of([(a, clean)])
    assert moments.error(noisy.matrix, noisy.mean_a, noisy.mean_b) == pytest.approx(
        float((noisy.forward(a) - clean).square().sum()))


def test_canonical_correlations_by_hand():
    """Two shared directions of correlation .9 and .5 among noise."""
    n = 60_000
    shared, own = gaussians(n, 2, 0), gaussians(n, 2, 1)
    rho = torch.tensor([0.9, 0.5], dtype=torch.float64)
    a = torch.cat([shared, gaussians(n, 3, 2)], 1) @ rotation(5)
    b = torch.cat([rho * shared + (1 - rho ** 2).sqrt() * own, gaussians(n, 2, 3)], 1) @ rotation(4)
    found = rb.create("aligner", "cca", shrinkage=0.0).fit(a, b)
    assert found.details["canonical_correlations"][:2] == pytest.approx([0.9, 0.5], abs=0.01)
    assert max(found.details["canonical_correlations"][2:]) < 0.03


def test_unembedding_equates_logits():
    """Two models whose logits agree on every token: the map takes activations of one to those of the other, any widths."""
    readers = gaussians(500, 20, 0)
    basis = gaussians(20, 32, 1)
    wide = readers @ basis
    found = rb.create("aligner", "unembedding").fit(readers, wide)
    x = gaussians(10, 20, 2)
    centred = lambda w: w - w.mean(0)  # noqa: E731
    assert torch.allclose(found.forward(x) @ centred(wide).T, x @ centred(readers).T, atol=1e-8)


def test_relative_representations_need_no_fit():
    """The rotation of a copy is found from anchors alone, with its scale; anchors that do not span leave directions out."""
    a = gaussians(400, 24, 0) * torch.linspace(0.5, 2, 24, dtype=torch.float64)
    found = rb.create("aligner", "relative").fit(a, 3 * a @ rotation(24) + 5)
    assert torch.allclose(found.matrix, 3 * rotation(24), atol=1e-8)
    assert found.details["anchors"] == 72
    few = rb.create("aligner", "relative", anchors=10).fit(a, 3 * a @ rotation(24))
    assert int(torch.linalg.matrix_rank(few.matrix, rtol=1e-6)) == 10


def test_reduced_procrustes_scales_unless_told_not_to():
    a = gaussians(2000, 16, 0)
    b = 5 * a @ rotation(16)
    scaled, plainly = (rb.create("aligner", "procrustes-pca", variance=1.0, scale=s).fit(a, b) for s in (True, False))
    assert scaled.details["scale"] == pytest.approx(5)
    assert torch.allclose(scaled.backward(scaled.forward(a)), a)
    assert r2(scaled, a, b) > 0.999
    assert torch.allclose(5 * plainly.matrix, scaled.matrix)
