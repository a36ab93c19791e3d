"""Dictionaries with an affine encoder and decoder, and what their learners share.

    h = x W_enc^T + b_enc        z = activate(h)        x^ = z W_dec + b_dec

The decoder bias is not subtracted before encoding (a dictionary that does so is the same with b_enc - W_enc b_dec).
Decoder rows have unit norm. Every loss is a share of the variance of the data, so coefficients mean the same at every
width D.

Shapes: N rows, D width, K latents.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, relu

from ..errors import ArtifactError, ShapeError
from ..interfaces.learner import ActivationStats, Dictionary, DictionaryLearner, Rows, StepInfo
from ..runtime import distributed
from ..runtime.products import linear
from .affine_config import AffineConfig
from .sparse import Codes, Scratch, codes_topk

A = TypeVar("A", bound=AffineConfig)


class TrainingState(nn.Module):
    """What training needs beyond the parameters; buffers, so that checkpoints hold it. Not part of the shipped form.

    Args:
        width: K.
        variance: total variance of the data; losses are divided by it.
        more: further numbers, kept as fp64 scalars and read with `state["name"]`.
    """

    silent: Tensor
    variance: Tensor

    def __init__(self, width: int, variance: float, **more: float) -> None:
        super().__init__()
        self.register_buffer("silent", torch.zeros(width, dtype=torch.int64))
        self.register_buffer("variance", torch.tensor(variance, dtype=torch.float64))
        for name, value in more.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))

    def __getitem__(self, name: str) -> Tensor:
        return self.get_buffer(name)

    def track(self, fired: Tensor, rows: int) -> None:
        """Count rows since each latent fired; `fired` is [K] bool, of this rank's rows, `rows` those of all ranks."""
        self.silent.add_(rows).masked_fill_(distributed.current().any(fired, "rows"), 0)


class AffineDictionary(Dictionary):
    """An affine encoder, an activation, an affine decoder.

    Args:
        encoder: [K, D], encoder_bias: [K], decoder: [K, D], decoder_bias: [D]. FLOPs per row: 2*D*K each to encode
            and decode.

    Raises:
        ShapeError: the tensors do not fit together.
    """

    state: TrainingState | None

    def __init__(self, encoder: Tensor, encoder_bias: Tensor, decoder: Tensor, decoder_bias: Tensor) -> None:
        super().__init__()
        k, d = encoder.shape
        if decoder.shape != (k, d) or encoder_bias.shape != (k,) or decoder_bias.shape != (d,):
            have = [tuple(t.shape) for t in (encoder, encoder_bias, decoder, decoder_bias)]
            raise ShapeError(f"encoder, bias, decoder, bias have shapes {have}", do="use [K, D], [K], [K, D], [D]")
        self.d_in, self.d_dict = d, k
        self.W_enc, self.b_enc = nn.Parameter(encoder), nn.Parameter(encoder_bias)
        self.W_dec, self.b_dec = nn.Parameter(decoder), nn.Parameter(decoder_bias)
        self.state = None

    @abstractmethod
    def activate(self, h: Tensor) -> Tensor:
        """Pre-activations [..., K] -> codes [..., K]."""

    def encode(self, x: Tensor) -> Tensor:
        return self.activate(linear(x, self.W_enc, self.b_enc))

    def decode(self, z: Tensor) -> Tensor:
        return linear(z, self.W_dec.T, self.b_dec)

    def directions(self) -> Tensor:
        return self.W_dec

    def folded(self, scale: float, mean: Tensor | None = None, *, keep: Literal["codes", "norms"] = "codes") -> Self:
        """The same dictionary for raw x, when this one was trained on x' = (x - mean) * scale.

        Args:
            scale: of the normaliser.
            mean: of the normaliser, [D]; None for 0.
            keep: `codes` leaves the codes as they are and divides the decoder by the scale (fold A); `norms` leaves
                encoder and
                decoder rows as they are and puts the codes in raw units, codes / scale (fold B).
        """
        out = deepcopy(self)
        shift = torch.zeros_like(self.b_dec) if mean is None else mean.to(self.b_dec)
        with torch.no_grad():
            if keep == "codes":
                out.W_enc.mul_(scale)
                out.W_dec.div_(scale)
            else:
                out.b_enc.div_(scale)
                out._scale_codes(1 / scale)
            out.b_enc.sub_(out.W_enc @ shift)
            out.b_dec.div_(scale).add_(shift)
        return out

    def _scale_codes(self, factor: float) -> None:
        """Adapt what is measured in units of pre-activations other than weights and biases (thresholds)."""

    def latent_axes(self) -> Mapping[str, int]:
        return {name: 0 for name, value in self.state_dict().items() if value.ndim and name != "b_dec"}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Inverse of `state_dict()`; exact.

        Raises:
            ArtifactError: a tensor is missing.
        """
        names = cls.tensor_names()
        if missing := [n for n in names if n not in tensors]:
            raise ArtifactError(f"the dictionary lacks {', '.join(missing)}",
                                do="learn it again, or use the learner that made it")
        return cls(*(tensors[n].clone() for n in names))

    @classmethod
    def tensor_names(cls) -> tuple[str, ...]:
        """Names in the order of the constructor's arguments."""
        return "W_enc", "b_enc", "W_dec", "b_dec"


class ThresholdDictionary(AffineDictionary):
    """`activate(h) = h where h > threshold, else 0` (JumpReLU, Erichson et al. 2019); ReLU is threshold 0.

    The threshold keeps at least 32 bits when the dictionary is cast to a shorter type: steps of training are smaller than the
    spacing of bfloat16 numbers, and a threshold that is rounded moves codes across it.

    Args:
        threshold: [K], not negative.
    """

    def __init__(self, encoder: Tensor, encoder_bias: Tensor, decoder: Tensor, decoder_bias: Tensor,
                 threshold: Tensor) -> None:
        super().__init__(encoder, encoder_bias, decoder, decoder_bias)
        if threshold.shape != encoder_bias.shape:
            raise ShapeError(f"the threshold has shape {tuple(threshold.shape)}, the dictionary {self.d_dict} latents",
                             do="give one threshold for each latent")
        self.threshold = nn.Parameter(threshold.to(torch.promote_types(threshold.dtype, torch.float32)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = self.threshold.data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.threshold.dtype.itemsize < 4:
            self.threshold.data = kept.to(self.threshold.device)
        return self

    def activate(self, h: Tensor) -> Tensor:
        return torch.where(h > self.threshold, h, torch.zeros_like(h))

    def subset(self, latents: Tensor) -> ThresholdDictionary:
        rows = {name: self.get_parameter(name).detach()[latents] for name in ("W_enc", "b_enc", "W_dec", "threshold")}
        return ThresholdDictionary(rows["W_enc"], rows["b_enc"], rows["W_dec"], self.b_dec.detach(), rows["threshold"])

    def _scale_codes(self, factor: float) -> None:
        self.threshold.mul_(factor)

    @classmethod
    def tensor_names(cls) -> tuple[str, ...]:
        return *super().tensor_names(), "threshold"


@dataclass(frozen=True)
class Weighted:
    """Rows that count: x [N, D], their share of the loss [N] (sums to 1 over all ranks), site [N]; `rows` N of all ranks.

    Take means over rows with `mean`: then a learner works unchanged when the rows are divided over processes.
    """

    x: Tensor
    share: Tensor
    site: Tensor
    rows: int

    @classmethod
    def of(cls, rows: Rows) -> Weighted:
        """Rows of weight 0 are left out, so that nothing depends on them."""
        x, weight, site = rows.x, rows.weight.to(rows.x.dtype), rows.site
        if bool((weight == 0).any()):
            keep = weight > 0
            x, weight, site = x[keep], weight[keep], site[keep]
        total = distributed.current().sum(torch.stack([weight.sum(), weight.new_tensor(len(x))]), "rows")
        return cls(x, weight / total[0], site, int(total[1]))

    def mean(self, values: Tensor) -> Tensor:
        """Weighted mean over the rows of all ranks of `values` [N, ...]."""
        return distributed.current().sum(self.share @ values, "rows")

    def site_sums(self, values: Tensor) -> Tensor:
        """[S, M] what the rows of each site add to the weighted mean of `values` [N, M]; S: the sites up to the last one seen."""
        ranks = distributed.current()
        sites = int(ranks.largest(self.site.max(), "rows")) + 1
        parts = values.new_zeros(sites, values.shape[1]).index_add(0, self.site, self.share[:, None] * values)
        return ranks.sum(parts, "rows")


class AffineLearner(DictionaryLearner[A]):
    """Initialisation, unit-norm decoder and dead-latent bookkeeping of learners of affine dictionaries.

    A learner adds `build` (the dictionary from its four tensors) and `loss`.
    """

    def __init__(self, config: A) -> None:
        super().__init__(config)
        self.scratch = Scratch()

    @abstractmethod
    def build(self, tensors: tuple[Tensor, Tensor, Tensor, Tensor], stats: ActivationStats) -> AffineDictionary:
        """The training form, with its `state`, from encoder, encoder bias, decoder, decoder bias."""

    def start(self, stats: ActivationStats, generator: torch.Generator) -> AffineDictionary:
        """Random unit directions, decoder bias = `centre`, tied encoder, scaled so that the first reconstruction is the
        best multiple.
        """
        rows = torch.randn(self.config.width, stats.d_in, generator=generator, dtype=torch.float32)
        decoder, centre = normalize(rows).to(stats.mean), self.centre(stats)
        dictionary = self.build((decoder.clone(), -decoder @ centre, decoder, centre), stats)
        with torch.no_grad():
            sample = stats.sample[:1024]
            guess, truth = dictionary(sample) - dictionary.b_dec, sample - dictionary.b_dec
            power = guess.square().sum()
            factor = float((guess * truth).sum() / power) if power > 0 else 1.0
            if factor > 0:
                dictionary.W_enc.mul_(factor)
                dictionary.b_enc.mul_(factor)
                dictionary._scale_codes(factor)
        return dictionary

    def centre(self, stats: ActivationStats) -> Tensor:
        """[D] the decoder bias to start from (option `centre`)."""
        if self.config.centre == "zero":
            return torch.zeros_like(stats.mean)
        return stats.mean.clone() if self.config.centre == "mean" else geometric_median(stats.sample).to(stats.mean)

    def before_step(self, dictionary: Dictionary, step: StepInfo) -> None:
        """Remove the part of the decoder's gradient that would change the norm of its rows."""
        assert isinstance(dictionary, AffineDictionary)
        rows, grad = dictionary.W_dec.data, dictionary.W_dec.grad
        if grad is not None:
            grad.addcmul_(rows, (rows * grad).sum(1, keepdim=True), value=-1)

    def after_step(self, dictionary: Dictionary, step: StepInfo) -> None:
        """Decoder rows back to unit norm."""
        assert isinstance(dictionary, AffineDictionary)
        rows = dictionary.W_dec.data
        rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(1e-12))

    def finish(self, dictionary: Dictionary, stats: ActivationStats) -> AffineDictionary:
        """The dictionary without its training state."""
        assert isinstance(dictionary, AffineDictionary)
        shipped = deepcopy(dictionary)
        shipped.state = None
        return shipped

    def reconstruction(self, state: TrainingState, batch: Weighted, guess: Tensor,
                       step: StepInfo) -> tuple[Tensor, Tensor]:
        """Squared error as a share of the data's variance, and the residual x - x^ [N, D]. Logs `fvu` against this
        batch.
        """
        residual = batch.x - guess
        error = batch.mean(torch.linalg.vecdot(residual, residual))
        with torch.no_grad():
            mean = batch.mean(batch.x)
            step.log("fvu", error / (batch.mean(torch.linalg.vecdot(batch.x, batch.x)) - mean @ mean))
        return error / state.variance.to(error.dtype), residual

    def dead(self, state: TrainingState, step: StepInfo, rows: int) -> Tensor:
        """Indices of the latents silent for longer than `dead_after`; logs `dead`, their share of all latents."""
        found = (state.silent > self.config.dead_after * step.total * rows).nonzero()[:, 0]
        step.log("dead", distributed.current().sum(torch.tensor(float(len(found))), "latents") / self.config.width)
        return found

    def restore(self, d_in: int, tensors: Mapping[str, Tensor]) -> AffineDictionary:
        """The shipped form; exact.

        Raises:
            ShapeError: the tensors are of another width.
        """
        out = self.form().from_tensors(tensors)
        if out.d_in != d_in:
            raise ShapeError(f"the dictionary takes width {out.d_in}, not {d_in}", do="use it with the sites it was learned on")
        return out

    def form(self) -> type[AffineDictionary]:
        """Class of the shipped form."""
        return ThresholdDictionary


def auxk_loss(dictionary: AffineDictionary, batch: Weighted, residual: Tensor, dead: Tensor, k: int) -> Tensor:
    """Dead latents reconstruct what the others miss (AuxK, Gao et al. 2024), as a share of its variance.

    Only the k most active dead latents of each row take part; the residual is detached, so other latents get no
    gradient.

    Args:
        dictionary: in training.
        batch: N rows.
        residual: [N, D] x - x^.
        dead: indices of dead latents. Costs 2*N*D*len(dead) FLOPs.
        k: latents that take part in each row (Gao et al.: D / 2).
    """
    count = int(distributed.current().sum(torch.tensor(len(dead)), "latents"))
    if count == 0:
        return residual.new_zeros(())
    target = residual.detach()
    codes: Codes = codes_topk(batch.x, dictionary.W_enc[dead], dictionary.b_enc[dead], k, Scratch())
    miss = target - codes.decode(codes.kept(relu(codes.h)), dictionary.W_dec[dead])
    spread = target - batch.mean(target)
    left = batch.mean(torch.linalg.vecdot(miss, miss))
    loss = left / batch.mean(torch.linalg.vecdot(spread, spread)).clamp_min(1e-30)
    return loss * min(count / k, 1.0)


def firing_threshold(h: Tensor, l0: float) -> float:
    """The threshold, not negative, above which `l0` pre-activations of each row of h [N, K] lie on average."""
    count = min(max(round(l0 * len(h)), 1), h.numel())
    return float(h.flatten().topk(count, sorted=False).values.min().clamp_min(0.0))


def follow_smallest(state: TrainingState, z: Tensor, rate: float) -> None:
    """Running mean, in fp64, of the smallest positive code of each batch, in `state["threshold"]`; the first batch sets it.

    BatchTopK (Bussmann et al. 2024) ships it as the threshold, so that the codes of a row do not depend on other rows.

    Args:
        state: has the numbers `threshold` and `batches`, both 0 at first.
        z: codes of a batch, any shape.
        rate: step of the running mean.
    """
    threshold, batches = state["threshold"], state["batches"]
    ranks = distributed.current()
    smallest = torch.where(z > 0, z, torch.inf).amin().to(threshold) if z.numel() else torch.full_like(threshold, torch.inf)
    smallest = -ranks.largest(ranks.largest(-smallest, "rows"), "latents")
    found = torch.isfinite(smallest)  # a batch without any code says nothing
    step = torch.where(batches == 0, 1.0, rate).to(threshold) * (smallest - threshold)
    threshold.add_(torch.where(found, step, 0.0))
    batches.add_(found)


def geometric_median(x: Tensor, *, steps: int = 100, tolerance: float = 1e-9) -> Tensor:
    """[N, D] -> [D], the point with the smallest mean distance to the rows; outliers hardly move it (Weiszfeld 1937).

    Args:
        x: rows. Costs 4*N*D FLOPs a step.
        steps: most steps.
        tolerance: stop when a step moves less than this share of the mean distance.
    """
    rows = x.double()
    centre = rows.mean(0)
    for _ in range(steps):
        away = torch.linalg.vector_norm(rows - centre, dim=1)
        weight = 1 / away.clamp_min(1e-12 * float(away.mean()) + 1e-300)
        moved = weight @ rows / weight.sum()
        shift = torch.linalg.vector_norm(moved - centre)
        centre = moved
        if float(shift) <= tolerance * float(away.mean()):
            break
    return centre.to(x.dtype)


def reach_loss(dictionary: ThresholdDictionary, batch: Weighted, dead: Tensor) -> Tensor:
    """How far dead latents are below their thresholds: sum over dead of mean relu(threshold - h) (Anthropic, January
    2025).

    A latent that fires nowhere in the batch has relu(threshold - h) = threshold - h, whose mean is threshold - h(mean
    x): the cost is 2*D*len(dead) FLOPs, not a product over rows.
    """
    mean = batch.mean(batch.x)
    gap = dictionary.threshold[dead] - dictionary.W_enc[dead] @ mean - dictionary.b_enc[dead]
    return distributed.current().sum(gap.sum(), "latents")
