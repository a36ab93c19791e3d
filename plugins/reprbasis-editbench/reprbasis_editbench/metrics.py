"""Metrics of unlearning and editing, under the names that open-unlearning gives them, from numbers alone.

Formulas after TOFU (Maini et al. 2024), MUSE (Shi et al. 2024), extraction strength (Carlini et al. 2021), min-k (Shi et al.
2023), min-k++ (Zhang et al. 2024). With `compat` a function repeats a quirk of open-unlearning's code, which its docstring names.

Shapes: N items, W wrong answers, L tokens of an answer, V vocabulary.
"""

import zlib
from collections.abc import Mapping, Sequence
from statistics import harmonic_mean

import torch
from scipy.stats import ks_2samp, rankdata
from torch import Tensor


def prob(nll: Tensor) -> float:
    """exp(-mean loss of the answer's tokens [L]): length-normalised probability."""
    return float((-nll.mean()).exp())


def prob_w_options(right: float, wrong: Sequence[float]) -> float:
    """Probability of the right answer among the options."""
    return right / (right + sum(wrong))


def truth_ratio(right: Tensor, wrong: Tensor) -> Tensor:
    """[N] ratio of the wrong answers' geometric mean probability to the right (paraphrased) answer's.

    Args:
        right: [N] mean loss of the right answer's tokens.
        wrong: [N, W] mean loss of each wrong answer's tokens.
    """
    return (right - wrong.mean(1)).exp()


def truth_ratio_forget(ratios: Tensor) -> float:
    """Mean of min(R, 1/R): 1 where right and wrong answers are equally likely."""
    return float(torch.minimum(ratios, 1 / ratios).mean())


def truth_ratio_retain(ratios: Tensor) -> float:
    """Mean of max(0, 1 - R): 1 where wrong answers are impossible."""
    return float((1 - ratios).clamp_min(0).mean())


def truth_ratio_prob_mean(right: Tensor, wrong: Tensor) -> float:
    """Mean of p_right / (p_right + p_wrong), of the same losses as `truth_ratio`."""
    return float((1 / (1 + truth_ratio(right, wrong))).mean())


def forget_quality(unlearned: Tensor, retain: Tensor) -> tuple[float, float]:
    """The p value and D of the two-sample Kolmogorov-Smirnov test between the truth ratios [N] of two models.

    The second must have been trained without what was unlearned. With few items the test has little power (at N = 20 each, D
    must exceed 0.43 to reject at 5 %): a p value near 1 is then no proof.
    """
    found = ks_2samp(unlearned.double().numpy(), retain.double().numpy())
    return float(found.pvalue), float(found.statistic)


def model_utility(parts: Mapping[str, float]) -> float:
    """Harmonic mean; 0 if any part is 0."""
    return float(harmonic_mean(list(parts.values()))) if min(parts.values()) > 0 else 0.0


def exact_memorization(right: Tensor) -> float:
    """Share of the answer's tokens [L] (bool) that are the likeliest under teacher forcing."""
    return float(right.double().mean())


def extraction_strength(right: Tensor, *, compat: bool = False) -> float:
    """1 - k/L, where from token k on all tokens [L] (bool) are the likeliest.

    With `compat` an answer whose last token is wrong has 1/L instead of 0 (their loop ends at k = L - 1).
    """
    k = len(right)
    while k > 0 and bool(right[k - 1]):
        k -= 1
    if compat and k == len(right):
        k = len(right) - 1
    return 1 - k / len(right)


def mia_loss(log_probs: Tensor) -> float:
    """Mean loss of the tokens [L]: low means "was trained on"."""
    return float(-log_probs.mean())


def mia_zlib(log_probs: Tensor, text: str) -> float:
    """The same per byte of the compressed text."""
    return mia_loss(log_probs) / len(zlib.compress(text.encode()))


def mia_min_k(log_probs: Tensor, k: float = 0.4) -> float:
    """Mean loss of the least likely share `k` of the tokens [L]."""
    count = max(1, int(len(log_probs) * k))
    return float(-log_probs.sort().values[:count].mean())


def mia_min_k_plus_plus(logits: Tensor, ids: Tensor, k: float = 0.4) -> float:
    """`mia_min_k` of log-probabilities standardised over the vocabulary: logits [L, V] before the tokens [L]."""
    log_p = logits.double().log_softmax(-1)
    p = log_p.exp()
    centre = (p * log_p).sum(-1)
    spread = ((p * log_p.square()).sum(-1) - centre.square()).clamp_min(1e-12).sqrt()
    return mia_min_k((log_p.gather(1, ids[:, None])[:, 0] - centre) / spread, k)


def auc(forget: Sequence[float], holdout: Sequence[float]) -> float:
    """Area under the ROC curve of attack scores; low scores mean "was trained on". 1: what was unlearned still shows."""
    ranks = rankdata([*forget, *holdout])[: len(forget)].sum()
    below = float(ranks) - len(forget) * (len(forget) + 1) / 2
    return 1 - below / (len(forget) * len(holdout))


def privleak(auc_unlearned: float, auc_retain: float = 0.5) -> float:
    """Percent by which 1 - AUC lies above that of the retain model; 0 is ideal, far below: not forgotten, far above: too much."""
    return ((1 - auc_unlearned) - (1 - auc_retain)) / (1 - auc_retain) * 100


def rouge_l(reference: str, said: str) -> dict[str, float]:
    """ROUGE-L by words in lower case: `recall` (TOFU) and `f1` (MUSE); no stemming."""
    a, b = (["".join(c for c in word if c.isalnum()) for word in text.lower().split()] for text in (reference, said))
    longest = [0] * (len(b) + 1)
    for word in a:
        before = longest[:]
        for j, other in enumerate(b):
            longest[j + 1] = before[j] + 1 if word == other else max(before[j + 1], longest[j])
    common = longest[-1]
    recall, precision = common / max(len(a), 1), common / max(len(b), 1)
    return {"recall": recall, "f1": 2 * recall * precision / (recall + precision) if common else 0.0}


def geometric_mean(values: Sequence[float]) -> float:
    """0 if any value is."""
    return float(torch.tensor(values, dtype=torch.float64).log().mean().exp()) if min(values) > 0 else 0.0
