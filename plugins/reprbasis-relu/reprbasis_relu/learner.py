"""ReLU codes with an L1 penalty (Bricken et al. 2023, "Towards Monosemanticity"; unit-norm decoder).

    z = relu(x W_enc^T + b_enc)      loss = |x - x^|^2 / V + l1 * sum_i z_i / sqrt(V)

V is the total variance of the data. Decoder rows are kept at unit norm by projection, so codes cannot shrink for free.

Shapes: N rows, D width, K latents.
"""

import torch
from torch.nn.functional import relu

from reprbasis.kits.affine import AffineLearner, ThresholdDictionary, TrainingState, Weighted, auxk_loss
from reprbasis.kits.sparse import codes_above

from .config import ReLUConfig


class ReLULearner(AffineLearner[ReLUConfig]):
    """See the module."""

    def build(self, tensors, stats):
        """Thresholds are 0 and stay so."""
        dictionary = ThresholdDictionary(*tensors, torch.zeros_like(tensors[1]))
        dictionary.threshold.requires_grad_(False)
        dictionary.state = TrainingState(self.config.width, stats.variance)
        return dictionary

    def loss(self, dictionary, rows, step):
        """`reconstruction` (share of variance), `l1`, and `aux` for dead latents."""
        batch, state = Weighted.of(rows), dictionary.state
        codes = codes_above(batch.x, dictionary.W_enc, dictionary.b_enc, 0.0, self.scratch)
        z = relu(codes.h)
        error, residual = self.reconstruction(state, batch, codes.decode(z, dictionary.W_dec) + dictionary.b_dec, step)
        ramp = min(1.0, step.progress / self.config.warmup) if self.config.warmup else 1.0
        size = batch.mean(codes.row_sum(z)) / state.variance.sqrt().to(z.dtype)
        with torch.no_grad():
            step.log("l0", batch.mean(codes.count(z)))
            state.track(codes.fired(z), batch.rows)
        terms = {"reconstruction": error, "l1": self.config.l1 * ramp * size}
        if self.config.aux:
            dead = self.dead(state, step, batch.rows)
            terms["aux"] = self.config.aux * auxk_loss(dictionary, batch, residual, dead, max(dictionary.d_in // 2, 1))
        return terms
