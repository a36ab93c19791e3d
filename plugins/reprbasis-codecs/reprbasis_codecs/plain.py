"""What all these formats can say: one site, an affine encoder, one of four activations, an affine decoder.

    x' = x - b_dec if centred else x        u = x' W_enc^T        h = u + b_enc        x^ = z W_dec + b_dec

    relu      z = max(h, 0)
    jumprelu  z = h where h > threshold, else 0
    topk      z = the k largest of max(h, 0)
    gated     z = max(exp(r_mag) u + b_mag, 0) where h > 0, else 0

A basis is the same thing behind a normaliser x' = (x - m) a. The normaliser is folded into the weights here, in float64 and
rounded once. A format that subtracts its decoder bias from the input is read as a normaliser with mean b_dec and scale 1, so
that nothing is computed and nothing is rounded.

Shapes: N rows, D width, K latents.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from reprbasis.errors import ArtifactError, CapabilityError, NumericsError, ShapeError
from reprbasis.registry import Registry
from reprbasis.runtime.basis import Basis, Normaliser
from reprbasis.sites import Site

LEARNERS = {"relu": "relu", "jumprelu": "jumprelu", "topk": "topk", "gated": "gated"}
"""Activation -> learner whose shipped form it is."""
PROBES = 64


@dataclass(frozen=True)
class Plain:
    """One dictionary for one site.

    Args:
        kind: the activation.
        W_enc: [K, D], W_dec: [K, D], b_enc: [K] (gated: the bias of the gate), b_dec: [D].
        threshold: [K], for jumprelu.
        r_mag, b_mag: [K], for gated.
        k: for topk.
        centred: whether b_dec is subtracted from the input.
    """

    kind: Literal["relu", "jumprelu", "topk", "gated"]
    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    threshold: Tensor | None = None
    r_mag: Tensor | None = None
    b_mag: Tensor | None = None
    k: int | None = None
    centred: bool = False

    def __post_init__(self) -> None:
        if self.W_enc.ndim != 2:
            raise ShapeError(f"W_enc has shape {tuple(self.W_enc.shape)}", do="a dictionary of one site has a matrix here")
        k, d = self.W_enc.shape
        want = {"W_dec": (k, d), "b_enc": (k,), "b_dec": (d,), "threshold": (k,), "r_mag": (k,), "b_mag": (k,)}
        for name, tensor in self.tensors().items():
            if name in want and tuple(tensor.shape) != want[name]:
                raise ShapeError(f"{name} has shape {tuple(tensor.shape)}, W_enc needs {want[name]}",
                                 do="check that these files belong together")
            if not bool(torch.isfinite(tensor).all()):
                raise NumericsError(f"{name} holds NaN or infinity", do="use a checkpoint from before training diverged")
        if self.kind == "topk" and not (self.k and 1 <= self.k <= k):
            raise ShapeError(f"k is {self.k}, the dictionary has {k} latents", do="check the config beside the weights")

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that are there, by name."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def map(self, change: Any) -> "Plain":
        """Every tensor changed by a function."""
        return replace(self, **{name: change(value) for name, value in self.tensors().items()})

    def encode(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, K], the reference that exports are checked against."""
        u = (x - self.b_dec if self.centred else x) @ self.W_enc.T
        h = u + self.b_enc
        if self.kind == "relu":
            return h.relu()
        if self.kind == "jumprelu":
            return torch.where(h > self.threshold, h, 0.0)
        if self.kind == "gated":
            assert self.r_mag is not None
            return torch.where(h > 0, (self.r_mag.exp() * u + self.b_mag).relu(), 0.0)
        kept = h.topk(self.k, dim=-1)
        return torch.zeros_like(h).scatter(-1, kept.indices, kept.values.relu())

    def decode(self, z: Tensor) -> Tensor:
        """[N, K] -> [N, D]."""
        return z @ self.W_dec + self.b_dec

    # ---- changes of units, exact but for rounding

    def scaled(self, factor: float | Tensor) -> "Plain":
        """Codes times a positive factor, a number or [K]; the reconstruction stays (topk then chooses by the new codes)."""
        f = torch.as_tensor(factor, dtype=self.W_enc.dtype).expand(len(self.b_enc))
        codes = {name: t * f for name, t in self.tensors().items() if name in ("b_enc", "b_mag", "threshold")}
        return replace(self, W_enc=self.W_enc * f[:, None], W_dec=self.W_dec / f[:, None], **codes)

    def raw(self, mean: Tensor, scale: Tensor, *, keep: Literal["codes", "norms"], centred: bool) -> "Plain":
        """The same dictionary for raw x, when this one (not centred) takes x' = (x - mean) * scale.

        Args:
            mean: [D]; scale: one number.
            keep: `codes` or `norms`, see the option `fold`.
            centred: whether the result subtracts its decoder bias from the input, which is better conditioned where the mean is
                large, and exact where scale is 1 and b_dec is 0.
        """
        assert not self.centred
        dtype, wide = self.W_enc.dtype, self.map(Tensor.double)
        m, a = mean.double(), float(scale)
        b_dec = wide.b_dec / a + m
        shift = wide.W_enc @ wide.b_dec if centred else -a * (wide.W_enc @ m)
        out = replace(wide, W_enc=wide.W_enc * a, W_dec=wide.W_dec / a, b_dec=b_dec, b_enc=wide.b_enc + shift, centred=centred)
        if self.kind == "gated":
            assert wide.r_mag is not None
            out = replace(out, b_mag=wide.b_mag + wide.r_mag.exp() * shift)
        if keep == "norms":
            out = out.scaled(1 / a)
        return out.map(lambda t: t.to(dtype))

    # ---- to and from a basis

    def basis(self, site: Site, registry: Registry, *, scale: float = 1.0, details: Mapping[str, Any] | None = None) -> Basis:
        """A basis over one site that takes raw x, when this dictionary takes x * scale. Codes are the same.

        Raises:
            UnknownComponentError: the learner whose form this is, is not installed.
        """
        learner = registry.create("learner", LEARNERS[self.kind], width=len(self.b_enc),
                                  **({"k": self.k} if self.kind == "topk" else {}))
        wide = self.map(lambda t: t if t.dtype == torch.float64 else t.float())
        mean = wide.b_dec / scale if self.centred else torch.zeros_like(wide.b_dec)
        state = wide.tensors()
        if self.centred:
            state["b_dec"] = torch.zeros_like(wide.b_dec)
        if self.kind == "relu":
            state["threshold"] = torch.zeros_like(wide.b_enc)
        if self.kind == "topk":
            state["k"] = torch.tensor(self.k)
        provides = registry.component("learner", learner.full_name).component.provides
        return Basis([site], Normaliser(mean[None], torch.tensor([scale], dtype=mean.dtype)),
                     learner.restore(self.W_enc.shape[1], state), learner, capabilities=frozenset(provides), details=details)

    @classmethod
    def of(cls, basis: Basis, format: str) -> "Plain":
        """The dictionary of a basis, in its own normalised units.

        Raises:
            CapabilityError: it is none of the four kinds, by its tensors or by the codes it gives for random rows.
        """
        state = {name: t.detach().cpu() for name, t in basis.dictionary.state_dict().items()}
        names = frozenset(state)
        common = {"W_enc", "b_enc", "W_dec", "b_dec"}
        learner = basis.learner.full_name or type(basis.learner).__name__
        other = CapabilityError(f"a dictionary of the learner {learner} cannot be written as {format}: it has no affine encoder "
                                "with relu, jumprelu, topk or gated codes",
                                do="keep it as it is (rb.save, `reprbasis push`), or learn one that has")
        if names == common | {"threshold"}:
            found = cls("jumprelu", **state) if bool(state["threshold"].any()) else cls(
                "relu", **{n: state[n] for n in common})
        elif names == common | {"k"}:
            found = cls("topk", **{n: state[n] for n in common}, k=int(state["k"]))
        elif names == common | {"r_mag", "b_mag"}:
            found = cls("gated", **state)
        else:
            raise other
        if not found._agrees(basis):
            raise other
        return found

    def _agrees(self, basis: Basis) -> bool:
        """Whether codes and decodings of random rows are those of the basis's dictionary, computed in float64."""
        dictionary = deepcopy(basis.dictionary).cpu().double()
        mine = self.map(Tensor.double)
        x = torch.randn(PROBES, basis.d_in, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        x[::2] *= 4  # so that high thresholds are passed too
        z = dictionary.encode(x)
        return torch.allclose(mine.encode(x), z, rtol=1e-9, atol=1e-9) and torch.allclose(
            mine.decode(z), dictionary.decode(z), rtol=1e-9, atol=1e-9)


def take(tensors: Mapping[str, Tensor], wanted: Mapping[str, str], *, where: str, optional: frozenset[str] = frozenset(),
         extra: frozenset[str] = frozenset()) -> dict[str, Tensor]:
    """Rename the tensors of a file, and refuse a file whose maths is not known.

    Args:
        tensors: of the file.
        wanted: name in the file -> name here.
        where: the file, for messages.
        optional: names in the file that may be missing.
        extra: names in the file that may be there and are left out.

    Raises:
        ArtifactError: a tensor is missing, or there is one that means something else.
    """
    if missing := [n for n in wanted if n not in tensors and n not in optional]:
        raise ArtifactError(f"there is no tensor {', '.join(missing)}", where=where, do="check that the config fits the weights")
    if unknown := sorted(set(tensors) - set(wanted) - extra):
        raise ArtifactError(f"the tensors {', '.join(unknown)} have no place in a dictionary of this kind", where=where,
                            do="check that the config fits the weights")
    return {new: tensors[old] for old, new in wanted.items() if old in tensors}
