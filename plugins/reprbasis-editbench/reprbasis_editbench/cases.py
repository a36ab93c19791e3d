"""The benchmarks whose edits are about one token: preferences (ioi, greater-than, ...) and facts (capitals)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from random import Random
from typing import Any

from reprbasis import Selection
from reprbasis.errors import DataError
from reprbasis.interfaces.editor import EditRequest
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.task import ContrastPair, Task
from reprbasis.interfaces.tokens import Example
from reprbasis.kits.probes import rows
from reprbasis.registry import Registry
from reprbasis.runtime.batches import Batches, batches

from .probes import Case

CITIES = ("Chicago", "Boston", "Houston", "Denver", "Miami", "Detroit", "Dallas", "Seattle", "Munich", "Barcelona", "Toronto",
          "Sydney", "Milan", "Manchester")
"""Cities that are no country's capital: what an edit says instead."""

NEIGHBOURS = {"country-capital": "capitals", "sva": "agreement", "pronoun": "pronouns"}
"""Task -> name of what an edit of a preference is to leave alone: the first that the model can do."""


@dataclass(frozen=True)
class Preference:
    """A task whose preference is to be forgotten (T1, T6).

    Args:
        task: name of the task.
        options: of the task, but for those below.
        fitted, held: options that make the wordings the editor sees, and those it does not; both empty: one wording.
    """

    task: str
    options: dict[str, Any] = field(default_factory=dict)
    fitted: dict[str, Any] = field(default_factory=dict)
    held: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, task: Selection) -> "Preference":
        """The preference of any task, with one kind of wording."""
        options = {name: getattr(task.config, name) for name in task.config.model_fields_set}
        return cls(task.name, options)

    def case(self, registry: Registry, model: ModelAdapter, seed: int, n: int, index: int = 0) -> Case:
        """Fitted on 2n prompts of `train` words and wordings; unseen words are those of `test`, n prompts of each kind."""
        def pairs(options: dict[str, Any], split: str, count: int = n) -> Batches:
            task = registry.create("task", self.task, **self.options, **options)
            return batches(model, task, split=split, n=count, batch=8, seed=seed, keep="choice")

        fitted = pairs(self.fitted, "train", 2 * n)
        unseen = {"unseen words": pairs(self.fitted, "test")}
        if self.held:
            unseen |= {"unseen wordings": pairs(self.held, "train"), "both unseen": pairs(self.held, "test")}
        keep = [*neutral(0), *_said(registry, model, "induction", {"words": 12, "repeated": 4}, seed, 8)]
        neighbours = {}
        for task, name in NEIGHBOURS.items():
            if task == self.task:
                continue
            try:
                neighbours[name] = batches(model, registry.create("task", task), split="test", n=12, batch=8, seed=seed,
                                           keep="choice")
            except DataError:  # no pair is kept: this model cannot do it
                continue
            keep += _said(registry, model, task, {}, seed, 8)
            break
        return Case(f"{self.task}-{seed}", EditRequest(fitted, keep), "indifference", fitted, unseen, neighbours, neutral(1))


@dataclass(frozen=True)
class Facts:
    """Capitals that are to be others (T2), one edit a case.

    Args:
        known: what `known_facts` gives, if several cases share it.
    """

    known: Mapping[str, list[ContrastPair]] | None = None

    def case(self, registry: Registry, model: ModelAdapter, seed: int, n: int, index: int = 0) -> Case:
        """The edit number `index` of a seed. Fitted on one wording and six countries to keep; measured on the other wordings and
        on up to `n` countries it has not been given.
        """
        known = self.known or known_facts(registry, model)
        random = Random(f"capitals/{seed}")
        countries = sorted(known)
        random.shuffle(countries)
        cities = random.sample(CITIES, len(CITIES))
        if index >= len(countries):
            raise DataError(f"the model knows {len(countries)} capitals, case {index} is asked for", do="ask for a smaller case")
        country, city = countries[index], cities[index % len(cities)]
        rest = [c for c in countries if c != country]
        random = Random(f"capitals/{seed}/{index}")
        random.shuffle(rest)
        near, far = rest[:6], rest[6:6 + n]
        first, *others = known[country]
        target = _first_token(model, first.clean.text or "", f" {city}")

        def made(pairs: Sequence[ContrastPair]) -> Batches:
            return batches(model, [_towards(p, target) for p in pairs], batch=8)

        fitted = made([first])
        said = [Example(text=f"{known[c][0].clean.text}{known[c][0].meta['answer']}.", key=c) for c in near]
        return Case(f"{country} -> {city}", EditRequest(fitted, [*neutral(0), *said]), "replace", fitted,
                    {"paraphrases": made(others)},
                    {"neighbours": made([known[c][0] for c in near]), "unseen neighbours": made([known[c][0] for c in far]),
                     "unseen neighbours, other wordings": made([p for c in far[:6] for p in known[c][1:]])}, neutral(1))


def known_facts(registry: Registry, model: ModelAdapter) -> dict[str, list[ContrastPair]]:
    """Country -> a pair in each wording in which its capital is the likeliest token; only countries with wording 0, which is
    first, and another.
    """
    found: dict[tuple[str, str], ContrastPair] = {}
    task: Task[Any] = registry.create("task", "country-capital", templates=())
    for split in ("train", "validation", "test"):
        for pair in task.pairs(model.tokenizer, split, 0):
            found.setdefault((pair.meta["clean"]["country"], pair.meta["case"]), pair)
    tried = batches(model, [_alone(p) for p in found.values()], batch=16)
    order = [int(i) for item in tried for i in item.clean.sequences[:, 0]]
    right = dict(zip(order, rows(model, tried)["answer_top1"].tolist(), strict=True))
    kept: dict[str, list[ContrastPair]] = {}
    for (country, _), pair in sorted(((k, p) for i, (k, p) in enumerate(found.items()) if right[i]), key=lambda item: item[0]):
        kept.setdefault(country, []).append(pair)
    return {c: pairs for c, pairs in kept.items() if len(pairs) > 1 and pairs[0].meta["case"] == "wording-0"}


def _alone(pair: ContrastPair) -> ContrastPair:
    return ContrastPair(pair.clean, None, pair.answer, pair.wrong, {"subject": pair.roles["country"]}, pair.key, pair.meta)


def _towards(pair: ContrastPair, target: int) -> ContrastPair:
    """The prompt, its right answer, and the new one as wrong answer."""
    return ContrastPair(pair.clean, None, pair.answer, (target,), {"subject": pair.roles["country"]}, pair.key, pair.meta)


def _first_token(model: ModelAdapter, prompt: str, answer: str) -> int:
    before = model.tokenizer(prompt)["input_ids"]
    return int(model.tokenizer(prompt + answer)["input_ids"][len(before)])


def _said(registry: Registry, model: ModelAdapter, task: str, options: dict[str, Any], seed: int, n: int) -> list[Example]:
    """Training prompts of a task with their answers, as texts to keep."""
    found = batches(model, registry.create("task", task, **options), split="train", n=n, seed=seed)
    return [Example(text=f"{p.clean.text}{p.meta['answer']}", key=p.key) for p in found.pairs]


def neutral(half: int) -> list[Example]:
    """Every second of the neutral texts: 0 to fit on, 1 to measure on."""
    lines = files(__package__).joinpath("data/neutral.txt").read_text("utf-8").splitlines()
    return [Example(text=line, key=f"neutral-{i}") for i, line in enumerate(lines) if i % 2 == half]


CASES: dict[str, Preference | Facts] = {
    "ioi": Preference("ioi", fitted={"templates": (0, 1, 2, 3)}, held={"templates": (4, 5, 6, 7)}),
    "greater-than": Preference("greater-than"),
    "sva": Preference("sva", fitted={"set": "nounpp"}, held={"set": "rc"}),
    "pronoun": Preference("pronoun"),
    "capitals": Facts(),
}
"""Benchmark -> what makes its cases."""
