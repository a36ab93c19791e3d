"""Tokens that two tokenizers share: paired rows of two (un)embeddings, without running either model.

Shapes: M shared tokens, V vocabulary, A and B widths of the two models.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..interfaces.model import ModelAdapter
from .components import unembedded

_FALLBACK = re.compile(r"<0x[0-9A-Fa-f]{2}>$")


@dataclass(frozen=True)
class SharedVocabulary:
    """Tokens of two tokenizers that stand for the same bytes.

    Args:
        a: [M] ids in the first; b: [M] ids in the second.
        share_a, share_b: M over the ordinary tokens of each.
    """

    a: Tensor
    b: Tensor
    share_a: float
    share_b: float


def token_bytes(tokenizer: Any) -> dict[int, bytes]:
    """Id -> the bytes that a token stands for (a leading space included), for ordinary tokens.

    Left out: special and added tokens, byte fallbacks, control characters, and pieces that are no whole UTF-8 text.

    Raises:
        DataError: the tokenizer does not show how its tokens are spelled.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DataError("the tokenizer does not show how its tokens are spelled", do="use a fast tokenizer (tokenizer.json)")
    spelling = json.dumps(json.loads(backend.to_str()).get("decoder"), ensure_ascii=False)
    byte_of = _byte_alphabet() if "ByteLevel" in spelling else None
    special = {int(i) for i in (*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder)}
    out = {}
    for token, index in tokenizer.get_vocab().items():
        if index in special or _FALLBACK.match(token):
            continue
        if byte_of is not None:
            if not all(c in byte_of for c in token):
                continue
            raw = bytes(byte_of[c] for c in token)
        elif "WordPiece" in spelling:
            raw = (token.removeprefix("##") if token.startswith("##") else f" {token}").encode()
        else:
            raw = token.replace("\u2581", " ").encode()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip("\n\t").isprintable():
            out[index] = raw
    return out


def shared_vocabulary(tokenizer_a: Any, tokenizer_b: Any, *, numbers: bool = True) -> SharedVocabulary:
    """Tokens of the same bytes in both; bytes that several tokens of one tokenizer stand for are left out.

    Args:
        tokenizer_a, tokenizer_b: the tokenizers (Hugging Face interface).
        numbers: whether tokens with a digit count: tokenizers cut numbers by rules of their own, so that the same digits may
            play another part.

    Raises:
        DataError: they share no token.
    """
    found = []
    for tokenizer in (tokenizer_a, tokenizer_b):
        ids: dict[bytes, list[int]] = {}
        for index, raw in token_bytes(tokenizer).items():
            if numbers or not any(48 <= c < 58 for c in raw):
                ids.setdefault(raw, []).append(index)
        found.append({raw: where[0] for raw, where in ids.items() if len(where) == 1})
    common = sorted(found[0].keys() & found[1].keys())
    if not common:
        raise DataError("the two tokenizers share no token", do="pair activations on text")
    a, b = (torch.tensor([ids[raw] for raw in common]) for ids in found)
    return SharedVocabulary(a, b, len(common) / len(found[0]), len(common) / len(found[1]))


def vocabulary_rows(model_a: ModelAdapter[Any], model_b: ModelAdapter[Any], *,
                    numbers: bool = True) -> tuple[Tensor, Tensor, SharedVocabulary]:
    """[M, A], [M, B]: rows of both unembeddings for shared tokens, the gain of the final norm folded in, centred.

    Without the gain a stretch of single coordinates would pass for a difference of the spaces. Models that differ by a rotation
    of the stream have rows that differ by the same rotation.
    """
    shared = shared_vocabulary(model_a.tokenizer, model_b.tokenizer, numbers=numbers)
    rows = []
    for model, ids in ((model_a, shared.a), (model_b, shared.b)):
        found = unembedded(model).detach()[ids.to(model.device)].cpu()
        rows.append(found - found.mean(0))
    return rows[0], rows[1], shared


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level tokenizers write bytes (Radford et al. 2019): printable ones as themselves."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(other)}
