"""What moves from one model to another: six pairs of models, maps between their layers, and what works after the move.

    python examples/alignment.py runs/quickstart/basis-* --out docs/results/alignment.md

The first run trains two tiny models and a LoRA on the CPU (some minutes; all is kept in `--work`, results too). The basis is the
one that `reprbasis run examples/quickstart.yaml` trains; without one, no dictionary is moved between copies of SmolLM2.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path

import torch
from reprbasis_preference.context import rank
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import reprbasis as rb
from reprbasis.interfaces.task import ContrastPair
from reprbasis.interfaces.tokens import Example
from reprbasis.kits.alignment import findings, judge_sites, match_layers
from reprbasis.kits.anchors import vocabulary_rows
from reprbasis.kits.transfer import head_similarity, transfer_table
from reprbasis.kits.transferred import (
    Contrast,
    Neutral,
    controls,
    first_tokens,
    same_features,
    steering,
    steering_vectors,
    stitched,
    table_agreement,
)
from reprbasis.pipeline.present import present
from reprbasis.runtime.pairs import FINAL, PairedRows, plain
from reprbasis.testing.gauge import gauge_copy

sys.path.insert(0, str(Path(__file__).parent / "tiny_models"))
from text_data import FAMILIES, documents
from text_train import Stage, train

SMOL = "smollm2-135m-instruct"
WIDTH, DEPTH, VOCAB = 128, 4, 700
TRAINING = Stage(220, 0.3, {"ioi": 8, "sva": 12, "dict": 6, "induction": 6, "lookup": 8})
LORA = {"rank": 8, "steps": 30, "batch": 4, "tokens": 48, "rate": 1e-3}


@dataclass(frozen=True)
class Pair:
    """Two models, the text both read, the layers that are compared, paired tokens, maps, and texts for divergences."""

    title: str
    a: str
    b: str
    text: str
    layers: str
    tokens: int
    about: str
    maps: tuple[str, ...] = ("procrustes-scaled", "ridge", "relative")
    texts: int = 12


PAIRS = {
    "gauge": Pair("SmolLM2 and a rotated copy", SMOL, "smol-rotated", "chat", "resid.4::12", 2500,
                  "The same function in other coordinates: gains folded, then the residual stream rotated at random.",
                  ("procrustes-scaled",), 8),
    "lora": Pair("SmolLM2 before and after a LoRA fine-tune", SMOL, "smol-lora", "chat", "resid.4::12", 5000,
                 "A delta of rank 8 on all output matrices, queries and values, trained on templated text.",
                 ("procrustes-scaled", "ridge"), 8),
    "seeds": Pair("Two tiny Llamas, two seeds", "tiny-0", "tiny-1", "tiny", "resid.0:3", 4000,
                  "The same text, tokenizer and recipe; initialisation and order of documents differ."),
    "families": Pair("tiny-qwen3 and a tiny Llama", "tiny-qwen3", "tiny-0", "tiny", "resid.0:3", 4000,
                     "Text of the same families; architecture, width (192 and 128), tokenizer and training differ."),
    "untrained": Pair("A tiny Llama and an untrained one", "tiny-0", "tiny-untrained", "tiny", "resid.0:3", 4000,
                      "The negative control: the second model was never trained."),
    "strangers": Pair("SmolLM2 and tiny-qwen3", SMOL, "tiny-qwen3", "tiny", "resid.4::12/resid.0:3", 1500,
                      "Nothing in common but the text they are given here; widths 576 and 192.", ("procrustes-scaled", "ridge")),
}


# -- models --------------------------------------------------------------------------------------------------------------


class Models:
    """The models by name, made on first use and kept in a folder."""

    def __init__(self, work):
        self.work = work
        self.notes = {}

    @cache  # noqa: B019 - one object lives as long as the run
    def get(self, name):
        """The model."""
        if name == "tiny-qwen3":
            return rb.create("model", "qwen", checkpoint=name)
        if name == SMOL:
            return rb.create("model", "llama", checkpoint=name)
        folder = self.work / name
        if not (folder / "config.json").is_file():
            started = time.monotonic()
            made = {"smol-rotated": self.rotated, "smol-lora": self.tuned}.get(name, self.tiny)(folder, name)
            (folder / "made.json").write_text(json.dumps({**made, "seconds": round(time.monotonic() - started)}), "utf-8")
        self.notes[name] = json.loads((folder / "made.json").read_text("utf-8"))
        return rb.create("model", "llama", checkpoint=str(folder))

    def source(self, folder):
        """SmolLM2 as a directory in Hugging Face layout."""
        model = self.get(SMOL)
        model.network.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        return model

    def rotated(self, folder, name):
        """A rotated copy of SmolLM2."""
        plainly = self.work / "smol"
        width = self.source(plainly).info.d_model
        turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
        gauge_copy(plainly, folder, turn)
        return {}

    def tuned(self, folder, name):
        """SmolLM2 with a LoRA (Hu et al. 2022) merged into it."""
        torch.manual_seed(0)
        network, tokenizer = rb.create("model", "llama", checkpoint=SMOL).network, self.get(SMOL).tokenizer
        chosen = ("q_proj", "v_proj", "o_proj", "down_proj")
        deltas = [Delta.on(m) for n, m in network.named_modules() if n.rpartition(".")[2] in chosen]
        optimiser = torch.optim.AdamW([p for d in deltas for p in (d.down, d.up)], lr=LORA["rate"], weight_decay=0.0)
        streams = [documents(family, "train", 0) for family in FAMILIES]
        text = tokenizer.eos_token.join(next(streams[i % len(streams)]).text for i in range(1000))
        ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
        size = LORA["batch"] * LORA["tokens"]
        losses = []
        for step in range(LORA["steps"]):
            rows = ids[step * size:(step + 1) * size].view(LORA["batch"], LORA["tokens"])
            loss = network(rows, labels=rows).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
            if step % 10 == 0:
                print(f"LoRA step {step}: {losses[-1]:.3f}", file=sys.stderr, flush=True)
        share = [d.merge() for d in deltas]
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {"loss_first_5": sum(losses[:5]) / 5, "loss_last_5": sum(losses[-5:]) / 5,
                "largest_relative_change": max(share), "median_relative_change": sorted(share)[len(share) // 2]}

    def tiny(self, folder, name):
        """A small Llama trained on the templated text of examples/tiny_models, with a tokenizer of its own."""
        seed = 2 if name == "tiny-untrained" else int(name.rpartition("-")[2])
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        network = LlamaForCausalLM(LlamaConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=DEPTH, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
        made = {} if name == "tiny-untrained" else train(network, tokenizer, TRAINING, seed=seed)
        network.eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {"training_tokens": made.get("tokens", 0), "share_of_right_verbs": agreement(rb.create(
            "model", "llama", checkpoint=str(folder)))}


def agreement(model):
    """Share of held-out prompts after which the right one of two verbs has the larger logit."""
    number, _ = contrasts()
    swapped = replace(number, positive=number.negative, negative=number.positive)
    return float(torch.cat([number.effect(model) < 0, swapped.effect(model) > 0]).float().mean())


def tiny_tokenizer():
    """Byte-level BPE of 700 tokens: many words of the text are several."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=["<|endoftext|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator((d.text for f in FAMILIES for d in islice(documents(f, "train", -1), 2000)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


class Delta:
    """A change of low rank of one linear layer."""

    @classmethod
    def on(cls, linear):
        """Put one on a layer."""
        self = cls()
        self.linear = linear
        self.down = (torch.randn(LORA["rank"], linear.in_features) / linear.in_features ** 0.5).requires_grad_()
        self.up = torch.zeros(linear.out_features, LORA["rank"]).requires_grad_()
        self.hook = linear.register_forward_hook(lambda _, given, out: out + given[0] @ self.down.T @ self.up.T)
        return self

    @torch.no_grad()
    def merge(self):
        """Add it to the weight; returns its size relative to the weight's."""
        self.hook.remove()
        change = self.up @ self.down
        share = float(change.norm() / self.linear.weight.norm())
        self.linear.weight.add_(change)
        return share


# -- text ----------------------------------------------------------------------------------------------------------------


def texts(name, split="train"):
    """Plain texts of the pair: the prompts that ship with the corpus `chat`, or templated text."""
    if name == "chat":
        found = list(map(plain, rb.create("corpus", "chat").examples(seed=0)))
        return found[32:] if split == "train" else found[:32]
    streams = [documents(family, split, 7) for family in FAMILIES]
    return (Example(text="\n".join(next(s).text for s in streams), key=str(i)) for i in range(4000))


def contrasts():
    """The number of the subject, and (as the wrong feature) the kind of text."""
    found = {True: [], False: []}
    for d in islice(documents("sva", "test", 3), 400):
        if d.answer in (" are", " have", " is", " has"):
            found[d.answer in (" are", " have")].append(d.prompt)
    number = Contrast("number of the subject", found[True][:48], found[False][:48], (" are", " have"), (" is", " has"))
    kinds = [[d.prompt for d in islice(documents(f, "test", 3), 24)] for f in ("ioi", "lookup")]
    return number, Contrast("kind of text", *kinds, (" is",), (" are",))


# -- one pair ------------------------------------------------------------------------------------------------------------


def compare(pair, made, basis, html, seed=0):
    """The lines of one pair."""
    started = time.monotonic()
    a, b = made.get(pair.a), made.get(pair.b)
    one, _, two = pair.layers.partition("/")
    layers = [a.info.select(one), b.info.select(two or one)]
    rows = PairedRows.gather(a, b, texts(pair.text), *([*sites, FINAL] for sites in layers), tokens=pair.tokens, max_tokens=128)
    first = "procrustes-scaled" if a.info.d_model == b.info.d_model else "procrustes-pca"
    names = [first, *pair.maps[1:]]
    aligners = {name: rb.create("aligner", name) for name in names}
    blocks = ({s: x[s] for s in sites} for x, sites in zip((rows.a, rows.b), layers, strict=True))
    match = match_layers(aligners[names[0]], *blocks, rows.train, rows.validation)
    best = match.best()
    site = list(best)[len(best) // 2]
    there = best[site]
    judged = judge_sites(aligners, rows, list(best.items()), seed=seed)
    w_a, w_b, shared = vocabulary_rows(a, b)
    from_words = judge_sites({"unembedding": rb.create("aligner", "unembedding")}, rows, [(FINAL, FINAL)],
                             anchors=(w_a, w_b), seed=seed)
    if html:
        present(findings(judged, match), html, rb.create("reporter", "html", file=f"{pair.a}-{pair.b}.html"), rb.registry(),
                name=pair.title, seed=seed, writer="examples/alignment.py")
    lines = [f"## {pair.title}", "", pair.about, "", *about(made, pair), *maps(rows, match, judged, from_words, shared), ""]
    chosen = {j.aligner: j.alignment for j in judged if (j.a, j.b) == (site, there)}
    neutral = Neutral(b, [e.text for e in islice(texts(pair.text, "test"), pair.texts)], there, max_tokens=32)
    print(f"  mapped and judged, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    lines += [*steered(a, b, site, there, chosen, neutral), ""]
    lines += [*moved(a, b, rows, site, there, chosen, neutral, basis, pair), ""]
    lines += heads(a, b, {j.a: j.alignment for j in judged if j.aligner == names[0]}, names[0])
    print(f"  all, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return [*lines, "", ""]


def about(made, pair):
    """What is known of the models that were made here."""
    found = {n: made.notes[n] for n in (pair.a, pair.b) if made.notes.get(n)}
    said = [f"{n}: " + ", ".join(f"{k.replace('_', ' ')} {v:.3g}" for k, v in facts.items()) for n, facts in found.items()]
    return [f"{s}." for s in said] + [""] if said else []


def maps(rows, match, judged, from_words, shared):
    """How well layers map."""
    a, b = rows.coverage
    body = [(str(s), *(f"{v:.2f}" for v in r)) for s, r in zip(match.a, match.cosine.tolist(), strict=True)]
    lines = [f"{len(rows.group)} pairs of {len(torch.unique(rows.group))} texts, {int(rows.test.sum())} of them for the test; "
             f"{a:.0%} and {b:.0%} of the tokens found a partner. {len(shared.a)} tokens are in both vocabularies "
             f"({shared.share_a:.0%} and {shared.share_b:.0%}). Left out as longer than 10 medians: {rows.outliers} pairs.", "",
             "Cosine on validation texts, rows: layers of the first model.", "", *grid(("", *map(str, match.b)), body), ""]
    table = []
    for j in [*judged, *from_words]:
        get = {(m.name, m.condition): m for m in j.measurements}
        rivals = [get["cosine", c] for c in ("permuted", "same-frequency", "random") if ("cosine", c) in get]
        worst = max(rivals, key=lambda m: m.value)
        same, beyond = get.get(("cosine", "identity")), get.get(("cosine-context", "map"))
        table.append((f"{j.a} to {j.b}", j.aligner, told(get["r2", "map"]), told(get["cosine", "map"]),
                      "-" if beyond is None else told(beyond),
                      f"{worst.value:.2f} ({worst.condition})", "-" if same is None else f"{same.value:.2f}",
                      f"{get['retrieval@1', 'map'].value:.2f}", f"{get['cka', 'map'].value:.2f}",
                      f"{get['mutual-knn@10', 'map'].value:.2f}", f"{get['relative@1', 'map'].value:.2f}",
                      "yes" if j.verdict.startswith("aligned") else "no"))
    head = ("layers", "map", "R2", "cosine", "beyond the token", "best control", "no map", "retrieval@1", "CKA", "mutual kNN",
            "relative@1", "aligned")
    return [*lines, *grid(head, table)]


def steered(a, b, site, there, chosen, neutral):
    """Steering vectors by every map."""
    number, wrong = contrasts()
    table, seen = [], set()
    for name, alignment in chosen.items():
        vectors = steering_vectors(a, b, alignment, site, there, number, wrong)
        keep = {k: v for k, v in vectors.items() if k in ("native", "mapped", "wrong-feature") or k not in seen}
        seen |= set(keep) - {"mapped", "wrong-feature"}
        found = steering(b, there, number, keep, neutral)
        get = {(m.name, m.condition): m for m in found}
        for condition in keep:
            if condition == "native" and len(table):
                continue
            kl = get.get(("ratio-at-kl", condition))
            cosine = torch.cosine_similarity(keep[condition], keep["native"], dim=-1).mean()
            table.append((name if condition in ("mapped", "wrong-feature") else "-", condition, f"{float(cosine):.2f}",
                          told(get["effect", condition]), told(get["ratio", condition]), f"{get['kl', condition].value:.3f}",
                          "not reached" if kl is None else told(kl)))
    n = get["effect", "native"].n
    return [f"Steering, {number.name}, {site} to {there}: logits of `are`, `have` minus `is`, `has` after {n} prompts with a "
            "singular subject; vector added at the last token.", "",
            *grid(("map", "vector", "cosine to native", "effect, logits", "share of native, same length", "KL, nats",
                   "share of native, same KL"), table)]


def moved(a, b, rows, site, there, chosen, neutral, basis, pair):
    """A dictionary by every map."""
    held = rows.test
    if pair.a == SMOL:
        if basis is None or site not in basis.sites:
            return ["No dictionary was given for this model."]
        mine, native = basis.at([site]), None
    else:
        mine, native = learned(a, site, pair), learned(b, there, pair)
    x = rows.a[site][held]
    left = mine.decode(site, mine.encode(site, x)).float() - x
    lost = left.square().sum() / (x - rows.a[site][~held].mean(0)).square().sum()
    table = []
    for number, (name, alignment) in enumerate(chosen.items()):
        bases = controls(mine, alignment, there)
        if number == 0 and native is not None:
            bases["native"] = native
        keep = bases if number == 0 else {k: bases[k] for k in ("mapped", "wrong-feature")}
        found = stitched(b, keep, rows.b[there][held], rows.group[held], neutral, rows.b[there][~held].mean(0))
        get = {(m.name, m.condition): m for m in found}
        same = {m.condition: m for m in same_features(mine, bases["mapped"], rows) if m.name == "code-correlation"}
        for condition in keep:
            agree = f"{same['mapped'].value:.2f} (another latent's {same['permuted'].value:.2f})" if condition == "mapped" else ""
            by = name if condition in ("mapped", "wrong-feature") else "-"
            table.append((by, condition, told(get["fvu", condition]), f"{get['l0', condition].value:.0f}",
                          told(get["ce-recovered", condition]), agree))
    return [f"Dictionary of {mine.d_dict} latents, {site} to {there}. In its own model it leaves {float(lost):.2f} of the "
            "variance on the same texts.", "",
            *grid(("map", "dictionary", "FVU", "L0", "CE recovered", "correlation of codes"), table)]


@cache
def learned(model, site, pair):
    """A dictionary of one site of a tiny model, from templated text."""
    acts = rb.harvest(model, list(islice(texts(pair.text), 400)), sites=str(site), tokens=20_000, held_out=0)
    return rb.fit(rb.create("learner", "topk", width=512, k=16), acts, rows=120_000, batch=2048, buffer=2 ** 15, lr=1e-3,
                  capabilities=frozenset({"affine-decoder"}))


def pairs(model, family, n=32):
    """Prompts with an answer and a wrong answer, for any tokenizer: their first tokens."""
    found = ((d, first_tokens(model, [d.answer, d.wrong[0]])) for d in documents(family, "test", 5))
    for d, ids in islice(((d, ids) for d, ids in found if len(ids) == 2), n):  # names may begin alike
        yield ContrastPair(Example(text=d.prompt), None, ids[:1], ids[1:], key=d.prompt)


def heads(a, b, alignments, name):
    """Tables of heads."""
    alike = head_similarity(a, b, alignments)
    order = torch.randperm(len(alike), generator=torch.Generator().manual_seed(0))
    flat = {s: replace(x, matrix=torch.eye(*x.matrix.shape), inverse=torch.eye(*x.inverse.shape)) for s, x in alignments.items()}
    tables = {}
    for key, model, family in (("mine", a, "sva"), ("wrong", a, "ioi"), ("theirs", b, "sva")):
        tables[key] = rank(model, rb.batches(model, pairs(model, family))).values["gain"][:, :model.info.n_heads].flatten()
    unmapped = head_similarity(a, b, flat)
    found = table_agreement(tables["theirs"], {
        "mapped": transfer_table(tables["mine"], alike), "wrong-feature": transfer_table(tables["wrong"], alike),
        "random": transfer_table(tables["mine"][order], alike), "unmapped": transfer_table(tables["mine"], unmapped)})
    likeness = alike.max(0).values
    return [f"Preference of {alike.shape[1]} heads for the right verb after 32 prompts: rank correlation of the second model's "
            f"own table with the first's, moved to the head that does the most similar thing to the stream (by {name}; likeness "
            f"of the best partner: median {float(likeness.median()):.2f}).", "",
            *grid(("table", "Spearman"), [(m.condition, told(m)) for m in found])]


# -- the page ------------------------------------------------------------------------------------------------------------


def told(m):
    """A measurement and its interval."""
    return f"{m.value:.2f}" + ("" if m.low is None else f" ({m.low:.2f} to {m.high:.2f})")


def grid(head, rows):
    """A table."""
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(r) + " |" for r in rows)]


def main():
    """Make the models, compare every pair, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("basis", type=Path, nargs="?", help="a basis of SmolLM2 over resid.*")
    parser.add_argument("--work", type=Path, default=Path("runs/alignment"), help="where made models are kept")
    parser.add_argument("--again", action="store_true", help="compare again what was compared before")
    parser.add_argument("--only", choices=PAIRS, action="append", help="compare this pair alone (repeatable)")
    parser.add_argument("--out", type=Path, help="write the page here")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    made, basis = Models(given.work), rb.load(given.basis) if given.basis else None
    parts = []
    for key in given.only or PAIRS:
        print(f"{time.strftime('%H:%M:%S')} {key}", file=sys.stderr, flush=True)
        kept = given.work / f"{key}.md"
        if given.again or not kept.is_file():
            kept.write_text("\n".join(compare(PAIRS[key], made, basis, given.work)), "utf-8")
        parts.append(kept.read_text("utf-8"))
        only = "".join(f" --only {k}" for k in given.only or ())
        text = HEAD.format(basis=given.basis.name if given.basis else "BASIS", only=only) + "\n".join(parts)
        if given.out:
            given.out.write_text(text.rstrip() + "\n", "utf-8")
    print(text)


HEAD = """# What moves from one model to another

Command: `python examples/alignment.py runs/quickstart/{basis}{only} --out docs/results/alignment.md` (one seed).

For each pair both models read the same texts, and rows are paired where their tokens end at the same character. For each layer of
the first model the layer of the second is chosen on validation texts; maps are then fitted to all texts but those of the test,
where every number here is measured. `beyond the token` is the cosine after the mean of the row's token is taken off, on both
sides: what the map knows of the context. `best control` is the best of a map fitted to broken pairs, to pairs broken within
frequencies of tokens, and a random rotation; `no map` takes rows as they are. CKA (unbiased), mutual kNN and relative@1 need no
map.
Intervals: 95 % bootstrap over texts (maps), prompts (steering; the six directions for `random`),
heads (tables).

## What the numbers say

Written by hand after the run below; other runs will differ.

- A rotated copy gives everything back: map, steering vector, dictionary and the table of 270 heads to every digit shown; no
  control comes near. That is the instrument, working.
- After a LoRA fine-tune everything moves: 0.9 of the effect of a native vector, FVU 0.30 (0.32 at home), 0.77 rank correlation of
  the table. But the map is hardly needed: as it stands the vector does as well (0.91), and so does the table (0.76). The
  dictionary gains a little (FVU 0.30 against 0.33), activations at resid.28, where the models differ most, some more (cosine 0.85
  with ridge, 0.78 without any map).
- Between seeds and between families a dictionary moves in good part: FVU 0.22 and 0.18, native 0.12 and 0.06, controls above 0.6;
  its latents fire on the same tokens (correlation 0.5 to 0.8). A steering vector moves in part, 0.3 and 0.5 of the native
  effect at the same length or the same divergence, random ones 0.1. There a rotation moves vectors better than ridge does,
  although ridge predicts activations better.
- Tables of heads do not move between models that were trained apart: the most similar head is hardly similar (0.02 to 0.04), and
  with 16 heads no correlation differs from 0.
- A high cosine is no proof that two models think alike. A tiny Llama maps to one that was never trained with a cosine of 0.6 and
  the verdict `aligned`: both streams tell which token they are at. Beyond the token that is 0.14; it is 0.31 between seeds, 0.25
  between families, 0.86 after LoRA. Steering shares mean nothing there, the native effect being 0.05 logits.
- Cross-entropy recovered hardly tells a good dictionary from a random rotation of one where 16 of 128 directions are active
  (0.96 and 0.91 between seeds); FVU and the correlation of codes do.
- Between SmolLM2 and tiny-qwen3 something maps (beyond the token 0.33 to 0.37 with ridge) and some of it is useful: ridge moves
  0.67 of the steering effect at the same length, 0.40 at the same divergence (a random vector: 0.11 and 0.35), the rotation after
  PCA 0.33; no dictionary moves. With one pair of rows left in, the second token of one text, 119 times as long as the median
  row, every map of resid.16 was worthless (R2 0.01 instead of 0.60): such rows are left out and counted.
- Relative representations are the weakest map here, and the unembedding's map is far behind those fitted to activations, except
  between copies.
- Small: one seed of everything, one behaviour, 16 to 136 texts; in the pairs with SmolLM2 fewer than 8 pairs for a dimension.

"""


if __name__ == "__main__":
    main()
