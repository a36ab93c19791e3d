"""One repetition of a frontier, with the metric of every prompt, and how it is written to disk.

Shapes: N held-out prompts, R rows of a mask, K latents.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from torch import Tensor

from reprbasis.artifacts.manifest import write_bytes
from reprbasis.artifacts.store import read_tensors, write_tensors
from reprbasis.errors import ArtifactError
from reprbasis.interfaces.finder import Circuit, Setup
from reprbasis.sites import Site

from .evaluation import Judged, Masks, Outcome, Scale

_SCALE = ("model", "basis", "empty", "whole", "group")
_JUDGED = ("value", "kl", "top", "rest", "bare")


@dataclass(frozen=True)
class Curve:
    """One repetition.

    Args:
        setup: what a node is.
        scale: of the judge; it depends on the prompts, through the values of ablated nodes.
        points: method -> what it was asked for -> circuit; random nodes and scorers have the sizes of the first method.
        family: the circuits of the first method, by what was asked for.
        pool: candidate nodes.
        again: kind of repetition -> the families of the first method that were found (orders, halves).
    """

    setup: Setup
    scale: Scale
    points: Mapping[str, Mapping[str, Judged]]
    family: Mapping[str, Circuit]
    pool: Masks
    again: Mapping[str, Sequence[Mapping[str, Circuit]]] = field(default_factory=dict)

    @property
    def candidates(self) -> int:
        """Number of candidate nodes."""
        return sum(int(m.sum()) for m in self.pool.values())

    def save(self, folder: Path) -> None:
        """Write `curve.safetensors` and `curve.json`; of circuits only which nodes they have and what they were asked for."""
        tensors = {f"scale/{k}": getattr(self.scale, k) for k in _SCALE} | {f"pool/{s}": m for s, m in self.pool.items()}
        points = []
        for method, family in self.points.items():
            for key, j in family.items():
                held = {**{k: getattr(j.found, k) for k in _JUDGED[:3]}, "rest": j.rest, "bare": j.bare}
                tensors |= {f"points/{len(points)}/{k}": v for k, v in held.items() if v is not None}
                points.append([method, key, j.nodes, j.errors, j.latents])
        groups = {"family": [self.family], **self.again}
        keys = {kind: [list(f) for f in families] for kind, families in groups.items()}
        for kind, families in groups.items():
            for i, found in enumerate(families):
                tensors |= {f"{kind}/{i}/{key}/{s}": m for key, c in found.items() for s, m in c.masks.items()}
        facts = {"setup": self.setup.facts(), "points": points, "keys": keys, "resamples": self.scale.resamples,
                 "seed": self.scale.seed}
        write_tensors(folder / "curve.safetensors", {k: v.clone() for k, v in tensors.items()})  # circuits may share masks
        write_bytes(folder / "curve.json", json.dumps(facts).encode())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Inverse of `save`.

        Raises:
            ArtifactError: there is no such curve.
        """
        tensors = read_tensors(folder / "curve.safetensors")
        try:
            facts = json.loads((folder / "curve.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ArtifactError(f"the curve cannot be read ({error})", where=str(folder), do="measure it again") from None
        setup = Setup.of(facts["setup"])
        points: dict[str, dict[str, Judged]] = {}
        for i, (method, key, *counts) in enumerate(facts["points"]):
            held = {k: tensors[f"points/{i}/{k}"] for k in _JUDGED if f"points/{i}/{k}" in tensors}
            found = Outcome(*(held.pop(k) for k in _JUDGED[:3]))
            points.setdefault(method, {})[key] = Judged(*counts, found, **held)

        def circuits(kind: str, i: int, keys: Sequence[str]) -> dict[str, Circuit]:
            return {key: Circuit({s: tensors[f"{kind}/{i}/{key}/{s}"] for s in setup.sites}, None, {"setup": setup.facts()})
                    for key in keys}

        groups = {kind: [circuits(kind, i, keys) for i, keys in enumerate(many)] for kind, many in facts["keys"].items()}
        scale = Scale(*(tensors[f"scale/{k}"] for k in _SCALE), facts["resamples"], facts["seed"])
        pool: dict[Site, Tensor] = {s: tensors[f"pool/{s}"] for s in setup.sites}
        return cls(setup, scale, points, groups.pop("family")[0], pool, groups)
