"""sparsify, EleutherAI (https://github.com/EleutherAI/sparsify): `cfg.json` and `sae.safetensors`, one folder for each module.

    tensors   encoder.weight [K, D], encoder.bias [K], W_dec [K, D], b_dec [D]
    z = the k largest of max((x - b_dec) encoder.weight^T + encoder.bias, 0)        x^ = z W_dec + b_dec

Transcoders, skip connections and GroupMax have no counterpart here.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from reprbasis.errors import CapabilityError
from reprbasis.registry import Registry
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .config import SparsifyConfig
from .files import NOTE, Exchange
from .names import choose, module, of_module
from .plain import Plain, take

TENSORS = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}


class Sparsify(Exchange[SparsifyConfig]):
    """See the module."""

    title = "sparsify"
    config_file, weights_file = "cfg.json", "sae.safetensors"

    def load(self, config: dict[str, Any], folder: Path, registry: Registry) -> Basis:
        where = str(folder)
        for key in ("transcode", "skip_connection", "signed"):
            if config.get(key):
                raise CapabilityError(f"the checkpoint has {key}: true, and no learner here does that", where=where,
                                      do="use a plain sparse autoencoder")
        activation = config.get("activation", "topk")
        if activation != "topk":
            raise CapabilityError(f"the activation '{activation}' has no counterpart here", where=where, do="use one with topk")
        found = take(self.weights(folder), TENSORS, where=where)
        name = folder.resolve().name
        site = choose(self.config.site, (config.get(NOTE) or {}).get("site"), of_module(name), f"the folder '{name}'", where)
        plain = Plain("topk", **found, k=config.get("k"), centred=True)
        return plain.basis(site, registry, details=self.details("topk", config))

    def place(self, site: Site) -> str:
        """The module, which is how sparsify names its folders."""
        return module(site)

    def dump(self, basis: Basis, plain: Plain, site: Site) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if plain.kind != "topk":
            raise CapabilityError(f"sparsify knows TopK dictionaries only, not {plain.kind}",
                                  do="export to saelens, dictionary-learning or llamascopium")
        plain = self.folded(basis, plain, site, centred=True)
        config = {"activation": "topk", "expansion_factor": max(basis.d_dict // basis.d_in, 1), "normalize_decoder": True,
                  "num_latents": basis.d_dict, "multi_topk": False, "skip_connection": False, "transcode": False}
        before = self.imported(basis).get("config", {})
        if (before.get("num_latents") or basis.d_in * before.get("expansion_factor", 0)) != basis.d_dict:
            before = {}
        weights = {old: plain.tensors()[new] for old, new in TENSORS.items()}
        return {**config, **before, "k": plain.k, "d_in": basis.d_in, NOTE: self.note(site)}, self.on_disk(weights)
