import pytest
import torch

from reprbasis.kits.subspaces import covariance, draws, haar, keep, overlap, principal, share, spectrum


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


def test_covariance_is_about_the_mean_or_a_given_point(draw):
    x = torch.randn(50, 4, generator=draw) + 3
    assert torch.allclose(covariance(x), torch.cov(x.double().T, correction=0))
    assert torch.allclose(covariance(x, torch.zeros(4)), x.double().T @ x.double() / 50)


def test_principal_finds_the_right_singular_vectors(draw):
    weight = torch.randn(40, 6, generator=draw).double()
    frame, values = principal(weight.T @ weight)
    _, s, v = torch.linalg.svd(weight, full_matrices=False)
    assert torch.allclose(values.sqrt(), s)
    assert torch.allclose((frame.T @ v.T).abs(), torch.eye(6).double(), atol=1e-8)


def test_random_frames_are_orthogonal_and_even(draw):
    frames = [haar(6, draw) for _ in range(400)]
    assert torch.allclose(frames[0].T @ frames[0], torch.eye(6).double(), atol=1e-12)
    assert torch.stack(frames).mean(0).abs().max() < 0.1  # QR without the signs of R is not even
    assert sum(overlap(f[:, :2], frames[0][:, :2]) for f in frames[1:]) / 399 == pytest.approx(2 / 6, abs=0.03)


def test_draws_are_those_of_their_seed():
    one, two = (list(draws(4, 3, seed=5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], one[1])


def test_spectrum_and_share(draw):
    cov = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]).double())
    assert torch.allclose(spectrum(cov, torch.eye(4)), cov.diagonal())
    turned = spectrum(cov, haar(4, draw))
    assert float(turned.sum()) == pytest.approx(10)
    assert float(share(cov.diagonal(), 1)) == pytest.approx(0.4)
    assert float(share(cov.diagonal(), 2, bottom=True)) == pytest.approx(0.3)
    assert float(share(turned, 4)) == pytest.approx(1)


def test_keep_removes_what_lies_outside(draw):
    x, mean, frame = torch.randn(7, 5, generator=draw), torch.randn(5, generator=draw), haar(5, draw).float()
    kept = keep(x, frame[:, :2], mean)
    assert torch.allclose((kept - mean) @ frame[:, 2:], torch.zeros(7, 3), atol=1e-5)
    assert torch.allclose((kept - mean) @ frame[:, :2], (x - mean) @ frame[:, :2], atol=1e-5)
    assert torch.allclose(keep(x, frame, mean), x, atol=1e-5)
    assert torch.allclose(keep(x, torch.zeros(5, 1), mean), mean.expand(7, 5))


def test_overlap_of_the_same_and_of_orthogonal_subspaces(draw):
    frame = haar(6, draw)
    turned = frame[:, :2] @ haar(2, draw)
    assert overlap(frame[:, :2], turned) == pytest.approx(1)
    assert overlap(frame[:, :2], frame[:, 3:5]) == pytest.approx(0, abs=1e-12)
