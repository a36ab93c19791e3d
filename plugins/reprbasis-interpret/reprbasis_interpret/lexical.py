"""Judge `lexical`: how a token and the one before it are spelled, weighed by naive Bayes. No model, no embedding.

Each clue weighs log P(clue | marked) - log P(clue | not marked), with smoothed counts from the passages shown; a token's value is
the sum over its clues. It is a lower bound of what can be told from text, and quick enough to judge every latent there is.
"""

import string
from collections import Counter
from math import log

from .config import LexicalConfig
from .tokenwise import TokenJudge

KEPT = 5
"""Clues named in an explanation."""


class Lexical(TokenJudge):
    """See the module."""

    config: LexicalConfig

    def learn(self, yes, no, model):
        """Log odds of every clue of a marked token."""
        have, lack = (Counter(c for p, i in some for c in clues(p.tokens, i)) for some in (yes, no))
        a = self.config.smoothing
        odds = {c: log((n + a) / (len(yes) + 2 * a)) - log((lack[c] + a) / (len(no) + 2 * a)) for c, n in have.items()}
        best = sorted((c for c in odds if odds[c] > 0), key=lambda c: -odds[c] * have[c])[:KEPT]
        return ", or ".join(best) if best else "nothing that tells them apart", {"odds": odds}

    def value(self, details, passage, place, model):
        """Sum of the log odds of the token's clues; a clue that was never marked counts 0."""
        return sum(details["odds"].get(c, 0.0) for c in clues(passage.tokens, place))


def clues(tokens, place):
    """What can be seen of a token: spelling, kind, ending, and the word before it."""
    token = tokens[place]
    word = token.strip().lower()
    out = [f"spelled {token!r}", f"a {_kind(token)}"]
    if word and token != word:
        out.append(f"the word {word!r}")
    if len(word) > 4 and word.isalpha():
        out.append(f"ending in {word[-3:]!r}")
    if place:
        before = tokens[place - 1]
        out += [f"after {before.strip().lower() or before!r}", f"after a {_kind(before)}"]
    return out


def _kind(token):
    word = token.strip()
    if not word:
        return "line break" if "\n" in token else "space"
    if word.startswith("<|") and word.endswith("|>"):
        return "control token"
    if all(c in string.punctuation for c in word):
        return "punctuation mark"
    if any(c.isdigit() for c in word):
        return "number"
    if not token[:1].isspace():
        return "word without a space before it" if word.islower() else "capitalised piece"
    return "lower-case word" if word.islower() else "capitalised word"
