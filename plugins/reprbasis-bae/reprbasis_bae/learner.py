"""Binary autoencoders (Cho et al. 2025, "Binary Autoencoder for Mechanistic Interpretability", arXiv 2509.20997).

    b = 1[x W_enc^T + b_enc >= 0]        x^ = b W_dec + b_dec        loss = |x - x^|^2 / V + e * entropy + c * covariance

Rows of W_dec are free in length: a bit carries no magnitude. V is the total variance of the data, entropy the sum over bits of
the entropy of their mean over the batch, covariance the sum over pairs of |cov| (without which the sum of entropies would be a
loose bound on the entropy of whole codes).

In training a bit may be 1 by default. The shipped form is turned so that every bit is 0 by default: where the mean on a sample is
above 1/2, b -> 1 - b, w -> -w, b_dec -> b_dec + w, which leaves the reconstruction as it is. Then "active" means the same as
for other dictionaries (the rarer value: a burst), and a bit stuck at 1 has become part of the decoder's bias.

Shapes: N rows, D width, K bits.
"""

import torch

from reprbasis.errors import CapabilityError
from reprbasis.interfaces.learner import DictionaryLearner
from reprbasis.kits.affine import AffineDictionary, AffineLearner, TrainingState, Weighted
from reprbasis.kits.bits import binary_entropy, majority

from .config import BAEConfig
from .losses import binarise, covariance, marginal_entropy


class BinaryDictionary(AffineDictionary):
    """`activate(h) = 1 where h >= 0, else 0`."""

    def activate(self, h):
        """[..., K] -> [..., K] of 0 and 1."""
        return (h >= 0).to(h.dtype)

    def folded(self, scale, mean=None, *, keep="codes"):
        """As `AffineDictionary.folded`; bits have no unit, so only `keep="codes"` is possible.

        Raises:
            CapabilityError: `keep` is `norms`.
        """
        if keep != "codes":
            raise CapabilityError("binary codes cannot be put in raw units", do='fold with keep="codes"')
        return super().folded(scale, mean)

    @torch.no_grad()
    def turn(self, which):
        """Swap 0 and 1 of the bits `which` [K] bool; the reconstruction stays (but where a pre-activation is exactly 0)."""
        self.b_dec.add_(self.W_dec[which].sum(0))
        for tensor in (self.W_dec, self.W_enc, self.b_enc):
            tensor[which] = -tensor[which]

    @torch.no_grad()
    def merge(self, bits, least):
        """Join bits whose correlation over `bits` [N, K] is at least `least` in size; returns how many were dropped.

        The first of each group carries the sum of the decoder rows (negated where the correlation is negative, with the constant
        in the bias); the others never fire again.
        """
        p = bits.mean(0)
        live = ((p > 0) & (p < 1)).nonzero()[:, 0]
        centred = bits[:, live] - p[live]
        unit = centred / torch.linalg.vector_norm(centred, dim=0)
        correlation = (unit.T @ unit).triu(1)
        pairs = (correlation.abs() >= least).nonzero()
        dropped = set()
        for i, j in pairs.tolist():  # rows ascend, so that a group gathers at its first member
            if i in dropped or j in dropped:
                continue
            first, other = live[i], live[j]
            row = self.W_dec[other].clone()
            if correlation[i, j] < 0:
                self.b_dec.add_(row)
                row.neg_()
            self.W_dec[first] += row
            self.W_dec[other], self.W_enc[other], self.b_enc[other] = 0.0, 0.0, -1.0
            dropped.add(j)
        return len(dropped)


class BAELearner(AffineLearner[BAEConfig]):
    """See the module."""

    before_step = DictionaryLearner.before_step  # decoder rows are free in length
    after_step = DictionaryLearner.after_step

    def start(self, stats, generator):
        """Uniform weights as in a linear layer, for data of the size that the default normaliser gives."""
        def uniform(*size, fan):
            draw = torch.rand(*size, generator=generator, dtype=torch.float32)
            return ((2 * draw - 1) * fan**-0.5).to(stats.mean)

        width, d = self.config.width, stats.d_in
        encoder, bias = uniform(width, d, fan=d), uniform(width, fan=d)
        return self.build((encoder, bias, uniform(width, d, fan=width), self.centre(stats)), stats)

    def build(self, tensors, stats):
        """The training form."""
        dictionary = BinaryDictionary(*tensors)
        dictionary.state = TrainingState(self.config.width, stats.variance)
        return dictionary

    def param_groups(self, dictionary):
        """Biases and decoder live on a scale `temperature` times that of the encoder."""
        return [{"params": [dictionary.W_enc]},
                {"params": [dictionary.b_enc, dictionary.W_dec, dictionary.b_dec], "lr_factor": self.config.temperature}]

    def learning_rate(self, d_dict):
        """1e-3 at 2048 bits, falling with the root of their number."""
        return 1e-3 * min((2048 / d_dict) ** 0.5, 2.0)

    def loss(self, dictionary, rows, step):
        """`reconstruction` (share of variance), `entropy`, `covariance`, and `revive` for bits constant for long."""
        batch, state, config = Weighted.of(rows), dictionary.state, self.config
        h = torch.nn.functional.linear(batch.x, dictionary.W_enc, dictionary.b_enc)
        bits = binarise(h, config.gradient, config.temperature)
        error, _ = self.reconstruction(state, batch, dictionary.decode(bits), step)
        entropy, price = config.entropy * self._ramp(step), config.covariance * self._ramp(step)
        none = torch.zeros_like(error)
        terms = {"reconstruction": error,
                 "entropy": entropy * marginal_entropy(bits, batch.share) if entropy else none,
                 "covariance": price * covariance(bits, batch.share, config.covariance_bits, step.generator) if price else none}
        with torch.no_grad():
            rate = batch.share @ bits
            step.log("l0", torch.minimum(rate, 1 - rate).sum())  # bursts: what the shipped form has
            step.log("entropy_bits", binary_entropy(rate.clamp(0, 1)).sum())
            count = bits.sum(0)
            state.track((count > 0) & (count < len(bits)), len(bits))
        dead = self.dead(state, step, len(bits))
        if config.revive:
            middle = dictionary.W_enc[dead] @ (batch.share @ batch.x) + dictionary.b_enc[dead]
            terms["revive"] = config.revive * middle.abs().sum()
        return terms

    def _ramp(self, step):
        late = step.progress - self.config.start
        return float(late >= 0) if self.config.warmup == 0 else min(max(late / self.config.warmup, 0.0), 1.0)

    def finish(self, dictionary, stats):
        """Duplicates joined, and every bit turned so that it is 0 by default."""
        shipped = super().finish(dictionary, stats)
        with torch.no_grad():
            if self.config.merge is not None:
                shipped.merge(shipped.encode(stats.sample), self.config.merge)
            shipped.turn(majority(shipped.encode(stats.sample).mean(0)))
        return shipped

    def form(self):
        """The shipped form."""
        return BinaryDictionary
