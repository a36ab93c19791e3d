"""A stream of edits, one after the other (T5): is what was asked first still there at the end?"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from reprbasis.interfaces.editor import EditPlan
from reprbasis.interfaces.evaluator import Figure, Findings, Measurement
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.kits.intervals import mean
from reprbasis.kits.probes import Neutral, rows

from .metrics import geometric_mean
from .probes import Case

Step = Callable[[Sequence[Case], EditPlan], EditPlan]
"""From the cases so far and the plan so far to the plan that holds them all."""


def one_by_one(model: ModelAdapter, edit: Callable[[Case], EditPlan]) -> Step:
    """Any editor, each time on the model as the earlier edits left it: naive sequential editing."""
    def step(cases: Sequence[Case], so_far: EditPlan) -> EditPlan:
        with so_far.applied(model):
            new = edit(cases[-1])
        deltas = dict(so_far.deltas)
        for name, delta in new.deltas.items():
            deltas[name] = deltas[name] + delta if name in deltas else delta
        return EditPlan(deltas)

    return step


def stream(model: ModelAdapter, cases: Sequence[Case], step: Step, *, look: Sequence[int], label: str) -> Findings:
    """Reliability over all edits so far, on paraphrases, unseen neighbours and neutral texts, after the edits named by `look`.

    Reliability and generality are argmax accuracies. Seconds are of the processor.
    """
    texts, plan = Neutral(model, cases[0].neutral), EditPlan()
    stay = replace(cases[0]).stay["unseen neighbours"]
    first = rows(model, stay)["top"]
    seconds: list[float] = []
    found: list[Measurement] = []
    series: dict[str, list[float]] = {}
    best = torch.zeros(len(cases), dtype=torch.float64)
    reached = torch.zeros(len(cases), dtype=torch.float64)
    for t in range(1, len(cases) + 1):
        began = time.process_time()
        plan = step(cases[:t], plan)
        seconds.append(time.process_time() - began)
        if t not in look:
            continue
        with plan.applied(model):
            each = [rows(model, c.fitted)["wrong_top1"].mean() for c in cases[:t]]
            general = [rows(model, c.unseen["paraphrases"])["wrong_top1"] for c in cases[:t]]
            kept, kl = (rows(model, stay)["top"] == first).double(), texts.kl(model)
        reached[:t] = torch.stack(each)
        best = torch.maximum(best, reached)
        group = torch.repeat_interleave(torch.arange(t), torch.tensor([len(g) for g in general]))
        values = {"reliability": (reached[:t], torch.arange(t)), "generality": (torch.cat(general), group),
                  "locality": (kept, torch.arange(len(kept))), "kl": (kl, texts.group)}
        for name, (x, groups) in values.items():
            m = mean(x, groups, resamples=1000)
            found.append(Measurement(name, m.value, m.n, m.low, m.high, f"{label}: after {t}"))
            series.setdefault(name, []).append(m.value)
    forgotten = float((best - reached).mean())
    summary = geometric_mean([series[name][-1] for name in ("reliability", "generality", "locality")])
    third = max(1, len(seconds) // 3)
    found += [Measurement("forgetting", forgotten, len(cases), condition=label),
              Measurement("geometric_mean", summary, len(cases), condition=label),
              Measurement("slowdown", sum(seconds[-third:]) / max(sum(seconds[:third]), 1e-9), third, condition=label)]
    return Findings(found, [Figure("line", f"A stream of edits: {label}", "Shares after so many edits, over all edits so far.",
                                   {k: v for k, v in series.items() if k != "kl"}, list(look), x_label="edits", y_label="share")])
