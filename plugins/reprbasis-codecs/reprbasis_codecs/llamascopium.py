"""llamascopium, OpenMOSS (https://github.com/OpenMOSS/Language-Model-SAEs): `config.json` and `sae_weights.safetensors`.

    tensors   W_E [D, K], b_E [K], W_D [K, D], b_D [D] (if use_decoder_bias), activation_function.log_jumprelu_threshold [K],
              dataset_average_activation_norm.HOOK []
    x'        = x sqrt(D) / dataset_average_activation_norm    (norm_activation: dataset-wise), x    (inference)
    z         = h g(h |d|) / h, g the activation, |d| the norm of the decoder row, if sparsity_include_decoder_norm

Written checkpoints are folded (inference) and gate by h alone.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reprbasis.errors import CapabilityError, UserError
from reprbasis.registry import Registry
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .config import LlamascopiumConfig
from .files import NOTE, Exchange, hook_or_site
from .names import choose, of_hook
from .plain import Plain, take

THRESHOLD, NORM = "activation_function.log_jumprelu_threshold", "dataset_average_activation_norm."


class Llamascopium(Exchange[LlamascopiumConfig]):
    """See the module."""

    title = "llamascopium"
    config_file, weights_file = "config.json", "sae_weights.safetensors"

    def load(self, config: dict[str, Any], folder: Path, registry: Registry) -> Basis:
        where, kind, hook = str(folder), config.get("act_fn", "relu"), config.get("hook_point_in")
        for wrong, told in (
                (config.get("sae_type", "sae") != "sae", f"sae_type '{config.get('sae_type')}'"),
                (hook != config.get("hook_point_out"), "different hook points for input and output (a transcoder)"),
                (config.get("use_glu_encoder", False), "a GLU encoder"),
                (kind not in ("relu", "jumprelu", "topk"), f"the activation '{kind}'")):
            if wrong:
                raise CapabilityError(f"the checkpoint has {told}, and no learner here does that", where=where,
                                      do="convert it to JumpReLU with llamascopium first" if kind == "batchtopk"
                                      else "use a sparse autoencoder with relu, jumprelu or topk")
        tensors = self.weights(folder)
        norms = {n.removeprefix(NORM): float(tensors.pop(n)) for n in [n for n in tensors if n.startswith(NORM)]}
        wanted = {"W_E": "W_enc", "b_E": "b_enc", "W_D": "W_dec", "b_D": "b_dec"}
        found = take(tensors, wanted | ({THRESHOLD: "threshold"} if kind == "jumprelu" else {}), where=where,
                     optional=frozenset() if config.get("use_decoder_bias", True) else frozenset({"b_D"}))
        found["W_enc"] = found["W_enc"].T.contiguous()
        found.setdefault("b_dec", torch.zeros_like(found["W_dec"][0]))
        if kind == "jumprelu":
            found["threshold"] = found["threshold"].exp()
        plain = Plain(kind, **found, k=config.get("top_k") if kind == "topk" else None)
        if config.get("sparsity_include_decoder_norm", True):
            plain = gated_by_norm(plain)
        site = choose(self.config.site, (config.get(NOTE) or {}).get("site"), of_hook(hook), f"hook_point_in '{hook}'", where)
        return plain.basis(site, registry, scale=self.input_scale(config, norms, where), details=self.details(kind, config))

    @staticmethod
    def input_scale(config: dict[str, Any], norms: dict[str, float], where: str) -> float:
        """The factor on the activations that the weights expect."""
        kind = config.get("norm_activation", "dataset-wise")
        if kind == "inference":
            return 1.0
        if kind != "dataset-wise":
            raise CapabilityError(f"norm_activation '{kind}' depends on the single token, which no normaliser here does",
                                  where=where, do="use a checkpoint with dataset-wise or inference")
        norm = norms.get(str(config.get("hook_point_in")), 0.0)
        if not (math.isfinite(norm) and norm > 0):
            raise UserError("the weights do not hold the mean norm of the activations they expect", where=where,
                            do="save the checkpoint from llamascopium with fold_activation_scale=True")
        return math.sqrt(config["d_model"]) / norm

    def dump(self, basis: Basis, plain: Plain, site: Site) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if plain.kind == "gated":
            raise CapabilityError("llamascopium knows no gated dictionaries", do="export to saelens or dictionary-learning")
        plain = self.folded(basis, plain, site, centred=False)
        tensors = plain.tensors()
        weights = {"W_E": tensors["W_enc"].T, "b_E": tensors["b_enc"], "W_D": tensors["W_dec"], "b_D": tensors["b_dec"]}
        if plain.kind == "jumprelu":
            weights[THRESHOLD] = tensors["threshold"].clamp_min(torch.finfo(torch.float32).tiny).log()
        ratio = basis.d_dict / basis.d_in
        if int(basis.d_in * ratio) != basis.d_dict:  # it computes K from this ratio, rounding down
            ratio = math.nextafter(ratio, math.inf)
        config = {"sae_type": "sae", "d_model": basis.d_in, "expansion_factor": ratio, "use_decoder_bias": True,
                  "act_fn": plain.kind, "norm_activation": "inference", "sparsity_include_decoder_norm": False,
                  "top_k": plain.k or 50, "hook_point_in": hook_or_site(site), "hook_point_out": hook_or_site(site),
                  "use_glu_encoder": False, NOTE: self.note(site)}
        return config, self.on_disk(weights)


def gated_by_norm(plain: Plain) -> Plain:
    """A dictionary whose activation sees h |d|, written as one whose activation sees h.

    For jumprelu that is threshold / |d|. For topk codes take the units of h |d|, because nothing else chooses the same latents.
    """
    if plain.kind == "relu":
        return plain
    wide = plain.map(Tensor.double)
    norms = torch.linalg.vector_norm(wide.W_dec, dim=1).clamp_min(1e-30)
    if plain.kind == "topk":
        out = wide.scaled(norms)
    else:
        assert wide.threshold is not None
        out = Plain(**{**vars(wide), "threshold": wide.threshold / norms})
    return out.map(lambda t: t.to(plain.W_dec.dtype))
