"""Options of the baselines."""

from typing import Literal

from pydantic import Field, model_validator

from reprbasis import ComponentConfig


class TrainConfig(ComponentConfig):
    """What all baselines that train weights share."""

    lr: float = Field(1e-5, gt=0)
    """Learning rate of AdamW."""
    steps: int = Field(20, ge=1)
    """Steps at most, of one batch of the request each."""
    goal: float | None = 0.0
    """Training stops when the mean logit difference (answer minus wrong answer; without wrong answers the answer's
    log-probability) of a batch has fallen to this; null: never."""
    weight_decay: float = Field(0.0, ge=0)
    """Of AdamW."""
    clip: float = Field(1.0, gt=0)
    """Largest global gradient norm."""
    keep_tokens: int = Field(64, ge=1)
    """Tokens of each text to keep that are used."""
    keep_texts: int = Field(2, ge=1)
    """Texts to keep in each step."""
    layers: tuple[int, ...] | None = None
    """Layers whose weights are trained; null: all. Embedding and unembedding never are."""


class GradDiffConfig(TrainConfig):
    """Options of `graddiff`."""

    retain_weight: float = Field(1.0, ge=0)
    """Weight of the loss on texts to keep."""
    retain: Literal["ce", "kl"] = "ce"
    """That loss: of the texts' own tokens, or the KL divergence from the unchanged model."""


class NPOConfig(GradDiffConfig):
    """Options of `npo`."""

    beta: float = Field(0.1, gt=0)
    """Inverse temperature: small is near gradient ascent."""


class SimNPOConfig(GradDiffConfig):
    """Options of `simnpo`."""

    beta: float = Field(4.5, gt=0)
    """Inverse temperature."""
    gamma: float = Field(0.0, ge=0)
    """Margin of the reward."""


class LoRAConfig(GradDiffConfig):
    """Options of `finetune`."""

    lr: float = Field(1e-3, gt=0)
    """Learning rate of AdamW."""
    rank: int | None = Field(8, ge=1)
    """Rank of the change of each matrix; null: the weights themselves are trained."""
    alpha: float = Field(16.0, gt=0)
    """The change is alpha / rank times the product of the factors."""
    seed: int = Field(0, ge=0)
    """Of the factors."""


class RMUConfig(TrainConfig):
    """Options of `rmu`."""

    lr: float = Field(1e-3, gt=0)
    """Learning rate of AdamW."""
    layer: int | None = Field(None, ge=0)
    """Whose stream is steered; its MLP and those of the two layers before are trained. Null: a quarter of the way up."""
    coefficient: float = Field(20.0, gt=0)
    """Length of the random vector that the stream is steered to, as a multiple of the unit vector."""
    retain_weight: float = Field(100.0, ge=0)
    """Weight of the mean square change of the stream on texts to keep."""
    seed: int = Field(0, ge=0)
    """Of the random vector."""


class ValueConfig(ComponentConfig):
    """How the wanted output is found: gradients from the logits down to one layer."""

    steps: int = Field(25, ge=1)
    """Gradient steps at most."""
    lr: float = Field(0.5, gt=0)
    """Learning rate of Adam."""
    goal: float | None = -2.0
    """The search stops when every prompt's logit difference (answer minus wrong answer) has fallen to this; null: it goes on."""
    decay: float = Field(0.5, ge=0)
    """Weight of the squared length of the change relative to what is there."""
    clamp: float = Field(4.0, gt=0)
    """Most that the change may be long, relative to what is there."""
    kl_weight: float = Field(0.0625, ge=0)
    """Weight of the KL divergence after `SUBJECT is a`, if the request names a subject (role `subject`)."""
    keep_tokens: int = Field(64, ge=1)
    """Tokens of each text to keep that are used."""
    ridge: float = Field(1e-2, gt=0)
    """What is added to the diagonal of the second moment, relative to its mean: few texts do not fill it."""


class RomeConfig(ValueConfig):
    """Options of `rome`."""

    layer: int | None = Field(None, ge=0)
    """Whose MLP is edited; null: a third of the way up."""
    contexts: int = Field(4, ge=0)
    """Beginnings of texts to keep that are put before the prompt, as further contexts of key and value."""


class MemitConfig(ValueConfig):
    """Options of `memit`."""

    layers: tuple[int, ...] | None = Field(None, min_length=1)
    """Whose MLPs are edited, upwards; null: five around a third of the way up."""
    keep_weight: float = Field(50.0, gt=0)
    """Weight of the second moment of the keys of texts to keep."""

    @model_validator(mode="after")
    def _upwards(self) -> "MemitConfig":
        if self.layers is not None and list(self.layers) != sorted(set(self.layers)):
            raise ValueError("layers must go upwards, each once")
        return self


class AlphaEditConfig(ValueConfig):
    """Options of `alphaedit`."""

    layers: tuple[int, ...] | None = Field(None, min_length=1)
    """Whose MLPs are edited, upwards; null: five around a third of the way up."""
    share: float = Field(0.02, gt=0, lt=1)
    """The null space are the directions that together hold at most this share of the second moment (an absolute threshold, as in
    the paper, means something else in every layer)."""
    ridge: float = Field(1e-2, gt=0)
    """Weight of the change's own size, relative to the mean square of the keys."""
