"""The laws of finders, proven on a planted circuit.

Shapes: K latents, T tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch

import reprbasis
from reprbasis.errors import ReprBasisError
from reprbasis.interfaces.finder import Circuit
from reprbasis.interfaces.scorer import ScoreTable

from ..toys import PLANTED, PLANTED_SITES, contrast_batches, interventions, margin, toy_basis, toy_model
from .base import ComponentContract


class FinderContract(ComponentContract):
    """Suite of kind `finder`. Coordinates 1 and 4 carry the task at both sites, `resid.0` and `resid.1`; nothing else does.

        class TestTopK(FinderContract):
            name, config = "threshold", {"nodes": 4}

    Attributes:
        needs_scores: whether it has to be given scores; if so, leaving them out must be a clear error.
    """

    kind = "finder"
    needs_scores: ClassVar[bool] = True

    def find(self, *, scores: bool = True) -> Circuit:
        """What the finder finds in the planted model; it is given the true effects of all nodes if `scores`."""
        model = toy_model(planted=PLANTED)
        basis, batches = toy_basis(model, PLANTED_SITES, identity=True), contrast_batches(model)
        table: ScoreTable | None = interventions(model, basis, batches, margin()) if scores else None
        found: Circuit = self.create().find(model, basis, batches, margin(), scores=table)
        return found

    def test_masks_have_the_right_shape(self) -> None:
        """A bool mask [K + 1], or [T, K + 1], for every site. If it fails, the error node is lacking or a site left out."""
        found = self.find()
        model = toy_model(planted=PLANTED)
        assert {str(s) for s in found.masks} == {str(s) for s in model.info.select(PLANTED_SITES)}
        for site, mask in found.masks.items():
            assert mask.dtype == torch.bool, site
            assert mask.ndim in (1, 2), site
            assert mask.shape[-1] == model.info.d_model + 1, site
        assert found.size() == sum(int(m.sum()) for m in found.masks.values())

    def test_recovers_a_planted_circuit(self) -> None:
        """The planted latents, and no other, are kept at every site. If it fails: options keep too few or too many nodes."""
        for site, mask in self.find().masks.items():
            kept = (mask if mask.ndim == 1 else mask.any(0))[:-1].nonzero().flatten().tolist()
            assert kept == list(PLANTED), (str(site), kept)

    def test_the_circuit_carries_the_task(self) -> None:
        """Everything else may take its corrupted value: the metric stays. If it fails, the mask is inverted."""
        model = toy_model(planted=PLANTED)
        basis, found = toy_basis(model, PLANTED_SITES, identity=True), self.find()
        for item in contrast_batches(model):
            assert item.corrupt is not None
            other = basis.states(model.forward(item.corrupt, capture=basis.sites))
            keep = {s: (m if m.ndim == 1 else m[:item.clean.shape[1]])[..., :-1] for s, m in found.masks.items()}
            edits = basis.splice(mask=keep, fill={s: z for s, (z, _) in other.items()})
            whole, part = (margin()(model.forward(item.clean, edits=e), item.clean, item.targets) for e in ((), edits))
            assert torch.allclose(whole, part, rtol=1e-3, atol=1e-3)

    def test_finding_is_deterministic(self) -> None:
        """Twice the same circuit. If it fails, seed the search."""
        one, two = self.find(), self.find()
        assert all(torch.equal(one.masks[s], two.masks[s]) for s in one.masks)

    def test_missing_scores_are_said(self) -> None:
        """A finder that lives on scores says so; another finds the circuit without them."""
        if self.needs_scores:
            with pytest.raises(ReprBasisError, match="score"):
                self.find(scores=False)
        else:
            assert self.find(scores=False).masks.keys() == self.find().masks.keys()

    def test_circuit_survives_saving(self, tmp_path: Path) -> None:
        """Saved and loaded it is the same. If it fails, put only JSON values in `details`."""
        found = self.find()
        loaded = reprbasis.load(reprbasis.save(found, tmp_path / "circuit"))
        assert isinstance(loaded, Circuit)
        assert loaded.facts() == found.facts()
        assert all(torch.equal(loaded.masks[s], m) for s, m in found.masks.items())
