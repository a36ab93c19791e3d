"""Evaluator `interpret`: a latent is interpretable as far as a judge who has seen where it is active can tell where else it is.

Protocols, each scored by the area under the ROC curve over passages that have it and passages that have not (ties count half, so
that for a judge who says yes or no this is the balanced accuracy; chance is 0.5):

    detection   is it somewhere in this passage? (Paulo et al. 2024, arXiv 2410.13928)
    fuzzing     are the marked tokens those where it is active? The same passages with true and with false marks
    comsem      ComSem (Cho et al. 2025, arXiv 2509.20997): only members are shown, one token marked each; then single tokens are
                asked about. The published score is the share of yes on members alone (`comsem_yes`), which a vacuous explanation
                ("any word") brings to 1. Here negatives are asked about too, half of them members of other latents:
                `comsem_advantage` is the share of yes on members minus that on negatives

Conditions: `global` (the basis); `shuffled` (the explanation belongs to another latent); `random` (activity moved to other
tokens, all latents alike: as often, as strong, together with the same others, and about nothing); `untrained` (the basis before
training).

Per site and condition, intervals over latents:

    PROTOCOL, PROTOCOL_share   mean score, and share of latents that reach the threshold
    interpretable              share of latents whose mean score over the protocols reaches the threshold
    testable                   share of the latents active in the text that are active (and silent) often enough to test

Shapes: N tokens, W passages of w tokens, K latents.
"""

import torch

import reprbasis as rb
from reprbasis.errors import DataError
from reprbasis.interfaces.evaluator import Evaluator, Figure, Findings, Measurement
from reprbasis.kits.controls import untrained
from reprbasis.kits.intervals import mean

from .config import InterpretConfig
from .passages import activity, held_out, trained_on
from .trials import Deck

GLOBAL = "global"
LEVELS = [round(0.5 + 0.05 * i, 2) for i in range(11)]
NAMED = 4
"""Latents whose explanations are given in words, of the best and of the worst."""


class Interpret(Evaluator[InterpretConfig]):
    """See the module."""

    def evaluate(self, inputs):
        """Scores per site, protocol and condition, shares, and explanations in words."""
        config = self.config
        judge = rb.registry().build(config.judge)
        sites = self._sites(inputs.basis)
        read = held_out if config.text == "held-out" else trained_on
        text = read(inputs, sites, tokens=config.tokens, window=config.window)
        bases = {GLOBAL: inputs.basis} | ({"untrained": untrained(inputs)} if "untrained" in config.controls else {})
        found, figures, values = [], [], {}
        notes = [f"Judge: {config.judge.name}. {len(text.ids)} passages of {config.window} tokens from "
                 f"{len(text.sequences.unique())} sequences ({config.text} text); {config.shown} passages of each sort explain, "
                 f"{config.tests} test. Scores are areas under the ROC curve; intervals: 95 % bootstrap over latents."]
        with inputs.progress.task("interpret", total=len(sites), unit="sites") as task:
            for done, site in enumerate(sites):
                scores = {}
                for condition, active in self._activities(bases, site, text, inputs.seed):
                    scores |= self._condition(inputs, judge, text, active, condition, site, found, notes, values)
                figures += self._figure(site, scores)
                task.update(done + 1)
        return Findings(found, figures, (), notes, values)

    def _sites(self, basis):
        if self.config.sites is not None:
            return basis.at(self.config.sites).sites
        stream = [s for s in basis.sites if s.name == "resid"] or list(basis.sites)
        return (stream[len(stream) // 2],)

    def _activities(self, bases, site, text, seed):
        """(condition, [N, K])."""
        for condition, basis in bases.items():
            active = activity(basis, site, text.values[site])
            yield condition, active
            if condition == GLOBAL and "random" in self.config.controls:
                yield "random", active[torch.randperm(len(active), generator=torch.Generator().manual_seed(seed))]

    def _condition(self, inputs, judge, text, active, condition, site, found, notes, values):
        """Judge the latents under one condition; [n, protocols] scores by condition."""
        config, generator = self.config, torch.Generator().manual_seed(inputs.seed)
        decode = inputs.model.tokenizer.decode
        deck = Deck(text, active[text.place], shown=config.shown, tests=config.tests, seed=inputs.seed,
                    decode=lambda i: decode([i]))
        latents, alive = deck.eligible()
        if alive:
            found.append(Measurement("testable", len(latents) / alive, alive, None, None, condition, str(site), "share"))
        if len(latents) < 2:
            if condition == GLOBAL:
                raise DataError(f"of {alive} latents active at {site} fewer than two are active often enough to be judged",
                                do="read more tokens, or show and test fewer passages")
            notes.append(f"{site}, {condition}: too few latents are active often enough to be judged.")
            return {}
        chosen = sorted(latents[torch.randperm(len(latents), generator=generator)[:config.features]].tolist())
        trials = deck.trials(chosen)
        explanations = [self._explain(judge, t, inputs.model) for t in trials]
        out = {condition: self._judge(judge, trials, explanations, inputs.model, condition, site, found)}
        if condition == GLOBAL:
            values |= {f"latents/{site}": torch.tensor(chosen), f"scores/{site}": out[condition]}
            notes += self._words(site, trials, explanations, out[condition])
            if "shuffled" in config.controls:
                dealt = explanations[1:] + explanations[:1]
                out["shuffled"] = self._judge(judge, trials, dealt, inputs.model, "shuffled", site, found)
        return out

    def _explain(self, judge, trial, model):
        """Protocol -> explanation; detection and fuzzing share one."""
        out = {}
        if {"detection", "fuzzing"} & set(self.config.protocols):
            out["detection"] = out["fuzzing"] = judge.explain(trial.shown, trial.contrast, model=model)
        if "comsem" in self.config.protocols:
            out["comsem"] = judge.explain(trial.members, model=model)
        return out

    def _judge(self, judge, trials, explanations, model, condition, site, found):
        """[n, protocols] scores; measurements are appended."""
        config, columns, yes = self.config, [], {}
        for protocol in config.protocols:
            scores = []
            for trial, explained in zip(trials, explanations, strict=True):
                has, lacks = trial.tests[protocol]
                answers = judge.match(explained[protocol], [*has, *lacks], model=model)
                scores.append(curve(answers[:len(has)], answers[len(has):]))
                yes.setdefault(protocol, []).append([float((part > 0.5).float().mean()) for part in
                                                     (answers[:len(has)], answers[len(has):])])
            columns.append(torch.tensor(scores, dtype=torch.float64))
        table = torch.stack(columns, 1)

        def add(name, rows, unit=""):
            one = mean(rows.double(), torch.arange(len(rows)), resamples=config.resamples)
            found.append(Measurement(name, one.value, one.n, one.low, one.high, condition, str(site), unit))

        for protocol, scores in zip(config.protocols, columns, strict=True):
            add(protocol, scores)
            add(f"{protocol}_share", scores >= config.threshold, "share")
        if "comsem" in yes:
            members, negatives = torch.tensor(yes["comsem"], dtype=torch.float64).T
            add("comsem_yes", members, "share")
            add("comsem_advantage", members - negatives, "share")
        add("interpretable", table.mean(1) >= config.threshold, "share")
        return table

    def _words(self, site, trials, explanations, table):
        order = table.mean(1).argsort(descending=True).tolist()
        first = self.config.protocols[0]
        said = [f"{trials[i].latent} ({float(table[i].mean()):.2f}): {explanations[i][first].text}" for i in order]
        return [f"{site}, best explained: " + "; ".join(said[:NAMED]) + ".",
                f"{site}, worst explained: " + "; ".join(said[-NAMED:]) + "."]

    def _figure(self, site, scores):
        series = {c: [round(float((t.mean(1) >= level).double().mean()), 4) for level in LEVELS] for c, t in scores.items()}
        return [Figure("line", f"Interpretable latents at {site}",
                       "Share of latents whose score (mean over the protocols) reaches the level along x. The controls show how "
                       "many reach it by luck.", series, LEVELS, (), "score", "share of latents")]


def curve(has, lacks):
    """Area under the ROC curve: P(a passage that has it scores higher than one that has not), ties counting half."""
    return float((torch.sign(has[:, None] - lacks[None, :]).double().mean() + 1) / 2)
