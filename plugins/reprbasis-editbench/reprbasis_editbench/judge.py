"""Judge an edit plan: what was fitted beside what was not, the unchanged model and a random edit of the same size beside both.

Shapes: N prompts, L layers.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from reprbasis.interfaces.editor import EditPlan
from reprbasis.interfaces.evaluator import Figure, Findings, Measurement
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.kits.intervals import mean
from reprbasis.kits.probes import MEASURES, Neutral, rows, said_twice
from reprbasis.kits.weights import random_edit
from reprbasis.runtime.batches import Batches

from .probes import Case, induction_nll
from .stress import changed_bytes, coarser, relearn, residue

UNEDITED, EDITED, RANDOM = "unedited", "edited", "random edit"


@dataclass(frozen=True)
class Stress:
    """What is tried on the edited model.

    Args:
        bits: widths of weights to test again with.
        relearn: after how many SGD steps on a quarter of the fitted prompts to test again; empty: none.
        lr: relative size of such a step.
        residue: whether every layer is read.
    """

    bits: tuple[int, ...] = (8, 4)
    relearn: tuple[int, ...] = (1, 2, 4)
    lr: float = 1e-4
    residue: bool = True


class Judge:
    """Judges plans for one case. The unchanged model is measured once, on making this.

    Args:
        model: unchanged.
        case: what was asked for.
        seed: of the repeated tokens and the random edits.
        texts: of the case's neutral texts, if they are measured already (several cases may share them).
    """

    def __init__(self, model: ModelAdapter, case: Case, *, seed: int = 0, texts: Neutral | None = None) -> None:
        self.model, self.case, self.seed = model, case, seed
        self.texts = texts or Neutral(model, case.neutral)
        self.doubled = said_twice(model, n=8, seed=seed)
        self.probes = {"fitted": case.fitted, **case.unseen, **case.stay}
        self.values: dict[str, Tensor] = {}
        self.found: list[Measurement] = []
        self._measure(UNEDITED, self.values, self.found)

    def __call__(self, plan: EditPlan, *, stress: Stress | None = None, control: bool = True) -> Findings:
        """Everything about one plan. `values` holds the rows, `CONDITION/PROBE/MEASURE`, so that several cases can be pooled.

        Args:
            plan: is applied and taken back.
            stress: what is tried on the edited model; None: nothing.
            control: whether a random edit of the same size is measured too.
        """
        values, found = dict(self.values), list(self.found)
        for condition, given in {EDITED: plan, **({RANDOM: random_edit(plan, self.seed)} if control else {})}.items():
            with given.applied(self.model):
                self._measure(condition, values, found)
        weights = self.model.parameters()
        change = sum(float(d.norm()) ** 2 for d in plan.deltas.values()) ** 0.5
        whole = sum(float(weights[name].norm()) ** 2 for name in plan.deltas) ** 0.5
        found += [Measurement("relative_change", change / whole if whole else 0.0, len(plan.deltas), condition=EDITED),
                  Measurement("extra_bytes", float(changed_bytes(plan)), len(plan.deltas), condition=EDITED, unit="bytes")]
        figures: list[Figure] = []
        if stress is not None:
            more, figures = _stressed(self.model, self.case, plan, stress, values)
            found += more
        return Findings(found, figures, notes=[f"case: {self.case.name}; aim: {self.case.aim}"], values=values)

    def _measure(self, condition: str, values: dict[str, Tensor], found: list[Measurement]) -> None:
        """The model as it is now."""
        for name, batches in self.probes.items():
            here = rows(self.model, batches)
            if name in self.case.stay:
                here["kept"] = (here["top"] == values.get(f"{UNEDITED}/{name}/top", here["top"])).double()
            for measure, x in here.items():
                values[f"{condition}/{name}/{measure}"] = x
                if measure in MEASURES:
                    found.append(_measured(measure, x, torch.arange(len(x)), condition, name))
        values[f"{condition}/neutral/kl"] = self.texts.kl(self.model)
        values[f"{condition}/induction/nll"], group = induction_nll(self.model, self.doubled)
        found.append(_measured("kl", values[f"{condition}/neutral/kl"], self.texts.group, condition, "neutral", "nats"))
        found.append(_measured("nll", values[f"{condition}/induction/nll"], group, condition, "induction", "nats"))


def _stressed(model: ModelAdapter, case: Case, plan: EditPlan, stress: Stress,
              values: dict[str, Tensor]) -> tuple[list[Measurement], list[Figure]]:
    """Tests of the edited model again: probes are those not fitted (of a preference, the last of them)."""
    probe = list(case.unseen)[-1]
    batches, measure = case.unseen[probe], "logit_diff" if case.aim == "indifference" else "wrong_top1"
    found: list[Measurement] = []

    def read() -> Tensor:
        return rows(model, batches)[measure]

    def told(x: Tensor, condition: str) -> None:
        values[f"{condition}/{probe}/{measure}"] = x
        found.append(_measured(measure, x, torch.arange(len(x)), condition, probe))

    for condition, applied in ((UNEDITED, nullcontext), (EDITED, lambda: plan.applied(model))):
        for bits in stress.bits:
            with applied():
                told(coarser(model, bits, read), f"{condition}, int{bits}")
    if stress.relearn:
        few = Batches(case.fitted[: max(1, len(case.fitted) // 4)])
        with plan.applied(model):
            again = relearn(model, few, read, steps=stress.relearn, lr=stress.lr)
        for step, x in again.items():
            told(x, f"{EDITED}, relearned {step}")
    if not stress.residue:
        return found, []
    lines = {}
    for condition, applied in ((UNEDITED, nullcontext), (EDITED, lambda: plan.applied(model))):
        with applied():
            held = residue(model, batches)
        lines[condition] = held.mean(1).tolist()
        for layer, x in enumerate(held):
            m = mean(x, torch.arange(len(x)))
            where = f"{condition}: {probe}"
            found.append(Measurement("residue", m.value, m.n, m.low, m.high, where, f"resid.{layer}", "logits"))
    caption = (f"Mean logit difference of '{probe}', read after each block through the final norm and the unembedding. A line "
               "that stays up below the last layers means that the model still knows and only does not say it.")
    return found, [Figure("line", "What every layer still says", caption, lines, list(range(model.info.n_layers)),
                          x_label="layer", y_label="logits")]


def _measured(name: str, x: Tensor, group: Tensor, condition: str, probe: str, unit: str = "") -> Measurement:
    m = mean(x, group, resamples=1000)
    return Measurement(name, m.value, m.n, m.low, m.high, f"{condition}: {probe}", unit=unit)
