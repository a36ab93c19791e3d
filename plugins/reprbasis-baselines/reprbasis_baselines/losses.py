"""Baselines that back-propagate from the logits through the whole model, each a loss for the shared loop.

pi(y|x) is the probability of the answer, pi_0 that of the unchanged model. The prompt's own tokens are in no loss: ascent on them
ruins the model and leaves the answer. Prompts of a batch that continue one another are the tokens of one answer.

Shapes: B batch, V vocabulary, R rank.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import TokenBatch

from .config import GradDiffConfig, LoRAConfig, NPOConfig, SimNPOConfig, TrainConfig
from .train import Direct, Trained, answer_nll, answers_of, kl, log_probs, logits_of, other_nll, text_nll


class GradientAscent(Trained[TrainConfig]):
    """GA: minimise E[log pi(y|x)] (Jang et al. 2023, eq. 1; Yao et al. 2023)."""

    def loss(self, model: ModelAdapter, item: ContrastBatch, text: TokenBatch | None, before: Mapping[str, Tensor]) -> Tensor:
        return -answer_nll(logits_of(model, item.clean), item.targets).mean()


class Retaining(Trained[GradDiffConfig]):
    """Adds the retain term: loss or KL divergence on texts to keep."""

    def before(self, model: ModelAdapter, item: ContrastBatch, text: TokenBatch | None) -> Mapping[str, Tensor]:
        if text is None or self.config.retain == "ce" or not self.config.retain_weight:
            return {}
        return {"text": log_probs(model, text, grad=False)}

    def kept(self, model: ModelAdapter, text: TokenBatch | None, before: Mapping[str, Tensor]) -> Tensor | float:
        """The term, weighted."""
        if text is None or not self.config.retain_weight:
            return 0.0
        term = kl(before["text"], log_probs(model, text, grad=True)) if "text" in before else text_nll(model, text)
        return self.config.retain_weight * term


class GradDiff(Retaining):
    """Gradient difference: -L(forget) + L(retain) (Liu et al. 2022; TOFU, Maini et al. 2024, section 4.1)."""

    def loss(self, model: ModelAdapter, item: ContrastBatch, text: TokenBatch | None, before: Mapping[str, Tensor]) -> Tensor:
        return -answer_nll(logits_of(model, item.clean), item.targets).mean() + self.kept(model, text, before)


class NPO(Retaining):
    """NPO: 2/beta E[log(1 + (pi/pi_0)^beta)] (Zhang et al. 2024, eq. 3), and the retain term; pi of whole answers."""

    config: NPOConfig

    def nll(self, model: ModelAdapter, item: ContrastBatch, *, grad: bool = True) -> Tensor:
        """-log pi of each answer."""
        return answers_of(answer_nll(logits_of(model, item.clean, grad=grad), item.targets), item.clean)

    def before(self, model: ModelAdapter, item: ContrastBatch, text: TokenBatch | None) -> Mapping[str, Tensor]:
        with torch.no_grad():
            reference = self.nll(model, item, grad=False)
        return {**super().before(model, item, text), "answer": reference}

    def loss(self, model: ModelAdapter, item: ContrastBatch, text: TokenBatch | None, before: Mapping[str, Tensor]) -> Tensor:
        beta, ratio = self.config.beta, before["answer"] - self.nll(model, item)  # log(pi / pi_0)
        return -2 / beta * logsigmoid(-beta * ratio).mean() + self.kept(model, text, before)


class SimNPO(Retaining):
    """SimNPO: -2/beta E[log sigmoid(-beta/|y| log pi - gamma)], no reference model (Fan et al. 2024, eq. 4)."""

    config: SimNPOConfig

    def loss(self, model: ModelAdapter, item: ContrastBatch, text: TokenBatch | None, before: Mapping[str, Tensor]) -> Tensor:
        beta, each = self.config.beta, answer_nll(logits_of(model, item.clean), item.targets)
        nll = answers_of(each, item.clean, mean=True)
        return -2 / beta * logsigmoid(beta * nll - self.config.gamma).mean() + self.kept(model, text, before)


class FineTune(Retaining):
    """-log pi of the wrong answer, with the retain term; of low rank, W + alpha/r B A (Hu et al. 2021, eq. 3), or whole."""

    config: LoRAConfig

    def trainable(self, model: ModelAdapter) -> list[str]:
        names = super().trainable(model)
        return names if self.config.rank is None else [n for n in names if model.parameters()[n].ndim == 2]

    def parametrised(self, weights: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Direct:
        return Direct(weights) if self.config.rank is None else LowRank(weights, start, self.config)

    def loss(self, model: ModelAdapter, item: ContrastBatch, text: TokenBatch | None, before: Mapping[str, Tensor]) -> Tensor:
        return other_nll(logits_of(model, item.clean), item.targets).mean() + self.kept(model, text, before)


class LowRank(Direct):
    """Factors A [R, in] and B [out, R] of the change of each matrix.

    Their gradients follow from that of the matrix, G: s B^T G and s G A^T.
    """

    def __init__(self, weights: Mapping[str, Tensor], start: Mapping[str, Tensor], config: LoRAConfig) -> None:
        assert config.rank is not None
        self.weights, self.start, self.scale = weights, start, config.alpha / config.rank
        g = torch.Generator().manual_seed(config.seed)
        self.factors = {name: ((torch.randn(config.rank, p.shape[1], generator=g) / p.shape[1] ** 0.5).to(p),
                               p.new_zeros(p.shape[0], config.rank)) for name, p in weights.items()}
        self.variables = [factor for pair in self.factors.values() for factor in pair]
        for p in weights.values():
            p.requires_grad_()

    def backward(self, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, list(self.weights.values()), allow_unused=True)
        for (a, b), g in zip(self.factors.values(), gradients, strict=True):
            a.grad, b.grad = (None, None) if g is None else (self.scale * b.T @ g, self.scale * g @ a.T)

    @torch.no_grad()
    def write(self) -> None:
        for name, (a, b) in self.factors.items():
            self.weights[name].copy_(self.start[name] + self.scale * b @ a)
