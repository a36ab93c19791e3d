"""The measures of FAST (Li et al. 2025, arXiv 2506.07691), on whole held-out dialogues, each forwarded alone.

With e = |x - x^|^2 / D of a token, H dialogues and L_i counted tokens in dialogue i:

    mse           1/H sum_i 1/L_i sum_j e_ij: every dialogue weighs the same (the paper's definition)
    mse_token     mean of e over all counted tokens
    mse_st, mse_st_token   the same over the template's own tokens, in template position (`<|im_start|>`, role names ...)
    .._from1      without position 0, which is the attention sink
    .._new        only tokens whose text so far begins no training sequence: a shared system prompt is training data
    .._log2       the base-2 logarithm, in which the paper prints its tables; values below 2^-100 are put there
    l0, fvu, ev   without position 0, all tokens alike; l0_first, fvu_first: at position 0
    ce, kl        next-token loss, and divergence from the unchanged model, where this site is replaced; nats, `new` tokens
    delta_loss    (ce - ce of the unchanged model) / ce of the unchanged model
    ce_recovered  1 - increase of ce / increase under mean ablation

Conditions: `global` (the basis), `untrained` (before training), `mean` (every token replaced by the site's mean).

Shapes: N counted tokens, D width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from reprbasis.interfaces.evaluator import EvaluationInputs, Evaluator, Findings, Measurement
from reprbasis.kits.controls import untrained
from reprbasis.kits.intervals import Estimate, mean, ratio
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .config import FastConfig
from .controls import density_alarm
from .heldout import HeldOut

FLOOR = 2.0**-100


class Fast(Evaluator[FastConfig]):
    """See the module."""

    def evaluate(self, inputs: EvaluationInputs) -> Findings:
        """Measurements per site under three conditions."""
        text = HeldOut(inputs, tokens=self.config.tokens, sequence_tokens=self.config.sequence_tokens)
        run = _Run(text, self.config)
        bases = {"global": inputs.basis} | ({"untrained": untrained(inputs)} if self.config.untrained else {})
        sites = [s for s in inputs.model.info.select(self.config.sites) if s in inputs.basis.sites]
        with inputs.progress.task("evaluate sites", total=len(sites), unit="sites") as task:
            for done, site in enumerate(sites):
                run.behaviour(site, [text.mean(site).to(x.dtype).expand_as(x) for x in text.values(site)], "mean")
                run.errors(site, text.mean(site), "mean")
                for condition, basis in bases.items():
                    run.basis(site, basis, condition)
                task.update(done + 1)
        own, new = text.special, text.body
        notes = [f"{text.groups} held-out dialogues of at most {self.config.sequence_tokens} tokens: {text.tokens} tokens, "
                 f"{int(own.sum())} of them the template's own. {int(new.sum())} ({int((new & own).sum())} of the template) "
                 "begin no training sequence. Intervals: 95 % bootstrap over dialogues."]
        return Findings(run.rows, [], [], notes + density_alarm(inputs.basis, run.rows))


class _Run:
    def __init__(self, text: HeldOut, config: FastConfig) -> None:
        self.text, self.runs_model, self.resamples = text, config.behaviour, config.resamples
        self.rows: list[Measurement] = []
        self.ablated: dict[Site, Tensor] = {}

    def add(self, name: str, e: Estimate, condition: str, site: Site, unit: str = "") -> None:
        self.rows.append(Measurement(name, e.value, e.n, e.low, e.high, condition, str(site), unit))

    def basis(self, site: Site, basis: Basis, condition: str) -> None:
        """Sparsity, errors and behaviour of one site under one dictionary."""
        text, active, replaced = self.text, [], []
        for batch, x in zip(text.batches, text.values(site), strict=True):
            z = basis.encode(site, x)
            active.append((z[batch.mask] != 0).sum(-1))
            replaced.append(basis.decode(site, z).to(x.dtype))
        counts = torch.cat(active).float()
        for name, where in (("l0", ~text.first), ("l0_first", text.first)):
            self.add(name, mean(counts[where], text.owner[where], resamples=self.resamples), condition, site, "latents")
        self.errors(site, text.real(replaced), condition)
        self.behaviour(site, replaced, condition)

    def errors(self, site: Site, guess: Tensor, condition: str) -> None:
        """All mean squared errors, and the share of variance they are."""
        text = self.text
        x = text.real(text.values(site)).float()
        lost, spread = (x - guess.float()).square().sum(-1), (x - text.mean(site)).square().sum(-1)
        for tokens, among in (("mse", torch.ones_like(text.first)), ("mse_st", text.special)):
            for part, where in (("", among), ("_from1", among & ~text.first), ("_new", among & text.body)):
                if bool(where.any()):
                    error, owner = lost[where] / x.shape[-1], text.owner[where]
                    for weight, e in (("", by_dialogue(error, owner, self.resamples)),
                                      ("_token", mean(error, owner, resamples=self.resamples))):
                        self.add(f"{tokens}{weight}{part}", e, condition, site)
                        self.add(f"{tokens}{weight}{part}_log2", log2(e), condition, site, "bits")
        fvu = ratio(lost[~text.first], spread[~text.first], text.owner[~text.first], resamples=self.resamples)
        self.add("fvu", fvu, condition, site)
        self.add("ev", fvu.complement(), condition, site)
        sinks = ratio(lost[text.first], spread[text.first].clamp_min(1e-12), text.owner[text.first], resamples=self.resamples)
        self.add("fvu_first", sinks, condition, site)

    def behaviour(self, site: Site, replaced: Sequence[Tensor], condition: str) -> None:
        """Next-token loss and divergence against the unchanged model."""
        if not self.runs_model:
            return
        text, pairs = self.text, self.text.compare(self.text.continued(site, replaced))
        clean = torch.cat([r.loss for r in text.references])
        loss, kl = (torch.cat(p) for p in zip(*pairs, strict=True))
        self.add("ce", mean(loss, text.group, resamples=self.resamples), condition, site, "nats")
        self.add("kl", mean(kl, text.group, resamples=self.resamples), condition, site, "nats")
        self.add("delta_loss", ratio(loss - clean, clean, text.group, resamples=self.resamples), condition, site)
        if condition == "mean":
            self.ablated[site] = loss - clean
        recovered = ratio(loss - clean, self.ablated[site], text.group, resamples=self.resamples)
        self.add("ce_recovered", recovered.complement(), condition, site)


def by_dialogue(error: Tensor, owner: Tensor, resamples: int = 2000) -> Estimate:
    """Mean over dialogues of each dialogue's mean.

    Args:
        error: [N] of each token.
        owner: [N] its dialogue.
        resamples: bootstrap draws over dialogues.
    """
    labels, member = torch.unique(owner.cpu(), return_inverse=True)
    zero = torch.zeros(len(labels), dtype=torch.float64)
    each = zero.index_add(0, member, error.cpu().double()) / torch.bincount(member)
    return mean(each, torch.arange(len(labels)), resamples=resamples)


def log2(e: Estimate) -> Estimate:
    """The logarithm of a positive estimate and of its interval."""
    value, low, high = (None if v is None else math.log2(max(v, FLOOR)) for v in (e.value, e.low, e.high))
    assert value is not None
    return Estimate(value, low, high, e.n, e.groups)
