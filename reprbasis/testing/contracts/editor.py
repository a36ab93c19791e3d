"""The laws of editors: an edit is a plan, and a plan leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

import reprbasis
from reprbasis.interfaces.editor import EditPlan, EditRequest
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.tokens import Example
from reprbasis.runtime.basis import Basis

from ..toys import PLANTED, PLANTED_SITES, contrast_batches, margin, toy_basis, toy_model
from .base import ComponentContract


class EditorContract(ComponentContract):
    """Suite of kind `editor`, tried on a model in which coordinates 1 and 4 push towards ` yes`.

        class TestErase(EditorContract):
            name, config = "erase", {"latents": [1, 4]}

    It is asked to turn the answer into ` no`.
    """

    kind = "editor"

    def world(self) -> tuple[ModelAdapter, Basis, EditRequest]:
        """A planted model, its identity basis, and a request to turn the answer."""
        model = toy_model(planted=PLANTED)
        keep = [Example(text=f" w{i} w{i + 1} w{i + 2}", key=str(i)) for i in range(4)]
        return model, toy_basis(model, PLANTED_SITES, identity=True), EditRequest(contrast_batches(model), keep)

    def plan(self) -> tuple[ModelAdapter, EditRequest, EditPlan]:
        """A plan for the world."""
        model, basis, request = self.world()
        return model, request, self.create().edit(model, basis, request)

    def test_planning_leaves_the_model(self) -> None:
        """After `edit` every weight is what it was, bit for bit. If it fails, plan inside `EditPlan.applied` or on copies."""
        model, basis, request = self.world()
        with _watched(model) as kept:
            self.create().edit(model, basis, request)
            assert _changed(model, kept) == []
            assert not any(p.requires_grad or p.grad is not None for p in model.parameters().values())

    def test_deltas_fit_the_parameters(self) -> None:
        """Every delta is finite, names a parameter and has its shape; something is changed: a weight, or a site's value."""
        model, _, plan = self.plan()
        parameters = model.parameters()
        assert {n: tuple(d.shape) for n, d in plan.deltas.items()} == {n: tuple(parameters[n].shape) for n in plan.deltas}
        assert all(bool(d.isfinite().all()) and not d.requires_grad for d in plan.deltas.values())
        assert any(bool(d.any()) for d in (*plan.deltas.values(), *(book.shift for book in plan.books)))

    def test_only_named_parameters_change(self) -> None:
        """While applied, the parameters named are their old value plus the delta, and no other has changed."""
        model, _, plan = self.plan()
        with _watched(model) as kept, plan.applied(model):
            assert set(_changed(model, kept)) <= set(plan.deltas)
            assert all(torch.equal(model.parameters()[n], kept[n] + d) for n, d in plan.deltas.items())

    def test_the_edit_moves_the_behaviour(self) -> None:
        """The metric of the examples to change falls. If it fails, the delta has the wrong sign or hits a dead place."""
        model, request, plan = self.plan()

        def level() -> float:
            return float(torch.cat([margin()(model.forward(b.clean), b.clean, b.targets) for b in request.change]).mean())

        before = level()
        with plan.applied(model):
            assert level() < before - 1e-3

    @pytest.mark.parametrize("fails", [False, True], ids=["leaving", "exception"])
    def test_the_model_is_restored(self, fails: bool) -> None:
        """After the `with` block, also after an exception, every weight is what it was, bit for bit."""
        model, request, plan = self.plan()
        before = model.forward(request.change[0].clean).logits
        assert before is not None
        with _watched(model) as kept:
            with pytest.raises(RuntimeError, match="on purpose") if fails else nullcontext(), plan.applied(model):
                if fails:
                    raise RuntimeError("on purpose")
            assert _changed(model, kept) == []
            assert model.standing == ()
        after = model.forward(request.change[0].clean).logits
        assert after is not None
        assert torch.equal(before, after)

    def test_planning_is_deterministic(self) -> None:
        """Twice the same plan. If it fails, seed every draw."""
        (_, _, one), (_, _, two) = self.plan(), self.plan()
        assert one.deltas.keys() == two.deltas.keys()
        assert all(torch.equal(d, two.deltas[n]) for n, d in one.deltas.items())

    def test_plan_survives_saving(self, tmp_path: Path) -> None:
        """Saved and loaded it is the same. If it fails, put only JSON values in `details`."""
        _, _, plan = self.plan()
        loaded = reprbasis.load(reprbasis.save(plan, tmp_path / "plan"))
        assert isinstance(loaded, EditPlan)
        assert loaded.facts() == plan.facts()
        assert loaded.tensors().keys() == plan.tensors().keys()
        assert all(torch.equal(loaded.tensors()[n], t) for n, t in plan.tensors().items())


@contextmanager
def _watched(model: ModelAdapter) -> Iterator[Mapping[str, Tensor]]:
    yield {name: p.detach().clone() for name, p in model.parameters().items()}


def _changed(model: ModelAdapter, kept: Mapping[str, Tensor]) -> list[str]:
    return [name for name, p in model.parameters().items() if not torch.equal(p, kept[name])]
