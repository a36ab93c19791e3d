"""Numbers for what a model writes: likelihood under the unsteered model, repetition, and checks by rule.

Shapes: B batch, T tokens, P positions.
"""

import json
import re
from importlib.resources import files

import torch

from reprbasis.errors import DataError
from reprbasis.interfaces.tokens import Example, Message, TokenBatch

CHECKS = {
    "any": lambda text, wanted: any(re.search(rf"\b{re.escape(w)}\b", text, re.IGNORECASE) for w in wanted),
    "all": lambda text, wanted: all(re.search(rf"\b{re.escape(w)}\b", text, re.IGNORECASE) for w in wanted),
    "none": lambda text, wanted: not any(re.search(rf"\b{re.escape(w)}\b", text, re.IGNORECASE) for w in wanted),
    "starts": lambda text, wanted: text.lstrip(" \n\"'*").lower().startswith(wanted.lower()),
    "words_at_most": lambda text, most: 0 < len(text.split()) <= most,
    "lines_at_least": lambda text, least: sum(bool(line.strip()) for line in text.splitlines()) >= least,
    "matches": lambda text, pattern: re.search(pattern, text) is not None,
}
"""Kind of check -> whether a text passes it, in the manner of IFEval (Zhou et al. 2023, arXiv 2311.07911)."""


def load_prompts(path=None, most=None):
    """[(prompt, check)] from JSON lines; None: the built-in ones.

    Raises:
        DataError: a line is no prompt with a known check, or there are fewer than two.
    """
    source = path or files(__package__).joinpath("data", "prompts.jsonl")
    out = []
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            prompt, check = str(row["prompt"]), dict(row["check"])
            passes("", check)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError("this line is not a prompt with a check", where=f"{source}:{number}",
                            do=f'write {{"prompt": "...", "check": {{"any": ["..."]}}}}; checks: {", ".join(CHECKS)}') from error
        out.append((prompt, check))
    if len(out) < 2:
        raise DataError("there are fewer than two prompts", where=str(source), do="half of them serve to choose, half to test")
    return out[:most]


def passes(text, check):
    """Whether a text passes every part of a check."""
    return all(CHECKS[kind](text, wanted) for kind, wanted in check.items())


def tokenized(model, prompts):
    """The prompts as dialogues that the model is to answer."""
    return model.tokenize([Example(messages=(Message("user", p),), add_prompt=True, key=f"prompt-{i}")
                           for i, (p, _) in enumerate(prompts)])


def answer(model, sequence):
    """The text of a continuation, without the token that ends the turn."""
    kept = sequence.flags["generated"] & ~sequence.flags["special"]
    return str(model.tokenizer.decode(sequence.ids[kept].tolist(), skip_special_tokens=True))


def repetition(ids, n=3):
    """Share of the n-grams of a text that occurred in it before; 0 for a text shorter than two of them."""
    grams = [tuple(ids[i:i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def laid_out(model, sequences):
    """One padded batch, and [B, T] the positions whose next token was generated."""
    batch = TokenBatch.pad(sequences, pad_id=model.pad_id).to(model.device)
    inside = torch.zeros_like(batch.mask)
    inside[:, :-1] = batch.flag("generated")[:, 1:] & batch.mask[:, 1:]
    return batch, inside


def loss(model, sequences):
    """[B] mean cross-entropy of each continuation under the model as it is, nats per token; its exponential is the perplexity."""
    batch, inside = laid_out(model, sequences)
    logits = model.forward(batch).logits
    following = batch.ids.roll(-1, 1)[inside]
    return _means(torch.nn.functional.cross_entropy(logits[inside].float(), following, reduction="none"), inside)


def divergence(model, sequences, logits, edits):
    """[B] mean KL(unsteered || steered) over the positions that write each continuation of the unsteered model, nats.

    `logits` are the unsteered model's at those positions, as `reference` gives them.
    """
    batch, inside = laid_out(model, sequences)
    other = model.forward(batch, edits=edits).logits[inside].float().log_softmax(-1)
    return _means((logits.exp() * (logits - other)).sum(-1), inside)


def _means(values, inside):
    """[B] means of `values`, which lie at the positions `inside` [B, T]; on the CPU."""
    each = values.new_zeros(inside.shape)
    each[inside] = values
    return (each.sum(1) / inside.sum(1)).cpu()


def reference(model, sequences):
    """[P, V] log-probabilities of the unsteered model where it wrote these continuations."""
    batch, inside = laid_out(model, sequences)
    return model.forward(batch).logits[inside].float().log_softmax(-1)


def cliffs_delta(x, y):
    """P(x > y) - P(x < y) over all pairs, between -1 and 1 (Cliff 1993): how far two samples lie apart, whatever their scale."""
    return float(torch.sign(x[:, None] - y[None, :]).mean())
