"""Entropy of a basis's codes over any set of activations, with what is needed to read it.

    entropy   sum over latents of H(share of rows where the latent is active), bits (Cho et al. 2025, arXiv 2509.20997)

An entropy without the FVU reached means nothing: a dictionary can have few bits by explaining little. It is a property of the
code, not of the hidden states, whose differential entropy nobody measures here.

Shapes: N rows, D width, K latents, G groups of rows.
"""

from dataclasses import dataclass

import torch

from reprbasis.interfaces.evaluator import Measurement
from reprbasis.kits.bits import CodeEntropy, binary_entropy, code_entropy
from reprbasis.kits.intervals import Estimate, mean, ratio


@dataclass(frozen=True)
class SetEntropy:
    """One set of activations seen through one basis.

    Args:
        code: entropy of the codes and bounds on it.
        entropy: its marginal sum with a 95 % interval over groups (jackknife).
        l0: mean number of active latents.
        fvu: squared error as a share of the spread.
        rate: [K] share of rows where each latent is active.
    """

    code: CodeEntropy
    entropy: Estimate
    l0: Estimate
    fvu: Estimate
    rate: torch.Tensor

    def measurements(self, condition, site):
        """As rows of a table."""
        code, n = self.code, self.code.n
        rows = [("entropy", self.entropy, "bits"), ("l0", self.l0, "latents"), ("fvu", self.fvu, "")]
        out = [Measurement(name, e.value, e.n, e.low, e.high, condition, site, unit) for name, e, unit in rows]
        plain = {"entropy_tree": code.tree, "entropy_joint": code.joint, "live": float(code.live)}
        return out + [Measurement(name, value, n, None, None, condition, site, "latents" if name == "live" else "bits")
                      for name, value in plain.items()]


@torch.no_grad()
def set_entropy(basis, site, x, *, group=None, centre=None, tree_bits=256, resamples=1000):
    """Measure the set `x` at `site`.

    Args:
        basis: any; a latent counts as 1 where it is not 0.
        site: where the activations are from.
        x: [N, D] in the site's own units.
        group: [N] labels of rows that belong together (the sequence of each token); None: every row stands alone.
        centre: [D] the spread is measured around this; None: the mean of the set.
        tree_bits: see `code_entropy`.
        resamples: bootstrap draws for L0 and FVU.

    Returns:
        A `SetEntropy`. Costs one encode and one decode of N rows, and 2*N*tree_bits^2 FLOPs.
    """
    x = x.float().to(basis.device)
    group = torch.arange(len(x)) if group is None else group
    z = basis.encode(site, x)
    on = (z != 0).cpu()
    lost = (x - basis.decode(site, z)).square().sum(1).cpu()
    spread = (x - (x.mean(0) if centre is None else centre.to(x))).square().sum(1).cpu()
    return SetEntropy(code_entropy(on, tree_bits=tree_bits), entropy_over_groups(on, group),
                      mean(on.sum(1).double(), group, resamples=resamples), ratio(lost, spread, group, resamples=resamples),
                      on.double().mean(0))


def entropy_over_groups(on, group):
    """[N, K] bool -> the sum of the entropies of single bits, with a 95 % interval.

    The interval leaves out one group at a time (jackknife): drawing groups with replacement would repeat rows and thereby
    lower the entropy.
    """
    labels, member = torch.unique(group, return_inverse=True)
    g = len(labels)
    ones = torch.zeros(g, on.shape[1], dtype=torch.float64).index_add_(0, member, on.double())
    size = torch.bincount(member, minlength=g).double()
    total, n = ones.sum(0), float(size.sum())
    value = float(binary_entropy(total / n).sum())
    if g < 2:
        return Estimate(value, None, None, len(on), g)
    left_out = binary_entropy((total - ones) / (n - size)[:, None]).sum(1)
    error = float(((g - 1) / g * (left_out - left_out.mean()).square().sum()).sqrt())
    return Estimate(value, value - 1.96 * error, value + 1.96 * error, len(on), g)
