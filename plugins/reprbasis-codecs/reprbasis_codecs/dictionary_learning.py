"""dictionary_learning (Marks, Karvonen, Mueller, https://github.com/saprmarks/dictionary_learning), all its classes.

Its checkpoints are `config.json` and `ae.pt`, which is a pickle and is not read here. The owner of the file turns it into
`ae.safetensors` with one command, shown in the error and in the documentation, and a written checkpoint back with another.

    AutoEncoder              relu       x' = x - bias
    AutoEncoderNew           relu       x' = x
    GatedAutoEncoder         gated      x' = x - decoder_bias
    JumpReluAutoEncoder      jumprelu   x' = x
    AutoEncoderTopK          topk       x' = x - b_dec
    BatchTopKSAE, MatryoshkaBatchTopKSAE   jumprelu with one threshold, x' = x - b_dec
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reprbasis.errors import CapabilityError, UserError, near
from reprbasis.registry import Registry
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .config import DictionaryLearningConfig
from .files import NOTE, Exchange, context_size, model_name
from .names import choose
from .plain import Plain, take

PICKLE = "ae.pt"
CONVERT = ("python -c \"import torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in "
           "torch.load('ae.pt', map_location='cpu', weights_only=True).items()}, 'ae.safetensors')\"")
LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
MATRIX = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
COUNTS = {"k": "k", "threshold": "threshold"}
TENSORS = {
    "AutoEncoder": LINEAR | {"bias": "b_dec"},
    "AutoEncoderNew": LINEAR | {"decoder.bias": "b_dec"},
    "GatedAutoEncoder": {"encoder.weight": "W_enc", "decoder.weight": "W_dec", "gate_bias": "b_enc", "decoder_bias": "b_dec",
                         "r_mag": "r_mag", "mag_bias": "b_mag"},
    "JumpReluAutoEncoder": MATRIX | {"threshold": "threshold"},
    "AutoEncoderTopK": LINEAR | {"b_dec": "b_dec"} | COUNTS,
    "BatchTopKSAE": LINEAR | {"b_dec": "b_dec"} | COUNTS,
    "MatryoshkaBatchTopKSAE": MATRIX | COUNTS | {"group_sizes": "group_sizes"},
}
KINDS = {"AutoEncoder": "relu", "AutoEncoderNew": "relu", "GatedAutoEncoder": "gated", "JumpReluAutoEncoder": "jumprelu",
         "AutoEncoderTopK": "topk", "BatchTopKSAE": "jumprelu", "MatryoshkaBatchTopKSAE": "jumprelu"}
UNCENTRED = ("AutoEncoderNew", "JumpReluAutoEncoder")
TRAINERS = {"AutoEncoder": "StandardTrainer", "AutoEncoderNew": "StandardTrainerNew", "GatedAutoEncoder": "GatedSAETrainer",
            "JumpReluAutoEncoder": "JumpReluTrainer", "AutoEncoderTopK": "TopKTrainer"}
MODULES = {"resid": "resid_post_layer_{}", "attn_out": "attention_out_layer_{}", "mlp_out": "mlp_out_layer_{}"}


class DictionaryLearning(Exchange[DictionaryLearningConfig]):
    """See the module."""

    title = "dictionary_learning"
    config_file, weights_file = "config.json", "ae.safetensors"

    def detect(self, folder: Path) -> bool:
        """Whether config and weights are there, the weights maybe still as a pickle."""
        found = folder / self.config_file
        return super().detect(folder) or (found.is_file() and (folder / PICKLE).is_file())

    def load(self, config: dict[str, Any], folder: Path, registry: Registry) -> Basis:
        where = str(folder)
        if not (folder / self.weights_file).is_file():
            raise UserError(f"{PICKLE} is a pickle, which can run code when it is opened, so it is not read", where=where,
                            do=f"if you trust it, run in that folder: {CONVERT}")
        trainer = config.get("trainer")
        name = trainer.get("dict_class") if isinstance(trainer, dict) else None
        if name not in TENSORS:
            raise CapabilityError(f"the class '{name}' has no counterpart here", where=where, do=near(str(name), TENSORS))
        tensors = self.weights(folder)
        found = take(tensors, TENSORS[name], where=where)
        extra = {n: found.pop(n).tolist() for n in ("k", "group_sizes") if n in found}
        if "encoder.weight" not in tensors:
            found["W_enc"] = found["W_enc"].T.contiguous()
        if "decoder.weight" in tensors:
            found["W_dec"] = found["W_dec"].T.contiguous()
        if name == "AutoEncoderTopK":
            extra["threshold"] = float(found.pop("threshold"))
        elif found.get("threshold") is not None:
            found["threshold"] = self.threshold(found["threshold"], where).expand_as(found["b_enc"]).clone()
        kind = KINDS[name]
        plain = Plain(kind, **found, k=extra["k"] if kind == "topk" else None, centred=name not in UNCENTRED)
        site = choose(self.config.site, (config.get(NOTE) or {}).get("site"), of_trainer(trainer),
                      f"layer {trainer.get('layer')}, submodule '{trainer.get('submodule_name')}'", where)
        return plain.basis(site, registry, details=self.details(name, config, tensors=extra))

    def threshold(self, found: Tensor, where: str) -> Tensor:
        """The threshold of the file or, where training never set it (-1), the one the user gives; below 0 is the same as 0."""
        if found.ndim == 0 and float(found) < 0:
            if self.config.threshold is None:
                raise UserError("the threshold of this BatchTopK checkpoint was never set (training ended before "
                                "threshold_start_step), so which latents fire on a single row is not known", where=where,
                                do="give one: --set threshold=NUMBER")
            return torch.tensor(self.config.threshold, dtype=found.dtype)
        return found.clamp_min(0)

    def dump(self, basis: Basis, plain: Plain, site: Site) -> tuple[dict[str, Any], dict[str, Tensor]]:
        before = self.imported(basis) if fits(self.imported(basis).get("architecture"), plain) else {}
        name = before.get("architecture") or self.choose_class(basis, plain, site)
        plain = self.folded(basis, plain, site, centred=name not in UNCENTRED)
        tensors: dict[str, Tensor] = plain.tensors()
        if plain.kind == "relu" and "threshold" in TENSORS[name].values():  # an imported threshold of 0
            tensors["threshold"] = torch.zeros_like(plain.b_enc)
        for key, value in before.get("tensors", {}).items():
            tensors[key] = torch.tensor(value, dtype={"k": torch.int32, "group_sizes": torch.int64}.get(key, torch.float32))
        if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
            tensors["threshold"] = tensors["threshold"][0]
        if plain.kind == "topk":
            tensors["k"] = torch.tensor(plain.k, dtype=torch.int32)
            tensors.setdefault("threshold", torch.tensor(-1.0))
        weights = {old: tensors[new] for old, new in TENSORS[name].items()}
        for key in ("W_enc", "decoder.weight"):
            if key in weights:
                weights[key] = weights[key].T
        trainer = {"trainer_class": TRAINERS.get(name), "dict_class": name, "activation_dim": basis.d_in,
                   "dict_size": basis.d_dict, "layer": site.layer, "lm_name": model_name(basis),
                   "submodule_name": MODULES.get(site.name, str(site)).format(site.layer)}
        if plain.kind == "topk":
            trainer["k"] = plain.k
        buffer = {"d_submodule": basis.d_in, "io": "out", "ctx_len": context_size(basis)}
        config = before.get("config") or {"trainer": trainer, "buffer": buffer}
        return {**config, NOTE: self.note(site)}, self.on_disk(weights)

    @staticmethod
    def choose_class(basis: Basis, plain: Plain, site: Site) -> str:
        """The class that says it best: with a centre where there is one."""
        if plain.kind == "relu":
            index = basis.index(site)
            bare = not basis.normaliser.mean[index].any() and float(basis.normaliser.scale[index]) == 1
            return "AutoEncoderNew" if bare else "AutoEncoder"
        return {"jumprelu": "JumpReluAutoEncoder", "topk": "AutoEncoderTopK", "gated": "GatedAutoEncoder"}[plain.kind]


def fits(name: str | None, plain: Plain) -> bool:
    """Whether a class can hold a dictionary; thresholds of 0 are relu, and some classes have one threshold for all latents."""
    if name is None or name not in KINDS:
        return False
    if KINDS[name] == "jumprelu" and plain.kind in ("relu", "jumprelu"):
        one = plain.threshold is None or bool((plain.threshold == plain.threshold[0]).all())
        return one or name == "JumpReluAutoEncoder"
    return KINDS[name] == plain.kind


def of_trainer(trainer: dict[str, Any]) -> Site | None:
    """The site that a trainer's config names, by the library's own habits of naming submodules."""
    layer, name = trainer.get("layer"), str(trainer.get("submodule_name") or "resid").lower()
    if not isinstance(layer, int):
        return None
    for kind, marks in (("resid", ("resid",)), ("attn_out", ("attn", "attention")), ("mlp_out", ("mlp",))):
        if any(mark in name for mark in marks):
            return Site(kind, layer)
    return None

