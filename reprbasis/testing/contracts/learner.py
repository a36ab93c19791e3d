"""The laws of learners, proven on planted sparse data.

Shapes: N rows, D width, K latents.
"""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from reprbasis.interfaces.learner import Dictionary, DictionaryLearner, Rows, StepInfo
from reprbasis.runtime import products

from ..planted import Planted
from .base import ComponentContract


class Session:
    """A short training as the core's loop does it: linear warm-up, constant rate, clipping, Adam.

    Args:
        learner: under test.
        data: where rows come from.
        total: steps that will be taken.
        seed: fixes initialisation and data.
    """

    def __init__(self, learner: DictionaryLearner[Any], data: Planted, *, total: int, batch: int = 256,
                 seed: int = 0) -> None:
        self.learner, self.data, self.total, self.batch = learner, data, total, batch
        self.generator = torch.Generator().manual_seed(seed)
        self.stats = data.stats(self.generator)
        self.dictionary = learner.start(self.stats, self.generator)
        self.dictionary.train()
        self.rate = learner.learning_rate(self.dictionary.d_dict)
        groups = [dict(g) for g in learner.param_groups(self.dictionary)]
        self.factors = [float(g.pop("lr_factor", 1.0)) for g in groups]
        self.optimiser = torch.optim.Adam(groups, lr=self.rate, eps=6.25e-10)
        self.step = 0

    def info(self) -> StepInfo:
        """Where the training is."""
        return StepInfo(self.step, self.total, self.step * self.batch, self.generator)

    def run(self, steps: int) -> dict[str, Tensor]:
        """Take steps; the terms of the last one."""
        terms: dict[str, Tensor] = {}
        for _ in range(steps):
            info = self.info()
            for group, factor in zip(self.optimiser.param_groups, self.factors, strict=True):
                group["lr"] = self.rate * factor * min(1.0, (self.step + 1) / 20)
            terms = self.learner.loss(self.dictionary, self.data.rows(self.batch, self.generator), info)
            self.optimiser.zero_grad(set_to_none=True)
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
            self.learner.before_step(self.dictionary, info)
            torch.nn.utils.clip_grad_norm_(self.dictionary.parameters(), 1.0)
            self.optimiser.step()
            self.learner.after_step(self.dictionary, info)
            self.step += 1
        return terms

    def ship(self) -> Dictionary:
        """The shipped form."""
        return self.learner.finish(self.dictionary, self.stats).eval()


_RELOAD = """
import json, sys, torch, reprbasis
from safetensors.torch import load_file
name, config, folder = sys.argv[1:]
learner = reprbasis.create("learner", name, **json.loads(config))
tensors = load_file(folder + "/dictionary.safetensors")
probe = load_file(folder + "/probe.safetensors")
dictionary = learner.restore(probe["x"].shape[1], tensors).eval()
with torch.no_grad():
    z = dictionary.encode(probe["x"])
    assert torch.equal(z, probe["z"]), "codes differ after loading"
    assert torch.equal(dictionary.decode(z), probe["y"]), "reconstructions differ after loading"
"""


class LearnerContract(ComponentContract):
    """Subclass this for a learner: `name, config = "topk", {"width": 64, "k": 4}`.

    Attributes:
        fit_steps: steps of the short fit that must beat the mean.
    """

    kind = "learner"
    fit_steps: ClassVar[int] = 300

    def data(self) -> Planted:
        """Planted data, D = 16, two sites of one scale."""
        return Planted.make(16, 24, 2, seed=1, scales=(1.0, 1.0))

    def session(self, *, total: int = 20, seed: int = 0) -> Session:
        """A training that has not begun."""
        return Session(self.create(), self.data(), total=total, seed=seed)

    @pytest.fixture(scope="class")
    def fitted(self, request: pytest.FixtureRequest) -> Session:
        """A short fit, shared by the laws that need a trained dictionary."""
        session: Session = request.cls().session(total=self.fit_steps)
        session.run(self.fit_steps)
        return session

    def probe(self, n: int = 64) -> Tensor:
        """[n, D] rows that were not trained on."""
        return self.data().rows(n, torch.Generator().manual_seed(99)).x

    def test_start_is_deterministic(self) -> None:
        """The same seed must give the same dictionary. Take all randomness from the generator that `start` is given."""
        a, b = self.session().dictionary.state_dict(), self.session().dictionary.state_dict()
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)

    def test_seed_matters(self) -> None:
        """Another seed must give another start, else restarts are no test of stability."""
        a, b = self.session(seed=0).dictionary.state_dict(), self.session(seed=1).dictionary.state_dict()
        assert any(not torch.equal(a[k], b[k]) for k in a)

    def test_shapes_for_any_leading_dimensions(self, fitted: Session) -> None:
        """`encode` is [..., D] -> [..., K], decode the reverse, and rows do not influence each other."""
        dictionary, x = fitted.ship(), self.probe(6)
        with torch.no_grad():
            flat = dictionary.encode(x)
            assert flat.shape == (6, dictionary.d_dict)
            assert dictionary.decode(flat).shape == (6, dictionary.d_in)
            for lead in ((), (1,), (2, 3), (1, 3, 2)):
                part = x[:max(math.prod(lead), 1)].reshape(*lead, dictionary.d_in)
                z = dictionary.encode(part)
                assert z.shape == (*lead, dictionary.d_dict)
                torch.testing.assert_close(z.reshape(-1, dictionary.d_dict), flat[:max(math.prod(lead), 1)])
                assert dictionary.decode(z).shape == part.shape

    def test_loss_terms_are_finite_and_differentiable(self) -> None:
        """Every term must be a finite scalar, and every trainable parameter must receive a finite gradient from
        their sum.
        """
        session = self.session()
        terms = session.learner.loss(session.dictionary, session.data.rows(64, session.generator), session.info())
        assert terms
        assert all(t.shape == () and bool(torch.isfinite(t)) for t in terms.values())
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        grads = {n: p.grad for n, p in session.dictionary.named_parameters() if p.requires_grad}
        assert [n for n, g in grads.items() if g is not None and not bool(torch.isfinite(g).all())] == []
        assert any(g is not None and bool((g != 0).any()) for g in grads.values())

    def test_loss_ignores_rows_of_weight_zero(self) -> None:
        """Rows of weight 0 must change nothing. Weight every sum over rows by `rows.weight`, selections included."""
        a, b = self.session(), self.session()
        rows = a.data.rows(64, torch.Generator().manual_seed(3))
        other = a.data.rows(64, torch.Generator().manual_seed(4))
        weight = (torch.arange(64) % 3 > 0).float()
        mixed = replace(rows, x=torch.where(weight[:, None] > 0, rows.x, 100 * other.x), weight=weight)
        alone = Rows(**{f.name: getattr(rows, f.name)[weight > 0] for f in fields(Rows)})
        left, right = a.learner.loss(a.dictionary, mixed, a.info()), b.learner.loss(b.dictionary, alone, b.info())
        assert left.keys() == right.keys()
        for name in left:
            torch.testing.assert_close(left[name], right[name], rtol=1e-5, atol=1e-7)

    def test_loss_follows_the_weights(self) -> None:
        """The share of a row in the loss must follow its weight: scaling all weights by one factor changes nothing."""
        a, b = self.session(), self.session()
        rows = a.data.rows(64, torch.Generator().manual_seed(3))
        left = a.learner.loss(a.dictionary, rows, a.info())
        right = b.learner.loss(b.dictionary, replace(rows, weight=rows.weight / 2), b.info())
        for name in left:
            torch.testing.assert_close(left[name], right[name], rtol=1e-5, atol=1e-7)

    def test_parameters_are_all_owned(self) -> None:
        """`param_groups` must return every parameter that requires gradients exactly once."""
        session = self.session()
        owned = [id(p) for g in session.learner.param_groups(session.dictionary) for p in g["params"]]
        assert len(owned) == len(set(owned))
        assert set(owned) >= {id(p) for p in session.dictionary.parameters() if p.requires_grad}

    def test_beats_the_mean(self, fitted: Session) -> None:
        """After a short fit the shipped form must reconstruct planted data better than its mean does (by a third)."""
        x = self.probe(2048)
        with torch.no_grad():
            error = float((x - fitted.ship()(x)).square().sum())
        assert error < 2 / 3 * float((x - x.mean(0)).square().sum())

    def test_logs_l0_and_fvu(self) -> None:
        """`loss` must log `l0` and `fvu` through `step.log`; the pipeline's tables are built from them."""
        session = self.session()
        info = session.info()
        session.learner.loss(session.dictionary, session.data.rows(64, session.generator), info)
        assert {"l0", "fvu"} <= info.scratch.keys()
        assert all(v.shape == () and not v.requires_grad for v in info.scratch.values())

    def test_restore_is_exact(self, fitted: Session) -> None:
        """`restore` must invert `state_dict` bit for bit. Keep what the shipped form needs in parameters and
        buffers.
        """
        shipped = fitted.ship()
        state = shipped.state_dict()
        back = self.create().restore(shipped.d_in, state)
        got = back.state_dict()
        assert got.keys() == state.keys()
        assert all(torch.equal(got[k], state[k]) and got[k].dtype == state[k].dtype for k in state)
        x = self.probe()
        with torch.no_grad():
            assert torch.equal(back.eval().encode(x), shipped.encode(x))

    def test_loads_in_a_fresh_process(self, fitted: Session, tmp_path: Path) -> None:
        """A saved dictionary must give the same codes in a new interpreter that knows only the config and the
        tensors.
        """
        shipped, x = fitted.ship(), self.probe()
        with torch.no_grad():
            z = shipped.encode(x)
            save_file({k: v.contiguous() for k, v in shipped.state_dict().items()}, tmp_path / "dictionary.safetensors")
            save_file({"x": x, "z": z, "y": shipped.decode(z)}, tmp_path / "probe.safetensors")
        done = subprocess.run([sys.executable, "-c", _RELOAD, self.name, self.make_config().model_dump_json(),
                               str(tmp_path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_resumes_bit_for_bit(self) -> None:
        """Stopping after 7 of 12 steps and going on from `state_dict` must end with the same bits as not stopping.

        If it fails, some state lives outside the dictionary: move counters, thresholds and schedules into buffers.
        """
        straight = self.session(total=12)
        straight.run(12)
        first = self.session(total=12)
        first.run(7)
        second = self.session(total=12)
        second.dictionary.load_state_dict({k: v.clone() for k, v in first.dictionary.state_dict().items()})
        second.optimiser.load_state_dict(first.optimiser.state_dict())
        second.generator.set_state(first.generator.get_state())
        second.step = first.step
        second.run(5)
        want, got = straight.dictionary.state_dict(), second.dictionary.state_dict()
        assert [k for k in want if not torch.equal(want[k], got[k])] == []

    def test_short_products_change_little(self) -> None:
        """With `bfloat16-products` loss and gradients stay what they are up to rounding. If it fails, compute codes, losses
        and sums in float32 and leave only the large products to `kits.sparse`.
        """
        if "bfloat16-products" not in self.registered.component.provides:
            return
        session, found = self.session(), []
        session.run(20)
        rows, state = self.data().rows(256, torch.Generator().manual_seed(9)), session.generator.get_state()
        formats: tuple[products.Format, ...] = ("float32", "bfloat16")
        for name in formats:
            session.generator.set_state(state)
            session.optimiser.zero_grad(set_to_none=True)
            with products.using(name):
                total = torch.stack(list(session.learner.loss(session.dictionary, rows, session.info()).values())).sum()
                total.backward()  # type: ignore[no-untyped-call]
            gradient = torch.cat([p.grad.flatten() for p in session.dictionary.parameters() if p.grad is not None])
            found.append((float(total.detach()), gradient))
        (loss, gradient), (short, other) = found
        assert short == pytest.approx(loss, rel=0.03)
        assert torch.cosine_similarity(gradient, other, dim=0) > 0.98

    def test_loss_leaves_parameters_alone(self) -> None:
        """`loss` may update buffers, never parameters: those belong to the optimiser and `after_step`."""
        session = self.session()
        before = {k: v.detach().clone() for k, v in session.dictionary.named_parameters()}
        session.learner.loss(session.dictionary, session.data.rows(64, session.generator), session.info())
        assert all(torch.equal(v, before[k]) for k, v in session.dictionary.named_parameters())

    def test_capabilities_hold(self, fitted: Session) -> None:
        """What the declaration provides must be true of the shipped form."""
        provides, dictionary, x = self.registered.component.provides, fitted.ship(), self.probe(256)
        with torch.no_grad():
            z = dictionary.encode(x)
            rows = dictionary.directions()
            if "affine-decoder" in provides:
                assert rows is not None
                assert rows.shape == (dictionary.d_dict, dictionary.d_in)
                zero = dictionary.decode(torch.zeros(1, dictionary.d_dict))
                torch.testing.assert_close(dictionary.decode(z), z @ rows + zero, rtol=1e-4, atol=1e-5)
            else:
                assert rows is None, "directions() is not None: declare affine-decoder"
            if "nonnegative-latents" in provides:
                assert bool((z >= 0).all())
            if "binary-latents" in provides:
                assert bool(((z == 0) | (z == 1)).all())
            if "sparse-latents" in provides:
                assert float((z != 0).float().mean()) < 0.5
