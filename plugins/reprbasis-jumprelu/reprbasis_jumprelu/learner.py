"""JumpReLU dictionaries (Rajamanoharan et al. 2024, arXiv 2407.14435), thresholds trained directly.

    z = h 1[h > t],  h = x W_enc^T + b_enc,  t >= 0        loss = |x - x^|^2 / V + c * sparsity

    target   (mean L0 / L - 1)^2 + mean over sites of max(0, mean L0 of the site / (limit L) - 1)^2
    l0       mean of sum_i 1[h_i > t_i]
    tanh     mean of sum_i tanh(4 z_i / sigma)                (Anthropic, January 2025)

V is the total variance of the data, L the target, sigma the standard deviation of pre-activations at the start.

Shapes: N rows, S sites, D width, K latents.
"""

import torch

from reprbasis.kits.affine import AffineLearner, ThresholdDictionary, TrainingState, Weighted, firing_threshold, reach_loss
from reprbasis.kits.sparse import codes_above

from .config import JumpReLUConfig
from .ste import jump
from .ste import step as fires

TANH_SLOPE = 4.0


class JumpReLULearner(AffineLearner[JumpReLUConfig]):
    """See the module."""

    def build(self, tensors, stats):
        """Thresholds and bandwidth are relative to the spread of the pre-activations that unit directions give."""
        encoder, encoder_bias, *_ = tensors
        h = stats.sample[:1024] @ encoder.T + encoder_bias
        sigma = float(h.std().clamp_min(1e-6))
        given = self.config.threshold
        start = firing_threshold(h, self._target(stats.d_in)) if given is None else given * sigma
        dictionary = ThresholdDictionary(*tensors, torch.full_like(encoder_bias, start))
        dictionary.state = TrainingState(self.config.width, stats.variance, sigma=sigma)
        return dictionary

    def param_groups(self, dictionary):
        """Adam without momentum, as in the paper: most thresholds receive gradient only now and then."""
        slow = [dictionary.W_enc, dictionary.W_dec, dictionary.b_dec]
        fast = [dictionary.b_enc, dictionary.threshold]
        return [{"params": slow, "betas": (0.0, 0.999)},
                {"params": fast, "betas": (0.0, 0.999), "lr_factor": self.config.threshold_lr}]

    def loss(self, dictionary, rows, step):
        """`reconstruction` (share of variance), `sparsity`, and `revive` for dead latents."""
        batch, state = Weighted.of(rows), dictionary.state
        sigma = state["sigma"].to(batch.x.dtype)
        bandwidth, threshold = self.config.bandwidth * sigma, dictionary.threshold
        floor = threshold.detach() - 0.51 * bandwidth  # below it neither the code nor the window can be reached
        codes = codes_above(batch.x, dictionary.W_enc, dictionary.b_enc, floor, self.scratch)
        local = codes.at(threshold)
        z = jump(codes.h, local, bandwidth)
        error, _ = self.reconstruction(state, batch, codes.decode(z, dictionary.W_dec) + dictionary.b_dec, step)
        ramp = min(1.0, step.progress / self.config.warmup) if self.config.warmup else 1.0
        l0 = codes.row_sum(fires(codes.h, local, bandwidth))
        step.log("l0", batch.mean(l0))
        if self.config.sparsity == "target":
            sparsity = self._excess(l0, batch, step)
        elif self.config.sparsity == "l0":
            sparsity = batch.mean(l0)
        else:
            sparsity = batch.mean(codes.row_sum(torch.tanh(TANH_SLOPE / sigma * z)))
        terms = {"reconstruction": error, "sparsity": self._coefficient(dictionary.d_in) * ramp * sparsity}
        with torch.no_grad():
            state.track(codes.fired(z), batch.rows)
        if self.config.revive:
            terms["revive"] = self.config.revive * reach_loss(dictionary, batch, self.dead(state, step, batch.rows))
        return terms

    def after_step(self, dictionary, step):
        """Unit norms, and thresholds not below 0."""
        super().after_step(dictionary, step)
        dictionary.threshold.data.clamp_min_(0.0)

    def _target(self, d_in):
        return max(d_in / 16, 4.0) if self.config.target_l0 is None else self.config.target_l0

    def _coefficient(self, d_in):
        if self.config.coefficient is not None:
            return self.config.coefficient
        return 1.0 if self.config.sparsity == "target" else 0.1 / self._target(d_in)

    def _excess(self, l0, batch, step):
        target = self._target(batch.x.shape[1])
        overall = (batch.mean(l0) / target - 1).square()
        if self.config.site_limit is None:
            return overall
        weight, total = batch.site_sums(torch.stack([torch.ones_like(l0), l0], 1)).T
        mean = total / weight.clamp_min(1e-12)
        step.log("l0_max_site", mean.max())
        return overall + (mean / (self.config.site_limit * target) - 1).relu().square().sum() / (weight > 0).sum()
