"""SAELens v6: `cfg.json` and `sae_weights.safetensors` (Bloom et al., https://github.com/decoderesearch/SAELens).

    tensors   W_enc [D, K], W_dec [K, D], b_dec [D]; b_enc [K] (standard, topk, jumprelu), threshold [K] (jumprelu);
              b_gate, r_mag, b_mag [K] (gated)
    x'        = x - b_dec if apply_b_dec_to_input else x

Inference checkpoints of the four architectures are read and written; training checkpoints are read too (batchtopk and
matryoshka_batchtopk become thresholds, as SAELens itself ships them), and so are flat configs from before version 6.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reprbasis.errors import CapabilityError, UserError, near
from reprbasis.registry import Registry
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .config import SAELensConfig
from .files import NOTE, Exchange, context_size, hook_or_site, model_name, read_config
from .names import choose, of_hook
from .plain import Plain, take

VERSION = "6.0.0"
"""Version of the layout that is written."""
AFFINE = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
TENSORS = {
    "standard": AFFINE,
    "topk": AFFINE,
    "jumprelu": AFFINE | {"threshold": "threshold"},
    "gated": {"W_enc": "W_enc", "W_dec": "W_dec", "b_gate": "b_enc", "b_dec": "b_dec", "r_mag": "r_mag", "b_mag": "b_mag"},
    "batchtopk": AFFINE | {"topk_threshold": "threshold"},
}
TENSORS["matryoshka_batchtopk"] = TENSORS["batchtopk"]
KINDS = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated", "batchtopk": "jumprelu",
         "matryoshka_batchtopk": "jumprelu"}
ARCHITECTURES = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk", "gated": "gated"}


class SAELens(Exchange[SAELensConfig]):
    """See the module."""

    title = "SAELens"
    config_file, weights_file = "cfg.json", "sae_weights.safetensors"

    def load(self, config: dict[str, Any], folder: Path, registry: Registry) -> Basis:
        config = modern(config)
        where, architecture, metadata = str(folder), str(config.get("architecture")), config.get("metadata") or {}
        if architecture not in KINDS:
            raise CapabilityError(f"the SAELens architecture '{architecture}' has no counterpart here", where=where,
                                  do=near(architecture, KINDS))
        if config.get("reshape_activations", "none") != "none":
            raise CapabilityError("the checkpoint reads attention heads before their output matrix (hook_z), no site of the "
                                  "residual stream", where=where, do="use one for hook_attn_out")
        tensors = self.weights(folder)
        if "log_threshold" in tensors:  # training checkpoints of early versions
            tensors["threshold"] = tensors.pop("log_threshold").exp()
        found = take(tensors, TENSORS[architecture], where=where)
        found["W_enc"] = found["W_enc"].T.contiguous()
        if "threshold" in found:  # a negative threshold is the same as 0 there; a scalar is for all latents
            found["threshold"] = found["threshold"].to(found["b_enc"].dtype).clamp_min(0).expand_as(found["b_enc"]).clone()
        plain = Plain(KINDS[architecture], **found, k=config.get("k") if architecture == "topk" else None,
                      centred=bool(config.get("apply_b_dec_to_input", True)))
        if config.get("rescale_acts_by_decoder_norm", False):
            plain = rescaled(plain, architecture)
        note = (metadata.get(NOTE) or {}).get("site")
        hook = metadata.get("hook_name")
        site = choose(self.config.site, note, of_hook(hook), f"hook_name '{hook}'", where)
        metadata = {k: v for k, v in metadata.items() if k != NOTE}
        return plain.basis(site, registry, scale=self.input_scale(config, folder),
                           details=self.details(architecture, config | {"metadata": metadata}))

    def input_scale(self, config: dict[str, Any], folder: Path) -> float:
        """The factor on the activations that the weights expect."""
        kind = config.get("normalize_activations", "none")
        if kind in ("none", None):
            if self.config.input_scale is not None:
                raise UserError("input_scale is given, but the checkpoint takes activations as they are", where=str(folder),
                                do="leave input_scale out")
            return 1.0
        if kind != "expected_average_only_in":
            raise CapabilityError(f"normalize_activations '{kind}' is no normaliser with one mean and one scale for each site",
                                  where=str(folder), do="fold it into the weights first, or use another checkpoint")
        scaler = folder / "activation_scaler.json"
        if self.config.input_scale is not None:
            return self.config.input_scale
        if not scaler.is_file() or not read_config(scaler).get("scaling_factor"):
            raise UserError("the weights expect activations scaled to mean norm sqrt(D), and the factor is not in the folder",
                            where=str(folder), do="give the factor: --set input_scale=NUMBER (sqrt(D) / mean norm)")
        return float(read_config(scaler)["scaling_factor"])

    def dump(self, basis: Basis, plain: Plain, site: Site) -> tuple[dict[str, Any], dict[str, Tensor]]:
        plain = self.folded(basis, plain, site)
        architecture, before = ARCHITECTURES[plain.kind], self.imported(basis).get("config", {})
        names = {new: old for old, new in TENSORS[architecture].items()}
        weights = {names[n]: t for n, t in plain.tensors().items()}
        weights["W_enc"] = weights["W_enc"].T
        metadata = {"sae_lens_version": VERSION, "sae_lens_training_version": None, "model_name": model_name(basis),
                    "hook_name": hook_or_site(site), "context_size": context_size(basis), "prepend_bos": False}
        config = {"d_in": basis.d_in, "d_sae": basis.d_dict, "dtype": self.config.dtype, "device": "cpu",
                  "apply_b_dec_to_input": plain.centred, "normalize_activations": "none", "reshape_activations": "none",
                  "metadata": {k: v for k, v in metadata.items() if v is not None} | before.get("metadata", {})
                  | {NOTE: self.note(site)},
                  "architecture": architecture}
        if plain.kind == "topk":
            config |= {"k": plain.k, "rescale_acts_by_decoder_norm": False}
        return config, self.on_disk(weights)


def modern(config: dict[str, Any]) -> dict[str, Any]:
    """A config from before version 6, which is flat, in the layout of version 6; a newer one as it is.

    Raises:
        CapabilityError: it uses what version 6 no longer knows.
    """
    if "metadata" in config:
        return config
    old = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
    flat = {old.get(k, k): v for k, v in config.items()}
    if flat.get("finetuning_scaling_factor"):
        raise CapabilityError("the checkpoint was fine-tuned with a factor on its codes (finetuning_scaling_factor)",
                              do="multiply the rows of W_dec by scaling_factor and leave that tensor out")
    function, arguments = flat.get("activation_fn", "relu"), flat.get("activation_fn_kwargs") or {}
    architecture = flat.get("architecture", "standard")
    if function == "topk":
        architecture, flat["k"] = "topk", arguments.get("k")
    elif function not in ("relu", None):
        raise CapabilityError(f"the activation function '{function}' has no counterpart here", do="use relu or topk")
    scaled = flat.get("normalize_activations")
    hook = str(flat.get("hook_name", ""))
    kept = ("k", "d_in", "d_sae", "dtype", "apply_b_dec_to_input")
    told = ("model_name", "hook_name", "hook_head_index", "prepend_bos", "context_size", "dataset_path", "neuronpedia_id",
            "sae_lens_version")
    return {**{k: flat[k] for k in kept if flat.get(k) is not None}, "architecture": architecture,
            "normalize_activations": "expected_average_only_in" if scaled is True else scaled or "none",
            "reshape_activations": flat.get("reshape_activations", "hook_z" if "hook_z" in hook else "none"),
            "metadata": {k: flat[k] for k in told if flat.get(k) is not None}}


def rescaled(plain: Plain, architecture: str) -> Plain:
    """Codes in units of what they add to the reconstruction, by which such a checkpoint chooses its latents.

    Its encoder multiplies codes by the norm of their decoder rows and its decoder divides by it. The threshold of a batchtopk
    checkpoint is in these units already. Inference checkpoints have rows of norm 1 but for rounding; they are left as they are.
    """
    norms = torch.linalg.vector_norm(plain.W_dec.double(), dim=1).clamp_min(1e-8)
    if bool(((norms - 1).abs() < 1e-6).all()):
        return plain
    out = plain.map(Tensor.double).scaled(norms).map(lambda t: t.to(plain.W_dec.dtype))
    if architecture != "topk":
        assert plain.threshold is not None
        out = Plain(**{**vars(out), "threshold": plain.threshold})
    return out

