"""TopK (Gao et al. 2024, arXiv 2406.04093) and BatchTopK (Bussmann et al. 2024, arXiv 2412.06410) dictionaries.

    topk        z = the k largest of relu(h) in every row
    batchtopk   z = the N*k largest of relu(h) in a batch of N rows; shipped as z = h 1[h > t] with one threshold t

    loss = |x - x^|^2 / V + aux * AuxK

V is the total variance of the data.

Shapes: N rows, D width, K latents.
"""

import torch
from torch.nn.functional import relu

from reprbasis.kits.affine import (
    AffineDictionary,
    AffineLearner,
    ThresholdDictionary,
    TrainingState,
    Weighted,
    auxk_loss,
    follow_smallest,
)
from reprbasis.kits.sparse import batch_topk_mask, codes_batch_topk, codes_topk

from .config import BatchTopKConfig, TopKConfig


class TopKDictionary(AffineDictionary):
    """`activate(h)` keeps the k largest positive entries of the last axis; k is the buffer `k`."""

    def __init__(self, encoder, encoder_bias, decoder, decoder_bias, k):
        super().__init__(encoder, encoder_bias, decoder, decoder_bias)
        self.register_buffer("k", torch.as_tensor(k, dtype=torch.int64))

    def activate(self, h):
        """[..., K] -> [..., K] with at most k entries that are not 0."""
        values, index = h.topk(int(self.k), dim=-1, sorted=False)
        return torch.zeros_like(h).scatter(-1, index, relu(values))

    @classmethod
    def tensor_names(cls):
        """The four tensors and k."""
        return *super().tensor_names(), "k"


class BatchTopKDictionary(AffineDictionary):
    """Training form: the codes of a row depend on the other rows, k on average."""

    def __init__(self, encoder, encoder_bias, decoder, decoder_bias, k):
        super().__init__(encoder, encoder_bias, decoder, decoder_bias)
        self.register_buffer("k", torch.as_tensor(k, dtype=torch.int64))

    def activate(self, h):
        """[..., K] -> [..., K], k times as many entries as there are rows."""
        mask = batch_topk_mask(h.reshape(-1, h.shape[-1]), int(self.k) * (h.numel() // h.shape[-1]))
        return torch.where(mask.view_as(h), h, 0.0)


class TopKLearner(AffineLearner[TopKConfig]):
    """See the module."""

    dictionary_class = TopKDictionary

    def build(self, tensors, stats):
        """The threshold (of BatchTopK) is unknown before the first batch."""
        k = max(stats.d_in // 16, 4) if self.config.k is None else self.config.k
        dictionary = self.dictionary_class(*tensors, min(k, self.config.width))
        dictionary.state = TrainingState(self.config.width, stats.variance, threshold=0.0, batches=0.0)
        return dictionary

    def codes(self, dictionary, x):
        """Pre-activations of the kept entries."""
        return codes_topk(x, dictionary.W_enc, dictionary.b_enc, int(dictionary.k), self.scratch)

    def loss(self, dictionary, rows, step):
        """`reconstruction` (share of variance), and `aux` for dead latents."""
        batch, state = Weighted.of(rows), dictionary.state
        codes = self.codes(dictionary, batch.x)
        z = codes.kept(relu(codes.h))
        error, residual = self.reconstruction(state, batch, codes.decode(z, dictionary.W_dec) + dictionary.b_dec, step)
        with torch.no_grad():
            step.log("l0", batch.mean(codes.count(z)))
            state.track(codes.fired(z), batch.rows)
            self.observe(state, z)
        terms = {"reconstruction": error}
        if self.config.aux:
            dead = self.dead(state, step, batch.rows)
            terms["aux"] = self.config.aux * auxk_loss(dictionary, batch, residual, dead, max(dictionary.d_in // 2, 1))
        return terms

    def observe(self, state, z):
        """Called with the codes of every batch."""

    def form(self):
        """The shipped form."""
        return TopKDictionary


class BatchTopKLearner(TopKLearner):
    """See the module."""

    config: BatchTopKConfig
    dictionary_class = BatchTopKDictionary

    def codes(self, dictionary, x):
        """Pre-activations of the kept entries."""
        return codes_batch_topk(x, dictionary.W_enc, dictionary.b_enc, int(dictionary.k), self.scratch)

    def observe(self, state, z):
        """Follow the smallest code that was kept."""
        follow_smallest(state, z, self.config.threshold_rate)

    def finish(self, dictionary, stats):
        """Thresholds instead of the top of a batch: inference does not depend on the other rows."""
        tensors = (dictionary.W_enc, dictionary.b_enc, dictionary.W_dec, dictionary.b_dec)
        threshold = torch.full_like(dictionary.b_enc.detach(), float(dictionary.state["threshold"]))
        return ThresholdDictionary(*(t.detach().clone() for t in tensors), threshold)

    def form(self):
        """The shipped form."""
        return ThresholdDictionary
