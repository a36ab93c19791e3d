"""Modes of MLPs: `mlp`, `mlp_bg`, `mlp_lin`, `neuron`. Gates, biases and the input norm are the model's own.

Shapes: N sources, M neurons, D residual width.
"""

import torch
from torch import Tensor

from reprbasis.interfaces.model import MLPWeights
from reprbasis.kits.components import at_unit_rms, neurons


@torch.no_grad()
def mlp(weights: MLPWeights, f: Tensor) -> Tensor:
    """Output for the bare feature at root mean square 1, far from any real input: [N, D] -> [N, D]."""
    return weights.function(weights.norm(at_unit_rms(f.to(weights.W_out))))


@torch.no_grad()
def mlp_bg(weights: MLPWeights, f: Tensor, x: Tensor, scale: Tensor | float) -> Tensor:
    """Change of the output when a feature joins a typical input: MLP(x + scale f) - MLP(x).

    A gated MLP is not odd, and a bare direction is no input it ever sees; this is the one to prefer over `mlp`.

    Args:
        weights: of the layer.
        f: [N, D] directions, taken at length 1.
        x: [D] mean of the stream that the MLP reads.
        scale: a typical activation of the feature, in units of the stream; a number or [N].

    Returns:
        [N, D].
    """
    x, f = x.to(weights.W_out), f.to(weights.W_out)
    step = torch.as_tensor(scale, dtype=f.dtype, device=f.device).expand(len(f))[:, None] * f / f.norm(dim=-1, keepdim=True)
    return weights.function(weights.norm(x + step)) - weights.function(weights.norm(x[None]))


@torch.no_grad()
def mlp_lin(weights: MLPWeights, f: Tensor, x: Tensor) -> Tensor:
    """Change of the output per unit of a feature at a real input x [D]: the Jacobian times f, norm included: [N, D] -> [N, D].

    The virtual weight of a linearised MLP (as of a transcoder, Dunefsky et al. 2024). Forward-mode derivative of this one MLP.
    """
    x, f = x.to(weights.W_out), f.to(weights.W_out)
    _, out = torch.func.jvp(lambda at: weights.function(weights.norm(at)), (x.expand_as(f).contiguous(),), (f.contiguous(),))
    return out


@torch.no_grad()
def neuron(weights: MLPWeights, x: Tensor, *, bare: bool = True) -> Tensor:
    """Activation of every neuron, [N, D] -> [N, M]; neuron j writes it times column j of the output matrix.

    So the preference of neuron j for a target is `sign(activation) * cos(target, W_out[:, j])`.

    Args:
        weights: of the layer.
        x: features (`bare`, read at root mean square 1) or real streams.
        bare: which.
    """
    x = x.to(weights.W_out)
    return neurons(weights, weights.norm(at_unit_rms(x) if bare else x))
