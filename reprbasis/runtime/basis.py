"""The Basis: one coordinate system for every site of a model.

A dictionary shared by all sites plus a small affine normaliser per site: `x' = (x - mean_s) * scale_s`.
One dictionary for a single site, or the identity dictionary, are special cases.

Shapes: B batch, T tokens, D width, K latents, S sites.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from ..errors import CapabilityError, ShapeError, SiteError
from ..interfaces.artifact import Artifact
from ..interfaces.learner import Dictionary, DictionaryLearner
from ..interfaces.model import Edit, ForwardResult
from ..interfaces.tokens import TokenBatch
from ..sites import Site, select

if TYPE_CHECKING:
    from ..registry import Registry
    from .activations import SiteStats

NormaliserKind = Literal["affine", "scalar", "none"]


@dataclass(frozen=True)
class Normaliser:
    """Per-site affine map to comparable coordinates.

    Args:
        mean: [S, D]; scale: [S]. `affine` gives mean 0 and mean |x'|^2 = D per site; `scalar` only the latter; `none` is
            the identity.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, kind: NormaliserKind, sites: Sequence[Site], stats: SiteStats) -> Self:
        """From harvested moments."""
        width = {int(stats.mean[s].shape[0]) for s in sites}
        if len(width) != 1:
            have = ", ".join(f"{s}: {stats.mean[s].shape[0]}" for s in sites)
            raise ShapeError(f"sites of different widths cannot share a dictionary ({have})",
                             do="choose sites of one width, or learn one basis for each width")
        d = width.pop()
        mean, scale = torch.zeros(len(sites), d), torch.ones(len(sites))
        for i, site in enumerate(sites):
            if kind == "affine":
                mean[i] = stats.mean[site].float()
            if kind != "none":
                power = stats.variance(site) if kind == "affine" else stats.power[site]
                scale[i] = (d / max(power, 1e-12)) ** 0.5
        return cls(mean, scale)

    def apply(self, x: Tensor, site: Tensor | int) -> Tensor:
        """[..., D] raw -> normalised; `site` indexes S (one int, or one index per row)."""
        scale = self.scale[site]
        return (x - self.mean[site]) * (scale[..., None] if scale.ndim else scale)

    def invert(self, x: Tensor, site: Tensor | int) -> Tensor:
        """[..., D] normalised -> raw."""
        scale = self.scale[site]
        return x / (scale[..., None] if scale.ndim else scale) + self.mean[site]

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return replace(self, mean=self.mean.to(device), scale=self.scale.to(device))


class Basis(Artifact):
    """A dictionary seen from every site in that site's own units.

    Args:
        sites: in execution order.
        normaliser: per site.
        dictionary: the shipped form.
        learner: what made it (kept so that the basis can be loaded again and controls can be started).
        capabilities: of the learner.
        details: history of the training, model facts, settings; JSON values.
    """

    type: ClassVar[str] = "basis"

    def __init__(self, sites: Sequence[Site], normaliser: Normaliser, dictionary: Dictionary,
                 learner: DictionaryLearner[Any], *, capabilities: frozenset[str] = frozenset(),
                 details: Mapping[str, Any] | None = None) -> None:
        self.sites, self.normaliser, self.learner = tuple(sites), normaliser, learner
        self.dictionary = dictionary.eval().requires_grad_(False)
        self.capabilities, self.details = capabilities, dict(details or {})
        if normaliser.mean.shape != (len(self.sites), dictionary.d_in):
            raise ShapeError(f"the dictionary takes width {dictionary.d_in}, the normaliser of {len(self.sites)} sites has "
                             f"shape {tuple(normaliser.mean.shape)}", do="learn the basis on these activations")
        self._index = {s: i for i, s in enumerate(self.sites)}

    def __repr__(self) -> str:
        return f"Basis({len(self.sites)} sites, {self.d_in} -> {self.d_dict}, {self.learner!r})"

    @property
    def d_in(self) -> int:
        """Width D."""
        return self.dictionary.d_in

    @property
    def d_dict(self) -> int:
        """Number of latents K."""
        return self.dictionary.d_dict

    def provides(self) -> frozenset[str]:
        """Capabilities of the learner."""
        return self.capabilities

    def index(self, site: Site) -> int:
        """Position of a site in the basis.

        Raises:
            SiteError: the basis does not cover it.
        """
        try:
            return self._index[site]
        except KeyError:
            raise SiteError(f"the basis does not cover site '{site}'",
                            do=f"it covers {', '.join(map(str, self.sites[:8]))}{' ...' if len(self.sites) > 8 else ''}"
                            ) from None

    def encode(self, site: Site, x: Tensor) -> Tensor:
        """[..., D] in the site's units -> codes [..., K], on the basis's device (rows from disk may lie on another)."""
        if x.shape[-1] != self.d_in:
            raise ShapeError(f"activations at {site} have width {x.shape[-1]}, the dictionary takes {self.d_in}",
                             do="use the basis with the model it was learned on")
        return self.dictionary.encode(self.normaliser.apply(x.to(self.normaliser.mean), self.index(site)))

    def decode(self, site: Site, z: Tensor) -> Tensor:
        """Codes [..., K] -> [..., D] in the site's units."""
        return self.normaliser.invert(self.dictionary.decode(z), self.index(site))

    def directions(self, site: Site) -> Tensor:
        """[K, D] what one unit of each latent adds at this site.

        Raises:
            CapabilityError: the decoder is not affine.
        """
        rows = self.dictionary.directions()
        if rows is None:
            raise CapabilityError("this dictionary has no directions: its decoder is not affine",
                                  do="use a learner that provides affine-decoder")
        return rows / self.normaliser.scale[self.index(site)]

    def states(self, result: ForwardResult) -> dict[Site, tuple[Tensor, Tensor]]:
        """For every captured site: codes [B, T, K] and reconstruction error x - decode(codes) [B, T, D]."""
        out = {}
        for site in self.sites:
            if site in result.sites:
                x = result.sites[site]
                z = self.encode(site, x)
                out[site] = z, x - self.decode(site, z).to(x.dtype)
        return out

    def splice(self, sites: Sequence[Site] | None = None, *, mask: Mapping[Site, Tensor] | None = None,
               fill: Mapping[Site, Tensor] | None = None, error: Literal["own", "none"] = "own") -> list[Edit]:
        """Edits that run the model through the basis.

        Args:
            sites: where (default: all sites of the basis).
            mask: site -> bool [K] or [T, K], or float in [0, 1]: which latents keep their own value. None: all.
            fill: site -> [K] or [B, T, K]: the value that masked-out latents take (their mean, or their value in a corrupted
                run); 0 where a site is not named.
            error: `own` adds the reconstruction error of the same token back, so that without a mask nothing changes (exactly);
                `none` drops it: the model sees only what the dictionary explains.
        """
        return [Splice(site, self, None if mask is None else mask.get(site), None if fill is None else fill.get(site), error)
                for site in (self.sites if sites is None else sites)]

    def tensors(self) -> Mapping[str, Tensor]:
        """Normaliser and the dictionary's state."""
        out = {"normaliser/mean": self.normaliser.mean, "normaliser/scale": self.normaliser.scale}
        return out | {f"dictionary/{k}": v.contiguous() for k, v in self.dictionary.state_dict().items()}

    def facts(self) -> Mapping[str, Any]:
        """Sites, learner and its config, capabilities, history and details."""
        return {"sites": [str(s) for s in self.sites], "learner": self.learner.full_name,
                "config": self.learner.config.model_dump(mode="json"), "capabilities": sorted(self.capabilities),
                "d_in": self.d_in, "d_dict": self.d_dict, **self.details}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], registry: Registry) -> Self:
        """Inverse of `tensors` and `facts`; the registry names the missing distribution if the learner is not installed."""
        learner = registry.create("learner", facts["learner"], **facts["config"])
        state = {k.removeprefix("dictionary/"): v for k, v in tensors.items() if k.startswith("dictionary/")}
        known = {"sites", "learner", "config", "capabilities", "d_in", "d_dict"}
        return cls([Site.parse(s) for s in facts["sites"]],
                   Normaliser(tensors["normaliser/mean"], tensors["normaliser/scale"]),
                   learner.restore(facts["d_in"], state), learner, capabilities=frozenset(facts["capabilities"]),
                   details={k: v for k, v in facts.items() if k not in known})

    def at(self, sites: str | Collection[str | Site]) -> Basis:
        """The same dictionary at some of its sites (selectors as in `reprbasis.sites.select`), for example `resid.4::5`.

        Raises:
            SiteError: a selector names no site of this basis.
        """
        chosen = select(sites, self.sites)
        rows = torch.tensor([self.index(s) for s in chosen])
        return Basis(chosen, Normaliser(self.normaliser.mean[rows], self.normaliser.scale[rows]), self.dictionary,
                     self.learner, capabilities=self.capabilities, details=self.details)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.normaliser.mean.device

    def to(self, device: torch.device) -> Self:
        """The same on another device; a copy unless it is there already."""
        if self.device == device:
            return self
        return type(self)(self.sites, self.normaliser.to(device), deepcopy(self.dictionary).to(device), self.learner,
                          capabilities=self.capabilities, details=self.details)

    def with_dictionary(self, dictionary: Dictionary) -> Basis:
        """The same sites and normaliser with another dictionary (controls)."""
        return Basis(self.sites, self.normaliser, dictionary, self.learner, capabilities=self.capabilities,
                     details=self.details)


@dataclass(frozen=True)
class Splice:
    """An `Edit` that replaces a site by its decoded codes, see `Basis.splice`."""

    site: Site
    basis: Basis = field(repr=False)
    mask: Tensor | None = None
    fill: Tensor | None = None
    error: Literal["own", "none"] = "own"

    def __call__(self, x: Tensor, batch: TokenBatch) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        codes = self.basis.encode(self.site, x)
        kept = codes
        if self.mask is not None:
            share = self.mask.to(codes.dtype)
            other = torch.zeros_like(codes) if self.fill is None else self.fill.to(codes.dtype).expand_as(codes)
            kept = torch.lerp(other, codes, share.expand_as(codes))
        new = self.basis.decode(self.site, kept)
        if self.error == "none":
            return new.to(x.dtype)
        # with nothing masked both decodings are the same tensor, the difference is exactly 0 and x comes back bit for bit
        own = new if kept is codes else self.basis.decode(self.site, codes)
        return x + (new - own).to(x.dtype)

    def at(self, site: Site) -> Splice:
        """The same splice at another site."""
        return replace(self, site=site)
