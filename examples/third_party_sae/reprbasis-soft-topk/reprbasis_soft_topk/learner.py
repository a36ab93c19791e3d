"""TopK with soft edges: the k largest codes, each shortened by the (k+1)-th.

    h = x W_enc^T + b_enc      t = relu of the (k+1)-th largest entry of h      z = relu(h - t)      x^ = z W_dec + b_dec
    loss = |x - x^|^2 / V

At most k codes of a row are not 0, as with TopK (Gao et al. 2024, arXiv 2406.04093), but z is a continuous function of x: a
latent enters and leaves with code 0 instead of jumping, and the runner-up gets a gradient (through t) before it is in. V is
the total variance of the data.

Shapes: N rows, D width, K latents.
"""

from collections.abc import Mapping

import torch
from reprbasis.interfaces.learner import ActivationStats, Dictionary, DictionaryLearner, Rows, StepInfo
from torch import Tensor, nn
from torch.nn.functional import normalize

from .config import SoftTopkConfig


class SoftTopkDictionary(Dictionary):
    """W_enc, W_dec: [K, D]; b_enc: [K]; b_dec: [D]; variance: total variance of the data; k: codes kept."""

    def __init__(self, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, variance: Tensor, k: Tensor) -> None:
        super().__init__()
        self.d_dict, self.d_in = W_enc.shape
        self.W_enc, self.b_enc = nn.Parameter(W_enc), nn.Parameter(b_enc)
        self.W_dec, self.b_dec = nn.Parameter(W_dec), nn.Parameter(b_dec)
        self.register_buffer("variance", variance)
        self.register_buffer("k", k)

    def encode(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., K]."""
        h = x @ self.W_enc.T + self.b_enc
        values, index = h.topk(int(self.k) + 1, dim=-1)
        codes = torch.relu(values[..., :-1] - torch.relu(values[..., -1:]))
        return torch.zeros_like(h).scatter(-1, index[..., :-1], codes)

    def decode(self, z: Tensor) -> Tensor:
        """[..., K] -> [..., D]."""
        return z @ self.W_dec + self.b_dec

    def directions(self) -> Tensor:
        """[K, D]."""
        return self.W_dec


class SoftTopkLearner(DictionaryLearner[SoftTopkConfig]):
    """How such a dictionary is learned."""

    def start(self, stats: ActivationStats, generator: torch.Generator) -> SoftTopkDictionary:
        """Random unit directions, the encoder their transpose, the decoder bias the mean of the data."""
        rows = normalize(torch.randn(self.config.width, stats.d_in, generator=generator))
        mean = stats.mean.float().clone()
        k = torch.tensor(min(self.config.k, self.config.width - 1))
        return SoftTopkDictionary(rows.clone(), -rows @ mean, rows, mean, torch.tensor(stats.variance), k)

    def loss(self, dictionary: Dictionary, rows: Rows, step: StepInfo) -> dict[str, Tensor]:
        """Named terms; the loop adds them up and logs each. Rows count by their weight."""
        share = rows.weight / rows.weight.sum()
        z = dictionary.encode(rows.x)
        error = share @ (rows.x - dictionary.decode(z)).square().sum(1)
        spread = share @ (rows.x - share @ rows.x).square().sum(1)
        step.log("l0", share @ (z > 0).float().sum(1))
        step.log("fvu", error / spread)
        return {"reconstruction": error / dictionary.variance}

    def after_step(self, dictionary: Dictionary, step: StepInfo) -> None:
        """Decoder rows back to unit norm."""
        with torch.no_grad():
            dictionary.W_dec.copy_(normalize(dictionary.W_dec))

    def restore(self, d_in: int, tensors: Mapping[str, Tensor]) -> SoftTopkDictionary:
        """The dictionary from its `state_dict()`."""
        names = ("W_enc", "b_enc", "W_dec", "b_dec", "variance", "k")
        return SoftTopkDictionary(*(tensors[name].clone() for name in names))
