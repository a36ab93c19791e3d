"""Import of published circuits: the JSON files of ScalableSAECircuits (Nainani et al. 2025).

A file lists, for each hook, the latents that are on, position after position, with the positions themselves lost: an id that
occurs twice is on at two positions. Some files hold positions in place of ids.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from reprbasis.errors import DataError
from reprbasis.interfaces.finder import Circuit
from reprbasis.sites import Site

_HOOK = re.compile(r"^blocks\.(\d+)\.hook_(resid_post|resid_pre|attn_out|mlp_out)$")
NUMBERS = ("total_density", "avg_density", "ce_loss", "logit_diff", "faithfulness")


def read_ssc(source: Path | Mapping[str, Any], d_dict: int, *, tokens: int | None = None) -> Circuit:
    """A circuit with shared masks (positions are unknown, so it cannot be run as it was); `details` keeps the file's numbers.

    Args:
        source: a file, or what is in it.
        d_dict: K, latents of each dictionary.
        tokens: prompt length T, by which lists of positions are told from lists of ids.

    Raises:
        DataError: it is not such a file, an id is out of range, or the lists hold positions.
    """
    where = str(source) if isinstance(source, Path) else None
    try:
        raw = json.loads(source.read_text(encoding="utf-8")) if isinstance(source, Path) else source
    except ValueError as error:
        raise DataError(f"this is not JSON ({error})", where=where, do="give one of the *_run.json files") from None
    hooks: dict[str, Sequence[int]] = {k: v for k, v in raw.items() if k not in NUMBERS}
    if not hooks or not all(_HOOK.match(k) and isinstance(v, list) for k, v in hooks.items()):
        raise DataError("the file does not list latents by hook", where=where, do="give one of the *_run.json files")
    ids = [i for v in hooks.values() for i in v]
    if tokens is not None and ids and max(ids) < tokens:
        raise DataError(f"every number is below {tokens}: these are positions, not latents", where=where,
                        do="the latents of this file are lost; use another one")
    if wrong := [i for i in ids if not 0 <= i < d_dict]:
        raise DataError(f"latent {wrong[0]} is out of range", where=where, do=f"the dictionary has {d_dict} latents")
    masks = {}
    for hook, found in hooks.items():
        mask = torch.zeros(d_dict + 1, dtype=torch.bool)
        mask[torch.tensor(found, dtype=torch.long)] = True
        masks[_site(hook)] = mask
    details = {"finder": "imported", "format": "ScalableSAECircuits", "positions": "unknown", "nodes": len(ids),
               "numbers": {k: raw[k] for k in NUMBERS if k in raw}}
    return Circuit(dict(sorted(masks.items(), key=lambda item: (item[0].layer or 0))), None, details)


def _site(hook: str) -> Site:
    found = _HOOK.match(hook)
    assert found is not None
    layer, name = int(found[1]), found[2]
    if name == "resid_pre":
        return Site("resid", layer - 1) if layer else Site("embed")
    return Site("resid" if name == "resid_post" else name, layer)
