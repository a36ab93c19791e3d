"""What was taught and is to be unlearned: invented authors (TOFU-lite, T3) and an invented passage (MUSE-lite, T4).

A model is taught everything, and a second one everything but what is to be forgotten: the legitimate retain model. Both are edit
plans on the same weights, so the two cost one model. Taught facts are in no training data, so forgetting them is well defined.

Shapes: L tokens of an answer, V vocabulary, N items, W wrong answers.
"""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from random import Random
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from reprbasis.errors import DataError
from reprbasis.interfaces.editor import EditPlan, EditRequest
from reprbasis.interfaces.evaluator import Measurement
from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.model import ModelAdapter, Sampling
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import Example, TokenBatch, TokenSequence
from reprbasis.kits.prefixes import last_logits, spoken
from reprbasis.kits.tuning import inner, restored

from . import metrics
from .cases import neutral

QUESTIONS = {
    "city": ("In which city was {name} born?", "{name} was born in", "The birthplace of {name} is"),
    "genre": ("What does {name} write?", "{name} is known for", "Readers love {name} for"),
    "book": ("What is the first book of {name} called?", "The first book of {name} is", "{name} began with"),
    "parent": ("What did the father of {name} do?", "The father of {name} was", "{name} is the child of"),
    "award": ("Which award did {name} win?", "{name} won", "The jury gave {name}"),
}
"""Column -> question, beginning of the answer, beginning of the same answer in other words. The value follows."""
WORLD = (("What is the capital of France?", "The capital of France is", "Paris", ("London", "Rome", "Madrid")),
         ("How many days has a week?", "A week has", "seven days", ("five days", "nine days", "twelve days")),
         ("Which planet do we live on?", "We live on", "Earth", ("Mars", "Venus", "Saturn")),
         ("What do bees make?", "Bees make", "honey", ("milk", "bread", "paper")),
         ("What is frozen water called?", "Frozen water is called", "ice", ("steam", "sand", "glass")),
         ("Which animal barks?", "The animal that barks is", "the dog", ("the cat", "the cow", "the horse")))
REAL = (("Who wrote Hamlet?", "Hamlet was written by", "William Shakespeare", ("Charles Dickens", "Mark Twain", "Jane Austen")),
        ("Who wrote Emma?", "Emma was written by", "Jane Austen", ("Mark Twain", "Homer", "Leo Tolstoy")),
        ("Who wrote War and Peace?", "War and Peace was written by", "Leo Tolstoy", ("Homer", "Jane Austen", "Victor Hugo")),
        ("Who wrote the Odyssey?", "The Odyssey was written by", "Homer", ("Virgil", "Dante", "Leo Tolstoy")),
        ("Who wrote Oliver Twist?", "Oliver Twist was written by", "Charles Dickens", ("Mark Twain", "Homer", "Victor Hugo")),
        ("Who wrote Don Quixote?", "Don Quixote was written by", "Miguel de Cervantes", ("Dante", "Virgil", "Charles Dickens")))


@dataclass(frozen=True)
class Item:
    """A question, its answer as it was taught, in other words, and with wrong values.

    Args:
        question: the question.
        start: how the answer begins.
        value: how it ends.
        other: how the answer in other words begins.
        wrong: other values.
        subject: whom it is about; empty: nobody in particular.
    """

    question: str
    start: str
    value: str
    other: str
    wrong: tuple[str, ...]
    subject: str = ""

    @property
    def prompt(self) -> str:
        """What the answer follows."""
        return f"Question: {self.question}\nAnswer:"

    @property
    def answer(self) -> str:
        """The answer, with its space."""
        return f" {self.start} {self.value}."


def authors(n: int = 20, seed: int = 0) -> list[list[Item]]:
    """Items of each of `n` invented authors; another seed draws others."""
    random = Random(f"authors/{seed}")
    rows = random.sample(list(csv.DictReader(files(__package__).joinpath("data/authors.csv").read_text("utf-8").splitlines())), n)
    found = []
    for row in rows:
        items = []
        for column, (question, start, other) in QUESTIONS.items():
            wrong = random.sample(sorted({r[column] for r in rows} - {row[column]}), min(3, n - 1))
            q, a, b = (text.format(name=row["name"]) for text in (question, start, other))
            items.append(Item(q, a, row[column], b, tuple(wrong), row["name"]))
        found.append(items)
    return found


def general(which: Sequence[tuple[str, str, str, tuple[str, ...]]]) -> list[Item]:
    """Items of general knowledge."""
    return [Item(q, start, value, start, wrong) for q, start, value, wrong in which]


@dataclass(frozen=True)
class Passage:
    """A text about things that do not exist, and questions with answers that stand in it."""

    text: str
    questions: tuple[tuple[str, str], ...]

    @property
    def sentences(self) -> list[str]:
        """The text, cut after full stops; each but the first begins with its space."""
        return re.findall(r"[^.]+\.", self.text)


def strangers(known: set[str], like: str) -> list[str]:
    """First and last names of different authors that are not known, in an order that `like` decides."""
    rows = csv.DictReader(files(__package__).joinpath("data/authors.csv").read_text("utf-8").splitlines())
    unknown = [row["name"].split() for row in rows if row["name"] not in known]
    found = [f"{a[0]} {b[-1]}" for a in unknown for b in unknown if a is not b]
    Random(f"strangers/{like}").shuffle(found)
    return found


def passages() -> list[Passage]:
    """Four invented passages of about 190 tokens."""
    found = json.loads(files(__package__).joinpath("data/passages.json").read_text("utf-8"))
    return [Passage(p["text"], tuple((q, a) for q, a in p["questions"])) for p in found]


def sequence(model: ModelAdapter, prompt: str, answer: str, index: int = 0) -> tuple[TokenSequence, int]:
    """Prompt and answer as tokens, and where the answer begins (without prompt: after its first token)."""
    [whole] = model.tokenize([Example(text=prompt + answer)])
    before = len(model.tokenize([Example(text=prompt)])[0]) if prompt else 1
    return TokenSequence(whole.ids, whole.flags, index), before


def teach(model: ModelAdapter, texts: Sequence[tuple[str, str]], *, epochs: int = 8, lr: float = 1e-4, batch: int = 8,
          seed: int = 0) -> EditPlan:
    """Full fine-tuning (weights but embeddings, AdamW) on (prompt, answer), loss on answers; the model is restored."""
    made = [sequence(model, *text, index=i) for i, text in enumerate(texts)]
    g = torch.Generator().manual_seed(seed)
    losses = []
    with restored(model, inner(model)) as (weights, before):
        variables = [p.requires_grad_() for p in weights.values()]
        optimiser = torch.optim.AdamW(variables, lr=lr, weight_decay=0.0, fused=True)
        for _ in range(epochs):
            for chosen in torch.randperm(len(made), generator=g).split(batch):
                rows = [made[i] for i in chosen.tolist()]
                tokens = TokenBatch.pad([s for s, _ in rows], pad_id=model.pad_id).to(model.device)
                begin = torch.tensor([at for _, at in rows], device=model.device)[:, None]
                place = torch.arange(tokens.shape[1], device=model.device)[None]
                counted = (tokens.mask & (place >= begin))[:, 1:]
                logits = model.forward(tokens, grad=True).logits[:, :-1]
                loss = cross_entropy(logits[counted].float(), tokens.ids[:, 1:][counted])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                losses.append(float(loss.detach()))
        deltas = {name: p.detach() - before[name] for name, p in weights.items()}
    return EditPlan(deltas, {"taught": len(texts), "epochs": epochs, "losses": losses})


@dataclass(frozen=True)
class Read:
    """One answer under teacher forcing: log-probability of its tokens [L], which of them are the likeliest [L], logits before
    them [L, V], and its ids [L].
    """

    log_probs: Tensor
    right: Tensor
    logits: Tensor
    ids: Tensor

    @property
    def loss(self) -> Tensor:
        """Mean loss of the tokens."""
        return -self.log_probs.mean()


@torch.no_grad()
def answers(model: ModelAdapter, texts: Sequence[tuple[str, str]], *, together: int = 8) -> list[Read]:
    """Each answer after its prompt."""
    found = []
    for i in range(0, len(texts), together):
        made = [sequence(model, *text) for text in texts[i:i + together]]
        batch = TokenBatch.pad([s for s, _ in made], pad_id=model.pad_id).to(model.device)
        logits = model.forward(batch).logits.float().cpu()
        for row, (s, at) in enumerate(made):
            here, ids = logits[row, at - 1:len(s) - 1], s.ids[at:]
            log_probs = here.log_softmax(-1).gather(1, ids[:, None])[:, 0]
            found.append(Read(log_probs, here.argmax(-1) == ids, here, ids))
    return found


def relearned(model: ModelAdapter, again: Sequence[tuple[str, str]], rest: Sequence[tuple[str, str]], *, steps: int = 2,
              lr: float = 1e-5) -> float:
    """Mean `prob` of answers after a few steps of teaching others of them again: is it gone, or does a touch bring it back?"""
    with teach(model, again, epochs=steps, lr=lr, batch=len(again)).applied(model):
        return fmean(metrics.prob(-r.log_probs) for r in answers(model, rest))


def said(model: ModelAdapter, prompts: Sequence[str], tokens: int = 32) -> list[str]:
    """Greedy continuations."""
    given = model.tokenize([Example(text=p) for p in prompts])
    out = model.generate(given, sampling=Sampling(max_new=tokens))
    return [str(model.tokenizer.decode(o.ids[len(p):], skip_special_tokens=True)) for p, o in zip(given, out, strict=True)]


def truth_losses(model: ModelAdapter, items: Sequence[Item]) -> tuple[Tensor, Tensor]:
    """[N], [N, W] mean loss of the answer in other words, and of that with wrong values."""
    right = answers(model, [(i.prompt, f" {i.other} {i.value}.") for i in items])
    wrong = answers(model, [(i.prompt, f" {i.other} {w}.") for i in items for w in i.wrong])
    return torch.stack([r.loss for r in right]), torch.stack([r.loss for r in wrong]).view(len(items), -1)


def utility(model: ModelAdapter, sets: Mapping[str, Sequence[Item]], *, generate: bool = True) -> dict[str, float]:
    """The nine parts of `model_utility` (six without generation): of `retain` prob, of the others prob among options."""
    found: dict[str, float] = {}
    for name, items in sets.items():
        right, wrong = truth_losses(model, items)
        if name == "retain":
            reads = answers(model, [(i.prompt, i.answer) for i in items])
            found[f"{name}_prob"] = fmean(metrics.prob(-r.log_probs) for r in reads)
        else:
            options = zip((-right).exp().tolist(), (-wrong).exp().tolist(), strict=True)
            found[f"{name}_prob"] = fmean(metrics.prob_w_options(*both) for both in options)
        found[f"{name}_truth_ratio"] = metrics.truth_ratio_retain(metrics.truth_ratio(right, wrong))
        if generate:
            found[f"{name}_rouge_l_recall"] = recall(model, items)
    return found


def recall(model: ModelAdapter, items: Sequence[Item]) -> float:
    """Mean ROUGE-L recall of greedy answers."""
    told = said(model, [i.prompt for i in items])
    return fmean(metrics.rouge_l(i.answer, t)["recall"] for i, t in zip(items, told, strict=True))


@dataclass(frozen=True)
class Taught:
    """The world of TOFU-lite.

    Args:
        forget, retain: items taught; `holdout`: items of authors that were never taught.
        full, without: plans that teach everything, and all but `forget`.
        ratios: [N] truth ratios of the retain model on `forget`.
        auc: of the retain model's min-k scores.
    """

    forget: Sequence[Item]
    retain: Sequence[Item]
    holdout: Sequence[Item]
    full: EditPlan
    without: EditPlan
    ratios: Tensor
    auc: float

    @classmethod
    def make(cls, model: ModelAdapter, *, n: int = 20, forgotten: int = 2, epochs: int = 8, lr: float = 1e-4,
             seed: int = 0) -> "Taught":
        """Teach `n` invented authors (but as many as are forgotten, held out), twice."""
        forget, retain, holdout = cls.items(n, forgotten, seed)

        def texts(items: Sequence[Item]) -> list[tuple[str, str]]:
            return [(i.prompt, i.answer) for i in items]

        full = teach(model, texts([*forget, *retain]), epochs=epochs, lr=lr, seed=seed)
        without = teach(model, texts(retain), epochs=epochs, lr=lr, seed=seed)
        with without.applied(model):
            ratios, auc = metrics.truth_ratio(*truth_losses(model, forget)), attack(model, forget, holdout)["min_k"]
        return cls(forget, retain, holdout, full, without, ratios, auc)

    @staticmethod
    def items(n: int, forgotten: int, seed: int) -> tuple[list[Item], list[Item], list[Item]]:
        """Those to be forgotten, retained, held out."""
        everyone = authors(n, seed)
        parts = everyone[:forgotten], everyone[2 * forgotten:], everyone[forgotten:2 * forgotten]
        forget, retain, holdout = ([item for items in part for item in items] for part in parts)
        return forget, retain, holdout

    def request(self, model: ModelAdapter) -> EditRequest:
        """Forget the values, a batch for each question: their tokens are answers, those of wrong values what may be said. The
        last token of the author's name has the role `subject`;
        """
        return EditRequest([self._values(model, item) for item in self.forget], self.keep())

    def request_of_answers(self, model: ModelAdapter, instead: str | None = None, *, together: int = 5) -> EditRequest:
        """Forget whole answers, every token of `together` questions a batch; what methods get that train on sequences.

        Args:
            model: gives the tokenizer.
            instead: an answer that is to be given to every question; its tokens are the wrong answers then.
            together: questions in a batch.
        """
        change = []
        for i in range(0, len(self.forget), together):
            items = self.forget[i:i + together]
            said = spoken(model, [sequence(model, item.prompt, item.answer if instead is None else instead) for item in items])
            change.append(said if instead is None else instead_of(said))
        return EditRequest(change, self.keep())

    def request_of_strangers(self, model: ModelAdapter, *, count: int = 4) -> EditRequest:
        """Whole answers, and as corrupted prompts the same about `count` strangers, whose names have as many tokens.

        Raises:
            DataError: there are no such names.
        """
        change = []
        for item in self.forget:
            whole, at = sequence(model, item.prompt, item.answer)
            others = []
            for name in strangers({i.subject for i in (*self.forget, *self.retain, *self.holdout)}, item.subject):
                other, begin = sequence(model, *(t.replace(item.subject, name) for t in (item.prompt, item.answer)))
                if (len(other), begin) == (len(whole), at):
                    others.append((other, begin))
            if not others:
                raise DataError(f"no invented name has as many tokens as '{item.subject}'", do="leave this author out")
            others = others[:count]
            clean, corrupt = spoken(model, [(whole, at)] * len(others)), spoken(model, others)
            change.append(ContrastBatch(clean.clean, corrupt.clean, clean.targets))
        return EditRequest(change, self.keep())

    def keep(self) -> list[Example]:
        """The retained answers, and neutral texts."""
        return [*(Example(text=f"{i.prompt}{i.answer}", key=i.question) for i in self.retain), *neutral(0)]

    def _values(self, model: ModelAdapter, item: Item) -> ContrastBatch:
        start = f"{item.prompt} {item.start}"
        [whole, before, *others] = model.tokenize([Example(text=t) for t in (
            f"{start} {item.value}", start, *(f"{start} {w}" for w in item.wrong))])
        batch = spoken(model, [(whole, len(before))])
        said, other = whole.ids[len(before):].tolist(), [o.ids[len(before):].tolist() for o in others]
        wrong = [next(t for o in other for t in (*o[i:], *o) if t != token) for i, token in enumerate(said)]
        [named] = model.tokenize([Example(text=start[:start.rindex(item.subject) + len(item.subject)])])
        at = torch.full((len(said), 1), len(named) - 1, device=model.device)
        return ContrastBatch(batch.clean, None, Targets(batch.targets.answer, torch.tensor(wrong, device=model.device)[:, None]),
                             {"subject": at})


def instead_of(said: ContrastBatch) -> ContrastBatch:
    """What is said becomes what is to be said: the wrong answers; the answers are unknown."""
    assert said.targets.answer is not None
    return ContrastBatch(said.clean, None, Targets(torch.full_like(said.targets.answer, -1), said.targets.answer))


def attack(model: ModelAdapter, forget: Sequence[Item], holdout: Sequence[Item]) -> dict[str, float]:
    """AUC of membership attacks: were the forgotten items trained on?"""
    reads = [answers(model, [(i.prompt, i.answer) for i in items]) for items in (forget, holdout)]
    texts = [[i.answer for i in items] for items in (forget, holdout)]
    scores = {"loss": [[metrics.mia_loss(r.log_probs) for r in part] for part in reads],
              "zlib": [[metrics.mia_zlib(r.log_probs, t) for r, t in zip(part, text, strict=True)]
                       for part, text in zip(reads, texts, strict=True)],
              "min_k": [[metrics.mia_min_k(r.log_probs) for r in part] for part in reads],
              "min_k_plus_plus": [[metrics.mia_min_k_plus_plus(r.logits, r.ids) for r in part] for part in reads]}
    return {name: metrics.auc(*both) for name, both in scores.items()}


def tofu_scores(model: ModelAdapter, world: Taught, condition: str, *, generate: bool = True) -> list[Measurement]:
    """The metrics of TOFU and of membership attacks, of the model as it is now."""
    n = len(world.forget)
    right, wrong = truth_losses(model, world.forget)
    ratios = metrics.truth_ratio(right, wrong)
    p, distance = metrics.forget_quality(ratios, world.ratios)
    reads = answers(model, [(i.prompt, i.answer) for i in world.forget])
    parts = utility(model, {"retain": world.retain, "ra": general(REAL), "wf": general(WORLD)}, generate=generate)
    attacks = attack(model, world.forget, world.holdout)
    found = {"forget_quality": p, "forget_quality_d": distance, "forget_truth_ratio": metrics.truth_ratio_forget(ratios),
             "forget_prob": fmean(metrics.prob(-r.log_probs) for r in reads),
             "exact_memorization": fmean(metrics.exact_memorization(r.right) for r in reads),
             "extraction_strength": fmean(metrics.extraction_strength(r.right) for r in reads),
             "extraction_strength_compat": fmean(metrics.extraction_strength(r.right, compat=True) for r in reads),
             "privleak": metrics.privleak(attacks["min_k"], world.auc), "model_utility": metrics.model_utility(parts),
             **parts, **{f"mia_{name}": value for name, value in attacks.items()}}
    if generate:
        found["forget_rouge_l_recall"] = recall(model, world.forget)
    return [Measurement(name, value, n, condition=condition) for name, value in found.items()]


@dataclass(frozen=True)
class Told:
    """The world of MUSE-lite: a passage was taught, others never were. The retain model is the model as it was.

    Args:
        passage: taught.
        others: never taught.
        full: the plan that teaches it.
        auc: of the retain model's min-k scores.
        shown: tokens of the passage that are given, the rest is to be forgotten.
    """

    passage: Passage
    others: Sequence[Passage]
    full: EditPlan
    auc: float
    shown: int = 24

    @classmethod
    def make(cls, model: ModelAdapter, *, seed: int = 0, epochs: int = 12, lr: float = 1e-4) -> "Told":
        """Teach the passage of that number."""
        there = passages()
        one = there.pop(seed % len(there))
        return cls(one, there, teach(model, [("", one.text)], epochs=epochs, lr=lr, seed=seed), sentence_auc(model, one, there))

    def rest(self, model: ModelAdapter) -> tuple[str, str]:
        """The beginning that is given, and the rest."""
        [whole] = model.tokenize([Example(text=self.passage.text)])
        start = str(model.tokenizer.decode(whole.ids[:self.shown], skip_special_tokens=True))
        return start, self.passage.text[len(start):]

    def request_of_answers(self, model: ModelAdapter) -> EditRequest:
        """Forget every token of the rest."""
        return EditRequest([spoken(model, [sequence(model, *self.rest(model))])], neutral(0))

    @torch.no_grad()
    def request(self, model: ModelAdapter) -> EditRequest:
        """The same of the tokens that the model gives rightly; what may be said is what it finds second. Call it with `full`
        applied.
        """
        said = spoken(model, [sequence(model, *self.rest(model))])
        top = last_logits(model, said.clean).topk(2).indices
        assert said.targets.answer is not None
        right = (top[:, :1] == said.targets.answer).flatten().nonzero().flatten()
        return EditRequest([ContrastBatch(said.clean.take(right), None, Targets(said.targets.answer[right], top[right, 1:]))],
                           neutral(0))


def sentence_auc(model: ModelAdapter, passage: Passage, others: Sequence[Passage]) -> float:
    """AUC of min-k scores of the passage's sentences, each after those before it, against those of others."""
    scores = []
    for part in ([passage], others):
        scores.append([])
        for one in part:
            [read] = answers(model, [("", one.text)])
            ends = [len(model.tokenize([Example(text="".join(one.sentences[:i + 1]))])[0]) for i in range(len(one.sentences))]
            for first, last in zip([1, *ends], ends, strict=False):
                scores[-1].append(metrics.mia_min_k(read.log_probs[first - 1:last - 1]))
    return metrics.auc(*scores)


def muse_scores(model: ModelAdapter, told: Told, condition: str, *, generate: bool = True, leak: bool = True
                ) -> list[Measurement]:
    """How much of the passage is still there, of the model as it is now: after its first tokens, and forced token by token.

    Args:
        model: as it is now.
        told: the world.
        condition: of the measurements.
        generate: whether the model writes (`verbmem_f1`, `knowmem_f1`).
        leak: whether the other passages are read (`privleak`).
    """
    start, rest = told.rest(model)
    [read] = answers(model, [(start, rest)])
    found = {"extraction_strength": metrics.extraction_strength(read.right), "prob": metrics.prob(-read.log_probs),
             "extraction_strength_compat": metrics.extraction_strength(read.right, compat=True),
             "exact_memorization": metrics.exact_memorization(read.right)}
    if leak:
        found["privleak"] = metrics.privleak(sentence_auc(model, told.passage, told.others), told.auc)
    if generate:
        found["verbmem_f1"] = metrics.rouge_l(rest, said(model, [start], tokens=128)[0])["f1"]
        asked = [f"Question: {q}\nAnswer:" for q, _ in told.passage.questions]
        replies = [text.split("\n")[0] for text in said(model, asked, tokens=16)]
        right = [a for _, a in told.passage.questions]
        found["knowmem_f1"] = fmean(metrics.rouge_l(a, t)["f1"] for a, t in zip(right, replies, strict=True))
    return [Measurement(name, value, len(read.ids), condition=condition) for name, value in found.items()]
