"""The laws of codecs: what is written reads back as the same dictionary."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from reprbasis.errors import ReprBasisError
from reprbasis.runtime.basis import Basis

from ..toys import toy_activations, toy_model, toy_registry, trained_basis
from .base import ComponentContract


class CodecContract(ComponentContract):
    """Suite of kind `codec`.

        class TestMyFormat(CodecContract):
            name = "my-format"

    Attributes:
        rtol: largest difference, relative to the largest value, that the format may cause (for half precision, for example).
    """

    kind = "codec"
    rtol: ClassVar[float] = 1e-5

    def make_basis(self) -> Basis:
        """A basis that the format can hold; override it if the format knows certain learners only."""
        return trained_basis(toy_activations(toy_model()))

    def written(self, folder: Path) -> tuple[Basis, list[Basis]]:
        """A basis, and what is read back: one basis, or one for each site."""
        basis, codec = self.make_basis(), self.create()
        paths = codec.write(basis, folder)
        assert paths
        assert all(p.exists() and p.is_relative_to(folder) for p in paths)
        folders = [folder] if codec.detect(folder) else [p for p in paths if p.is_dir()]
        assert folders, "nothing that was written is of this format"
        assert all(codec.detect(p) for p in folders), "the codec does not know what it wrote"
        return basis, [codec.read(p, toy_registry()) for p in folders]

    def close(self, a: Tensor, b: Tensor) -> bool:
        """Whether two tensors agree within `rtol`."""
        return float((a - b).abs().max()) <= self.rtol * max(float(b.abs().max()), 1e-6)

    def test_read_gives_back_what_was_written(self, tmp_path: Path) -> None:
        """At every site the same codes and the same reconstruction. If it fails: a scale, bias or mean is folded wrongly."""
        basis, found = self.written(tmp_path / "out")
        assert {s for b in found for s in b.sites} == set(basis.sites)
        x = torch.randn(32, basis.d_in, generator=torch.Generator().manual_seed(0))
        for other in found:
            for site in other.sites:
                raw = basis.normaliser.invert(x, basis.index(site))
                z = basis.encode(site, raw)
                assert self.close(other.encode(site, raw), z), site
                assert self.close(other.decode(site, z), basis.decode(site, z)), site

    def test_writing_is_deterministic(self, tmp_path: Path) -> None:
        """The same basis gives the same bytes. If it fails, leave out time stamps and sort what has no order."""
        for name in ("one", "two"):
            self.create().write(self.make_basis(), tmp_path / name)
        one, two = ({str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
                    for name in ("one", "two"))
        assert one == two
        assert one

    def test_other_folders_are_not_claimed(self, tmp_path: Path) -> None:
        """An empty folder and one with other files are not of this format, and reading them is a ReprBasisError."""
        (tmp_path / "empty").mkdir()
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "notes.txt").write_text("nothing to see")
        for name in ("empty", "other", "missing"):
            assert not self.create().detect(tmp_path / name)
            with pytest.raises(ReprBasisError):
                self.create().read(tmp_path / name, toy_registry())

    def test_damage_is_said(self, tmp_path: Path) -> None:
        """A file cut in half is a ReprBasisError. If it fails, read with `reprbasis.artifacts.store.read_tensors`."""
        codec = self.create()
        codec.write(self.make_basis(), tmp_path / "out")
        largest = max((p for p in (tmp_path / "out").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        data = largest.read_bytes()
        largest.write_bytes(data[:len(data) // 2])
        folder = next((p for p in (tmp_path / "out", *largest.parents) if p.is_dir() and codec.detect(p)), tmp_path / "out")
        with pytest.raises(ReprBasisError):
            codec.read(folder, toy_registry())
