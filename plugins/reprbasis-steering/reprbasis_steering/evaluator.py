"""Evaluator `steering`: rank the latents of special tokens, steer with them and with controls, score what the model writes.

Conditions: `unsteered`; `special A`, `random latent A`, `random direction A` at strength A (length of what is added, as a share
of the site's root mean square norm), means over the directions of each kind. Reported per condition, intervals over prompts:

    ce            loss of the answers under the unsteered model, nats per token (its exponential is the perplexity)
    repetition    share of repeated trigrams
    follow        share of answers that pass their check by rule
    kl            KL(unsteered || steered) along the unsteered answers, nats per token: the size of the effect
    effect        Cliff's delta of `ce` against the unsteered answers
    largest       (conditions without A) largest strength that keeps quality, and `confirmed`: share of directions that keep it on
                  the prompts that did not choose the strength

Shapes: N prompts, K latents, D width.
"""

import torch
from torch.nn.functional import normalize

from reprbasis.errors import UserError
from reprbasis.interfaces.evaluator import Evaluator, Figure, Findings, Measurement
from reprbasis.kits.intervals import mean

from .config import SteeringConfig
from .ranking import rank
from .scores import cliffs_delta, load_prompts
from .steer import scale
from .sweep import Bench, Limits, sweep

SPECIAL, LATENT, DIRECTION = "special", "random latent", "random direction"
UNSTEERED = "unsteered"
SAMPLE = 2048
"""Tokens on which a latent must fire to be drawn as a control."""
SCORES = {"ce": "nats", "repetition": "share", "follow": "share", "kl": "nats"}
CAPTIONS = {
    "ce": "Loss of the steered answers under the unsteered model: how strange they are to it. Dotted at the left: no steering.",
    "repetition": "Share of trigrams that the answer already contains: loops show here.",
    "follow": "Share of answers that pass their check by rule.",
    "kl": "How far steering moves the next-token distribution along the unsteered answers: the size of the effect.",
}


class Steering(Evaluator[SteeringConfig]):
    """See the module."""

    def evaluate(self, inputs):
        """Scores for every strength and kind of direction, the largest strengths, figures, and what was chosen in words."""
        config, basis = self.config, inputs.basis
        site = self._site(inputs)
        ranking = rank(basis, inputs.activations, site, dialogues=config.dialogues, first_position=config.first_position)
        bench = Bench(inputs.model, load_prompts(config.prompts, config.max_prompts), max_new=config.max_new)
        directions = self._directions(inputs, site, ranking)
        limits, length = Limits(config.max_ce, config.max_repetition, config.max_failures), scale(inputs.activations, site)
        sweeps = {}
        with inputs.progress.task("steer", total=len(directions), unit="directions") as task:
            for done, (label, rows) in enumerate(directions.items()):
                sweeps[label] = sweep(bench, site, rows * length, config.alphas, limits, rounds=config.rounds,
                                      positions=config.positions)
                task.update(done + 1)
        found = [*self._scores(site, bench, sweeps), *self._largest(site, sweeps)]
        notes = self._notes(inputs, site, ranking, bench, sweeps, length)
        top = {"ranking": ranking.overall} | {f"ranking/{i}": z for i, z in ranking.scores.items()}
        return Findings(found, self._figures(site, found), (), notes, top)

    def _site(self, inputs):
        if self.config.site is None:
            stream = [s for s in inputs.basis.sites if s.name == "resid"] or list(inputs.basis.sites)
            return stream[len(stream) // 2]
        chosen = inputs.basis.at(self.config.site).sites
        if len(chosen) != 1:
            raise UserError(f"steering takes one site, {self.config.site!r} names {len(chosen)}",
                            do="name one, for example resid.14")
        return chosen[0]

    def _directions(self, inputs, site, ranking):
        """(kind, which) -> unit vector [D]."""
        basis, generator = inputs.basis, torch.Generator().manual_seed(inputs.seed)
        rows = normalize(basis.directions(site).float(), dim=1).cpu()
        fires = (basis.encode(site, inputs.activations.read(site, 0, slice(1, SAMPLE)).float()) > 0).any(0).cpu()
        order = ranking.overall.argsort(descending=True)
        alive = order[max(len(order) // 10, self.config.latents):]
        alive = alive[fires[alive]]
        others = alive[torch.randperm(len(alive), generator=generator)[:self.config.random_latents]]
        noise = normalize(torch.randn(self.config.random_directions, rows.shape[1], generator=generator), dim=1)
        return ({(SPECIAL, k): rows[k] for k in ranking.top(self.config.latents)}
                | {(LATENT, k): rows[k] for k in others.tolist()}
                | {(DIRECTION, i): noise[i] for i in range(len(noise))})

    def _scores(self, site, bench, sweeps):
        cells = {(kind, alpha): [] for kind, _ in sweeps for alpha in sorted(self.config.alphas)}
        for (kind, _), one in sweeps.items():
            for alpha in self.config.alphas:
                cells[kind, alpha].append(one.outcomes[alpha])
        out = self._rows(UNSTEERED, site, [bench.plain], bench.plain)
        for (kind, alpha), outcomes in cells.items():
            out += self._rows(f"{kind} {alpha:g}", site, outcomes, bench.plain)
        return out

    def _rows(self, condition, site, outcomes, plain):
        n = len(plain.ce)
        prompt = torch.arange(n).repeat(len(outcomes))
        out = []
        for name, unit in SCORES.items():
            values = torch.cat([1 - o.failed if name == "follow" else getattr(o, name) for o in outcomes]).double()
            one = mean(values, prompt, resamples=self.config.resamples)
            out.append(Measurement(name, one.value, n, one.low, one.high, condition, str(site), unit))
        effect = cliffs_delta(torch.cat([o.ce for o in outcomes]), plain.ce)
        return [*out, Measurement("effect", effect, n, condition=condition, site=str(site))]

    def _largest(self, site, sweeps):
        out = []
        for kind in dict.fromkeys(kind for kind, _ in sweeps):
            mine = [s for (k, _), s in sweeps.items() if k == kind]
            one = mean(torch.tensor([s.largest for s in mine]).double(), torch.arange(len(mine)), resamples=self.config.resamples)
            out += [Measurement("largest", one.value, one.n, one.low, one.high, kind, str(site), "norms"),
                    Measurement("confirmed", sum(s.confirmed for s in mine) / len(mine), len(mine), None, None, kind, str(site),
                                "share")]
        return out

    def _notes(self, inputs, site, ranking, bench, sweeps, length):
        decode, basis = inputs.model.tokenizer.decode, inputs.basis
        norms = basis.directions(site).float().norm(dim=1)
        tokens = ", ".join(f"{decode([i])!r} ({ranking.dialogues[i]})" for i in ranking.scores)
        notes = [f"Steered at {site}, root mean square norm {length:.3g}; {len(bench.prompts)} prompts, greedy answers of at "
                 f"most {self.config.max_new} tokens. Special tokens (dialogues they occur in): {tokens}."]
        for (kind, which), one in sweeps.items():
            about = f"{kind} {which}"
            if kind != DIRECTION:
                mean_of_max = ", ".join(f"{decode([i])!r} {float(z[which]):.2f}" for i, z in ranking.scores.items())
                about += (f" (mean of maxima: {mean_of_max}; strength 1 is alpha = {length / float(norms[which]):.3g} in units "
                          "of its code)")
            ending = "" if one.bounded else ", the end of the grid: no strength tried was too much"
            test = "kept" if one.confirmed else "not kept"
            notes.append(f"{about}: largest strength that keeps quality {one.largest:.3g}{ending}; "
                         f"on the other prompts it is {test}.")
        for i in range(min(2, len(bench.prompts))):
            said = [f"without steering {bench.plain.texts[i]!r}"]
            first = next(s for (kind, _), s in sweeps.items() if kind == SPECIAL)
            said += [f"at {alpha:.3g} {outcome.texts[i]!r}" for alpha, outcome in first.outcomes.items()]
            notes.append(f"{bench.prompts[i][0]!r}, first latent of the ranking: {'; '.join(said)}.")
        return notes

    def _figures(self, site, found):
        alphas = sorted(self.config.alphas)
        value = {(m.name, m.condition): m.value for m in found}
        return [Figure("line", f"Steering at {site}: {name}", caption,
                       {kind: [value[name, UNSTEERED], *(value[name, f"{kind} {a:g}"] for a in alphas)]
                        for kind in (SPECIAL, LATENT, DIRECTION)},
                       [0.0, *alphas], (), "strength, share of the norm", name)
                for name, caption in CAPTIONS.items()]
