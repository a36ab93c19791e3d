"""Matryoshka dictionaries (Bussmann et al. 2025, "Learning Multi-Level Features with Matryoshka SAEs", arXiv 2503.17547).

    z = the N*k largest of relu(h) in a batch of N rows        x^_j = sum over i < m_j of z_i d_i + b_dec

    loss = sum_j w_j |x - x^_j|^2 / V + aux * AuxK

over nested prefixes m_1 < ... < m_J = K, sum of w_j = 1, V the total variance of the data. Because each prefix must reconstruct
without the latents behind it, a general latent cannot leave its special cases to them. Shipped as z = h 1[h > t] with one
threshold t, as BatchTopK is.

Shapes: N rows, D width, K latents.
"""

from itertools import accumulate, pairwise

import torch
from torch.nn.functional import relu

from reprbasis.kits.affine import (
    AffineLearner,
    ThresholdDictionary,
    TrainingState,
    Weighted,
    auxk_loss,
    firing_threshold,
    follow_smallest,
)
from reprbasis.kits.sparse import codes_batch_topk

from .config import MatryoshkaConfig


class MatryoshkaLearner(AffineLearner[MatryoshkaConfig]):
    """See the module. The training form encodes with the running threshold; only the loss selects over the batch."""

    def build(self, tensors, stats):
        """The threshold starts where k latents fire."""
        encoder, encoder_bias, *_ = tensors
        start = firing_threshold(stats.sample[:1024] @ encoder.T + encoder_bias, self._k(stats.d_in))
        dictionary = ThresholdDictionary(*tensors, torch.full_like(encoder_bias, start))
        dictionary.threshold.requires_grad_(False)
        dictionary.state = TrainingState(self.config.width, stats.variance, threshold=0.0, batches=0.0)
        return dictionary

    def loss(self, dictionary, rows, step):
        """`reconstruction` (share of variance, mean over prefixes), and `aux` for dead latents."""
        batch, state = Weighted.of(rows), dictionary.state
        codes = codes_batch_topk(batch.x, dictionary.W_enc, dictionary.b_enc, self._k(dictionary.d_in), self.scratch)
        z = codes.kept(relu(codes.h))
        *inner, full = accumulate(codes.decode_groups(z, dictionary.W_dec, self._sizes()), initial=dictionary.b_dec)
        error, residual = self.reconstruction(state, batch, full, step)
        misses = [batch.x - guess for guess in inner[1:]]
        errors = [batch.mean(torch.linalg.vecdot(miss, miss)) / state.variance.to(error.dtype) for miss in misses]
        weights = self.config.weights or [1.0] * len(self.config.prefixes)
        terms = {"reconstruction": torch.stack([*errors, error]) @ error.new_tensor(weights) / sum(weights)}
        with torch.no_grad():
            step.log("l0", batch.mean(codes.count(z)))
            state.track(codes.fired(z), batch.rows)
            follow_smallest(state, z, self.config.threshold_rate)
        if self.config.aux:
            dead = self.dead(state, step, batch.rows)
            terms["aux"] = self.config.aux * auxk_loss(dictionary, batch, residual, dead, max(dictionary.d_in // 2, 1))
        return terms

    def after_step(self, dictionary, step):
        """Unit norms, and the threshold of the batches so far."""
        super().after_step(dictionary, step)
        dictionary.threshold.data.fill_(dictionary.state["threshold"])

    def _k(self, d_in):
        return min(max(d_in // 16, 4) if self.config.k is None else self.config.k, self.config.width)

    def _sizes(self):
        """Latents that each prefix adds, at least one each."""
        ends, width, count = [0], self.config.width, len(self.config.prefixes)
        for place, share in enumerate(self.config.prefixes, 1):
            ends.append(min(max(round(share * width), ends[-1] + 1), width - (count - place)))
        return [b - a for a, b in pairwise(ends)]
