"""The laws of metrics, proven on logits made by hand.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from reprbasis.errors import ReprBasisError
from reprbasis.interfaces.metric import Metric, Targets
from reprbasis.interfaces.model import ForwardResult
from reprbasis.interfaces.tokens import TokenBatch, TokenSequence

from .base import ComponentContract

VOCAB = 11


@dataclass(frozen=True)
class Case:
    """Sequences and their own logits, before they are laid out in a batch."""

    sequences: Sequence[TokenSequence]
    logits: Sequence[Tensor]
    reference: Sequence[Tensor]

    @classmethod
    def make(cls, lengths: Sequence[int] = (5, 3, 6, 2), seed: int = 0) -> Case:
        """Random tokens and logits."""
        g = torch.Generator().manual_seed(seed)
        ids = [TokenSequence(torch.randint(VOCAB, (n,), generator=g), sequence=i) for i, n in enumerate(lengths)]
        one, two = ([torch.randn(n, VOCAB, generator=g) for n in lengths] for _ in range(2))
        return cls(ids, one, two)

    def lay(self, batch: TokenBatch, values: Sequence[Tensor], filler: float) -> Tensor:
        """[B, T, V] the values where their tokens are, `filler` on padding."""
        out = torch.full((*batch.shape, VOCAB), filler)
        for i, value in enumerate(values):
            out[batch.sequences == i] = value
        return out


class MetricContract(ComponentContract):
    """Suite of kind `metric`. Logits, answers and reference are made by hand; no model is run.

        class TestKL(MetricContract):
            name = "kl"

    Rows are of different lengths, and some have two answers.
    """

    kind = "metric"

    def targets(self, rows: int, reference: Tensor | None) -> Targets:
        """One or two accepted answers in a row, and one wrong answer."""
        answer = torch.tensor([[(3 * i) % VOCAB, (3 * i + 1) % VOCAB if i % 2 else -1] for i in range(rows)])
        return Targets(answer, torch.tensor([[(3 * i + 5) % VOCAB, -1] for i in range(rows)]), reference)

    def value(self, case: Case, batch: TokenBatch, *, filler: float = 0.0, last: bool = False) -> Tensor:
        """The metric of a case laid out in a batch; nonsense of size `filler` stands on padding."""
        logits, reference = case.lay(batch, case.logits, filler), case.lay(batch, case.reference, -filler)
        if last:
            logits = logits[torch.arange(len(logits)), batch.last()][:, None]
        out: Tensor = self.create()(ForwardResult({}, logits, batch), batch, self.targets(len(logits), reference))
        return out

    def test_one_number_per_row(self) -> None:
        """[B] finite numbers. If it fails, reduce over tokens but not over the batch."""
        case = Case.make()
        out = self.value(case, TokenBatch.pad(case.sequences))
        assert out.shape == (len(case.sequences),)
        assert bool(out.isfinite().all())

    @pytest.mark.parametrize(("side", "extra"), [("left", 0), ("right", 4), ("left", 4)])
    def test_padding_never_counts(self, side: Literal["left", "right"], extra: int) -> None:
        """Left, right and extra padding give the same numbers, whatever stands there.

        If it fails, go by `batch.mask` and `batch.last()`, or by `reprbasis.kits.tokenwise`.
        """
        case = Case.make()
        expected = self.value(case, TokenBatch.pad(case.sequences))
        padded = TokenBatch.pad(case.sequences, side=side, length=6 + extra)
        assert torch.allclose(self.value(case, padded, filler=50.0), expected, atol=1e-5)

    def test_rows_do_not_depend_on_each_other(self) -> None:
        """A row gives the same number alone. If it fails, something is averaged or normalised over the batch."""
        case = Case.make()
        together = self.value(case, TokenBatch.pad(case.sequences))
        first = Case(case.sequences[:1], case.logits[:1], case.reference[:1])
        assert torch.allclose(self.value(first, TokenBatch.pad(first.sequences)), together[:1], atol=1e-5)

    def test_seams_of_packed_rows_never_count(self) -> None:
        """What the last token of one sequence predicts about the next sequence says nothing.

        If it fails, use `reprbasis.kits.tokenwise.predicts`.
        """
        case = Case.make()
        [batch] = TokenBatch.pack(case.sequences, length=9, rows=4)
        assert batch.packed
        expected = self.value(case, batch)
        seams = [x.clone() for x in case.logits]
        at_end = {int(batch.sequences[row, at]) for row, at in enumerate(batch.last().tolist())}
        for i, x in enumerate(seams):
            if i not in at_end:
                x[-1] = torch.linspace(-30, 30, VOCAB)
        assert len(at_end) < len(seams)
        assert torch.allclose(self.value(replace(case, logits=seams), batch), expected, atol=1e-5)

    def test_gradient(self) -> None:
        """A differentiable metric has a finite gradient that is not zero; another says `differentiable = False`."""
        case = Case.make()
        batch = TokenBatch.pad(case.sequences)
        logits = case.lay(batch, case.logits, 0.0).requires_grad_()
        targets = self.targets(len(logits), case.lay(batch, case.reference, 0.0))
        out = self.create()(ForwardResult({}, logits, batch), batch, targets)
        if not self.metric_class.differentiable:
            assert not out.requires_grad
            return
        [gradient] = torch.autograd.grad(out.sum(), logits)
        assert bool(gradient.isfinite().all() and gradient.any())

    def test_needs_are_declared(self) -> None:
        """Without what it `needs` a metric says so; what it does not name, it does not use."""
        case = Case.make()
        batch = TokenBatch.pad(case.sequences)
        result = ForwardResult({}, case.lay(batch, case.logits, 0.0), batch)
        full = self.targets(len(case.sequences), case.lay(batch, case.reference, 0.0))
        assert self.metric_class.needs <= {"answer", "wrong", "reference"}
        for name in ("answer", "wrong", "reference"):
            without = replace(full, **{name: None})
            if name in self.metric_class.needs:
                with pytest.raises(ReprBasisError, match=name):
                    self.create()(result, batch, without)
            else:
                assert torch.equal(self.create()(result, batch, without), self.create()(result, batch, full))

    def test_direction(self) -> None:
        """A model that is sure of what is right is at least as good as one that is sure of something else.

        If it fails, `higher_is_better` is the wrong way round.
        """
        case, needs = Case.make(), self.metric_class.needs
        batch = TokenBatch.pad(case.sequences)
        targets = self.targets(len(case.sequences), case.lay(batch, case.reference, 0.0))
        assert targets.answer is not None
        good, bad = [], []
        for i, sequence in enumerate(case.sequences):
            goal = sequence.ids.roll(-1)
            if "answer" in needs:
                goal = torch.full_like(goal, int(targets.answer[i, 0]))
            sure = 20.0 * torch.nn.functional.one_hot(goal, VOCAB).float()
            good.append(case.reference[i] if "reference" in needs else sure)
            bad.append((-case.reference[i] if "reference" in needs else sure).roll(5, dims=1))
        up, down = (self.value(replace(case, logits=x), batch) for x in (good, bad))
        assert bool(((up - down) * (1 if self.metric_class.higher_is_better else -1) > -1e-5).all()), (up, down)

    def test_last_logits_give_the_same_or_are_refused(self) -> None:
        """A forward with `logits="last"` has [B, 1, V]: the metric gives the same numbers, or a ReprBasisError."""
        case = Case.make()
        batch = TokenBatch.pad(case.sequences)
        try:
            out = self.value(case, batch, last=True)
        except ReprBasisError:
            return
        assert torch.allclose(out, self.value(case, batch), atol=1e-6)

    def test_missing_logits_are_refused(self) -> None:
        """A result without logits is an error of ReprBasis, not a traceback."""
        case = Case.make()
        batch = TokenBatch.pad(case.sequences)
        with pytest.raises(ReprBasisError):
            self.create()(ForwardResult({}, None, batch), batch, self.targets(4, case.lay(batch, case.reference, 0.0)))

    @property
    def metric_class(self) -> type[Metric[Any]]:
        """The class of the metric."""
        return type(self.create())
