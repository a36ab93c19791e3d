"""Evaluator `icl-entropy`: entropy of the codes at the last token of prompts with more and more demonstrations.

    France: Paris
    Kenya: Nairobi
    Japan:                                  two demonstrations and a query

Designs (conditions `DESIGN, k shots`):

    varied     every prompt has demonstrations of its own
    fixed      all prompts share their demonstrations, only the query varies. Then the prompt itself has hardly more entropy with
               many demonstrations than with few, and a fall of the measured entropy says little (the released code builds such)
    shuffled   as varied, but each answer belongs to another question: more text, no task

Beside every entropy stands the FVU, and for each design the share of prompts where the model's next token begins the right
answer, so that one sees whether there was learning in context at all.

Shapes: N prompts, D width, K latents, V vocabulary.
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from math import log2

import torch

from reprbasis.errors import DataError
from reprbasis.interfaces.evaluator import Evaluator, Figure, Findings, Measurement
from reprbasis.interfaces.tokens import Example, TokenBatch
from reprbasis.kits.intervals import mean

from .config import ICLConfig
from .measure import set_entropy

DESIGNS = ("varied", "fixed", "shuffled")


@dataclass(frozen=True)
class Prompt:
    """A prompt and what is in it: demonstrations as (question, answer), the query, and its right answer."""

    demonstrations: tuple[tuple[str, str], ...]
    query: str
    answer: str

    @property
    def text(self):
        """The prompt as the model sees it."""
        return "\n".join([*(f"{q}: {a}" for q, a in self.demonstrations), f"{self.query}:"])


def prompts(pairs, shots, count, design, generator):
    """`count` prompts with `shots` demonstrations each, of the given design.

    Args:
        pairs: (question, answer); at least 2 * shots + 1.
        shots: demonstrations.
        count: prompts.
        design: one of `DESIGNS`.
        generator: of all draws.

    Raises:
        DataError: too few pairs.
    """
    if len(pairs) < 2 * shots + 1:
        raise DataError(f"{len(pairs)} pairs are too few for {shots} demonstrations", do=f"give at least {2 * shots + 1}")

    def draw():
        order = torch.randperm(len(pairs), generator=generator).tolist()
        return [pairs[i] for i in order[:2 * shots + 1]]

    shared, out = draw()[:shots], []
    for _ in range(count):
        query, *others = draw()
        own, foreign = others[:shots], others[shots:]
        if design == "fixed":
            own = shared
            while query in shared:
                query = draw()[0]
        elif design == "shuffled":
            own = [(q, a) for (q, _), (_, a) in zip(own, foreign, strict=True)]
        out.append(Prompt(tuple(own), *query))
    return out


class ICLEvaluator(Evaluator[ICLConfig]):
    """See the module."""

    def evaluate(self, inputs):
        """Entropies per site, design and number of demonstrations; the share of right answers; figures."""
        pairs = self._pairs()
        sites = [s for s in inputs.model.info.select(self.config.sites) if s in inputs.basis.sites]
        found = []
        with inputs.progress.task("prompts", total=len(DESIGNS) * len(self.config.shots), unit="sets") as task:
            for done, (design, shots) in enumerate((d, k) for d in DESIGNS for k in self.config.shots):
                generator = torch.Generator().manual_seed(inputs.seed)
                batch = prompts(pairs, shots, self.config.prompts, design, generator)
                values, right = self._run(inputs.model, batch, sites)
                condition = f"{design}, {shots} shots"
                hit = mean(right.double(), torch.arange(len(right)), resamples=1000)
                found.append(Measurement("right", hit.value, hit.n, hit.low, hit.high, condition, None, "share"))
                for site in sites:
                    one = set_entropy(inputs.basis, site, values[site], tree_bits=self.config.tree_bits)
                    found += one.measurements(condition, str(site))
                task.update(done + 1)
        n = self.config.prompts
        return Findings(found, self._figures(found, sites), [], [
            f"In-context learning: {n} prompts for each design and number of demonstrations, codes at the last token. A joint "
            f"entropy above {log2(n):.1f} bits cannot show in so few; the sum over single latents can. Without demonstrations "
            "the three designs are the same prompts."])

    def _pairs(self):
        source = self.config.pairs or files(__package__).joinpath("data", "capitals.jsonl")
        pairs = []
        for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                pairs.append((str(row["question"]), str(row["answer"])))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError("this line is not a pair", where=f"{source}:{number}",
                                do='write {"question": "France", "answer": "Paris"}') from error
        return pairs

    def _run(self, model, batch, sites):
        """Site -> [N, D] at the last token of each prompt, and [N] whether the likeliest next token begins the answer."""
        sequences = model.tokenize([Example(text=p.text) for p in batch])
        answers = model.tokenize([Example(text=f" {p.answer}") for p in batch])
        parts, right = {site: [] for site in sites}, []
        for first in range(0, len(sequences), self.config.batch):
            some = sequences[first:first + self.config.batch]
            result = model.forward(TokenBatch.pad(some, pad_id=model.pad_id).to(model.device), capture=sites, logits="last")
            rows, last = torch.arange(len(some)), torch.tensor([len(s) - 1 for s in some])
            for site in sites:
                parts[site].append(result.sites[site][rows, last].float().cpu())
            logits = result.logits.reshape(len(some), -1)
            want = torch.stack([a.ids[0] for a in answers[first:first + self.config.batch]])
            right.append(logits.argmax(-1).cpu() == want)
        return {site: torch.cat(p) for site, p in parts.items()}, torch.cat(right)

    def _figures(self, found, sites):
        shots = self.config.shots
        at = {(m.name, m.condition, m.site): m.value for m in found}
        out = []
        for name, label in (("entropy", "bits, mean over sites"), ("fvu", "fvu, mean over sites")):
            series = {d: [sum(at[name, f"{d}, {k} shots", str(s)] for s in sites) / len(sites) for k in shots] for d in DESIGNS}
            out.append(Figure("line", f"{name.capitalize() if name == 'entropy' else 'FVU'} over demonstrations",
                              "Last token of the prompt. Varied: every prompt has its own demonstrations; fixed: all share them; "
                              "shuffled: answers belong to other questions.", series, list(shots), (), "demonstrations", label))
        series = {d: [at["right", f"{d}, {k} shots", None] for k in shots] for d in DESIGNS}
        out.append(Figure("line", "Right answers over demonstrations",
                          "Share of prompts whose likeliest next token begins the right answer: whether anything was learned in "
                          "context.", series, list(shots), (), "demonstrations", "share"))
        for design in DESIGNS:
            rows = [[at["entropy", f"{design}, {k} shots", str(s)] for k in shots] for s in sites]
            out.append(Figure("heatmap", f"Entropy by site and demonstrations: {design}",
                              "Bits of the codes at the last token; each row is a site, each column a number of demonstrations.",
                              {"bits": rows}, list(shots), [str(s) for s in sites], "demonstrations", "site"))
        return out
