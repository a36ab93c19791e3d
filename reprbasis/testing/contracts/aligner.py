"""The laws of aligners.

Shapes: N paired rows, A width of the first space, B width of the second.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import reprbasis
from reprbasis.errors import ReprBasisError
from reprbasis.interfaces.aligner import Alignment

from .base import ComponentContract

WIDTH = 6


class AlignerContract(ComponentContract):
    """Suite of kind `aligner`.

        class TestProcrustes(AlignerContract):
            name = "procrustes"

    Attributes:
        tolerance: largest error on noiseless data, relative to the spread of the second space; regularised maps need more.
        means: whether the map carries the mean of one space to that of the other; False: it is linear, both means are 0.
    """

    kind = "aligner"
    tolerance: ClassVar[float] = 1e-3
    means: ClassVar[bool] = True

    def planted(self, n: int = 400, *, noise: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Rows a, and b = (a - mean) Q + offset with a fixed orthogonal Q; seeds draw other rows of the same map."""
        fixed = torch.Generator().manual_seed(99)
        q = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=fixed)).Q
        offset = 3 * torch.randn(WIDTH, generator=fixed)
        generator = torch.Generator().manual_seed(seed)
        shift, offset = (1.0, offset) if self.means else (0.0, torch.zeros(WIDTH))
        a = torch.randn(n, WIDTH, generator=generator) * torch.linspace(0.5, 2, WIDTH) + shift
        return a, (a - shift) @ q + offset + noise * torch.randn(n, WIDTH, generator=generator)

    def test_recovers_a_planted_map(self) -> None:
        """New rows land where the planted map puts them. If it fails: the map is transposed, or a mean is left out."""
        found = self.create().fit(*self.planted())
        a, b = self.planted(seed=1)
        assert float((found.forward(a) - b).abs().max()) <= self.tolerance * float((b - b.mean(0)).abs().max())

    def test_noise_is_borne(self) -> None:
        """With noise of a tenth of the spread, held-out rows keep 95 % of their variance explained."""
        found = self.create().fit(*self.planted(noise=0.1))
        a, b = self.planted(noise=0.1, seed=1)
        assert float((found.forward(a) - b).square().sum() / (b - b.mean(0)).square().sum()) < 0.05

    def test_unpaired_rows_align_to_nothing(self) -> None:
        """With the pairing broken, held-out rows are not explained: what is found is the map, not the distribution."""
        a, b = self.planted(2000)
        found = self.create().fit(a, b[torch.randperm(len(b), generator=torch.Generator().manual_seed(5))])
        x, y = self.planted(seed=1)
        assert float((found.forward(x) - y).square().sum() / (y - y.mean(0)).square().sum()) > 0.5

    def test_round_trip(self) -> None:
        """An `invertible` aligner maps back what it maps. If it fails, compute `inverse` from `matrix`, or do not declare it."""
        if "invertible" not in self.registered.component.provides:
            pytest.skip("not declared invertible")
        a, b = self.planted(noise=0.1)
        found = self.create().fit(a, b)
        assert torch.allclose(found.backward(found.forward(a)), a, atol=1e-3)
        assert torch.allclose(found.forward(found.backward(b)), b, atol=1e-3)

    def test_shapes_and_leading_dimensions(self) -> None:
        """The matrix is [A, B], its inverse [B, A], means [A] and [B]; maps take any leading dimensions."""
        a, b = self.planted()
        found = self.create().fit(a, b)
        shapes = [tuple(t.shape) for t in (found.matrix, found.inverse, found.mean_a, found.mean_b)]
        assert shapes == [(WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH,), (WIDTH,)]
        assert torch.allclose(found.forward(a.view(4, 100, WIDTH)).reshape(400, WIDTH), found.forward(a), atol=1e-5)

    @pytest.mark.parametrize("case", ["few rows", "constant", "zero", "one direction", "other width"])
    def test_degenerate_input_is_finite_or_refused(self, case: str) -> None:
        """Hard input gives finite maps or an error of ReprBasis. If it fails: regularise, or raise DataError saying why."""
        a, b = self.planted()
        if case == "few rows":
            a, b = a[:3], b[:3]
        elif case == "constant":
            a = a[:1].expand_as(a)
        elif case == "zero":
            a, b = torch.zeros_like(a), torch.zeros_like(b)
        elif case == "one direction":
            a = a[:, :1].expand_as(a)
        else:
            b = b[:, :4]
        try:
            found = self.create().fit(a, b)
        except ReprBasisError:
            return
        assert all(bool(t.isfinite().all()) for t in found.tensors().values())
        assert found.forward(a).shape == b.shape

    def test_unpaired_input_is_refused(self) -> None:
        """Different numbers of rows are an error of ReprBasis (ShapeError), never a traceback from torch."""
        a, b = self.planted()
        with pytest.raises(ReprBasisError):
            self.create().fit(a, b[:-1])

    def test_fitting_is_deterministic_and_survives_saving(self, tmp_path: Path) -> None:
        """Twice the same map; saved and loaded it is the same. If it fails, put only JSON values in `details`."""
        one, two = (self.create().fit(*self.planted(noise=0.1)) for _ in range(2))
        loaded = reprbasis.load(reprbasis.save(one, tmp_path / "alignment"))
        assert isinstance(loaded, Alignment)
        for name, value in one.tensors().items():
            assert torch.equal(value, two.tensors()[name]), name
            assert torch.equal(value, loaded.tensors()[name]), name
        assert loaded.facts() == one.facts()
