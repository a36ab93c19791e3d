"""Measure a text model on held-out documents of `text_data.py`, beside chance and a shuffled control.

    python examples/tiny_models/text_measure.py [CHECKPOINT] [--use qwen] [--n 400]

Shapes: B documents, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from itertools import islice
from typing import Any

import torch
from text_data import FAMILIES, Document, documents
from torch import Tensor

import reprbasis as rb
from reprbasis.interfaces.tokens import Example


def main() -> None:
    """Print the table as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", default="tiny-qwen3")
    parser.add_argument("--use", default="qwen", help="the model adapter")
    parser.add_argument("--n", type=int, default=400)
    args = parser.parse_args()
    print(json.dumps(measure(rb.create("model", args.use, checkpoint=args.checkpoint), n=args.n), indent=1))


def measure(model: Any, *, n: int = 400) -> dict[str, dict[str, Any]]:
    """By family, from `n` held-out documents each: how often the last answer has the largest logit of its alternatives.

    Beside `accuracy`: `cases`, the same by case; `top1`, the largest logit of the vocabulary; `shuffled`, the same as `accuracy`
    when every prompt is replaced by another document's; `chance`, the best guess that reads no prompt.
    """
    return {family: _figures(model, list(islice(documents(family, "test", 0), n))) for family in FAMILIES}


def _figures(model: Any, found: list[Document]) -> dict[str, Any]:
    logits = torch.cat([_last_logits(model, found[i:i + 64]) for i in range(0, len(found), 64)])
    options = [[_only(model, text) for text in (d.answer, *d.wrong)] for d in found]
    chosen = [int(row[o].argmax()) == 0 for row, o in zip(logits, options, strict=True)]
    blind = [int(row[o].argmax()) == 0 for row, o in zip(logits.roll(1, 0), options, strict=True)]
    first = [int(row.argmax()) == o[0] for row, o in zip(logits, options, strict=True)]
    cases = sorted({d.task for d in found})
    common = max(Counter(d.answer for d in found).values()) / len(found)
    return {"n": len(found), "accuracy": _share(chosen), "top1": _share(first), "shuffled": _share(blind),
            "chance": round(max(common, sum(1 / len(o) for o in options) / len(found)), 4),
            "cases": {c: _share([yes for yes, d in zip(chosen, found, strict=True) if d.task == c]) for c in cases}}


def _share(yes: list[bool]) -> float:
    return round(sum(yes) / len(yes), 4)


def _last_logits(model: Any, found: list[Document]) -> Tensor:
    """[B, V] after each prompt."""
    logits: Tensor = model.forward(model.batch([Example(text=d.prompt) for d in found]), logits="last").logits
    return logits[:, 0]


def _only(model: Any, answer: str) -> int:
    [one] = model.tokenizer(answer)["input_ids"]
    return int(one)


if __name__ == "__main__":
    main()
