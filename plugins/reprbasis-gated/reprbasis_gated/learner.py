"""Gated dictionaries (Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated SAEs", arXiv 2404.16014).

    p = x W^T + b_gate        u = e^r (x W^T) + b_mag        z = relu(u) where p > 0, else 0        x^ = z W_dec + b_dec

    loss = |x - x^|^2 / V + l1 * sum_i relu(p_i) / sqrt(V) + gate_aux * |x - relu(p) W_dec* - b_dec*|^2 / V + aux * AuxK

V is the total variance of the data, * marks values without gradient. Because both paths share W, the codes are those of a
dictionary with one threshold per latent: p > 0 and u > 0 is u > max(b_mag - e^r b_gate, 0). That is the shipped form.

Shapes: N rows, D width, K latents.
"""

import torch
from torch import nn
from torch.nn.functional import relu

from reprbasis.errors import ShapeError
from reprbasis.kits.affine import AffineDictionary, AffineLearner, ThresholdDictionary, TrainingState, Weighted, auxk_loss
from reprbasis.kits.sparse import codes_above

from .config import GatedConfig


class GatedDictionary(AffineDictionary):
    """The training form. `b_enc` is the bias of the gates; `r_mag` and `b_mag`, both [K], make the magnitudes."""

    def __init__(self, encoder, encoder_bias, decoder, decoder_bias):
        super().__init__(encoder, encoder_bias, decoder, decoder_bias)
        self.r_mag = nn.Parameter(torch.zeros_like(encoder_bias))
        self.b_mag = nn.Parameter(encoder_bias.detach().clone())

    def activate(self, h):
        """Gate pre-activations [..., K] -> codes [..., K]."""
        return torch.where(h > 0, relu(self.r_mag.exp() * (h - self.b_enc) + self.b_mag), 0.0)

    def _scale_codes(self, factor):
        self.b_mag.mul_(factor)

    def folded(self, scale, mean=None, *, keep="codes"):
        """As `AffineDictionary.folded`; the magnitudes have a bias of their own."""
        out = super().folded(scale, mean, keep=keep)
        if mean is not None:
            with torch.no_grad():
                out.b_mag.sub_(out.r_mag.exp() * (out.W_enc @ mean.to(out.b_mag)))
        return out

    def with_thresholds(self):
        """The same codes from one path: encoder e^r W, bias b_mag, threshold max(b_mag - e^r b_gate, 0)."""
        with torch.no_grad():
            gain = self.r_mag.exp()
            threshold = relu(self.b_mag - gain * self.b_enc)
            return ThresholdDictionary(gain[:, None] * self.W_enc, self.b_mag.clone(), self.W_dec.clone(), self.b_dec.clone(),
                                       threshold)


class GatedLearner(AffineLearner[GatedConfig]):
    """See the module."""

    def build(self, tensors, stats):
        """Magnitudes start equal to the gates."""
        dictionary = GatedDictionary(*tensors)
        dictionary.state = TrainingState(self.config.width, stats.variance)
        return dictionary

    def loss(self, dictionary, rows, step):
        """`reconstruction` (share of variance), `l1`, `gate`, and `aux` for dead latents."""
        batch, state = Weighted.of(rows), dictionary.state
        codes = codes_above(batch.x, dictionary.W_enc, dictionary.b_enc, 0.0, self.scratch)
        gate, bias = codes.kept(relu(codes.h)), codes.at(dictionary.b_enc)
        open_ = codes.at(dictionary.r_mag).exp() * (codes.h - bias) + codes.at(dictionary.b_mag)
        z = codes.kept(relu(open_))
        error, residual = self.reconstruction(state, batch, codes.decode(z, dictionary.W_dec) + dictionary.b_dec, step)
        ramp = min(1.0, step.progress / self.config.warmup) if self.config.warmup else 1.0
        variance = state.variance.to(z.dtype)
        size = batch.mean(codes.row_sum(gate)) / variance.sqrt()
        miss = batch.x - codes.decode(gate, dictionary.W_dec.detach()) - dictionary.b_dec.detach()
        with torch.no_grad():
            step.log("l0", batch.mean(codes.count(z)))
            state.track(codes.fired(z), batch.rows)
        terms = {"reconstruction": error, "l1": self.config.l1 * ramp * size,
                 "gate": self.config.gate_aux * batch.mean(torch.linalg.vecdot(miss, miss)) / variance}
        if self.config.aux:
            dead = self.dead(state, step, batch.rows)
            terms["aux"] = self.config.aux * auxk_loss(dictionary, batch, residual, dead, max(dictionary.d_in // 2, 1))
        return terms

    def finish(self, dictionary, stats):
        """One threshold per latent instead of two paths; the same codes."""
        return dictionary.with_thresholds()

    def restore(self, d_in, tensors):
        """Exact, from either form: a dictionary that comes from another library keeps both paths."""
        if "r_mag" not in tensors:
            return super().restore(d_in, tensors)
        out = GatedDictionary.from_tensors(tensors)
        if out.d_in != d_in:
            raise ShapeError(f"the dictionary takes width {out.d_in}, not {d_in}", do="use it with the sites it was learned on")
        out.load_state_dict(dict(tensors))
        return out
