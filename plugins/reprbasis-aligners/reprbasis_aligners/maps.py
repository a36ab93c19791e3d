"""The maps. Each is solved from second moments, so any number of pairs fits: see `reprbasis.kits.moments`.

Row convention: y = (x - mean_a) @ matrix + mean_b. S_aa, S_ab, S_bb are the moments about the means.

Cost of solving: O(A³ + B³) FLOPs after the 2 N (A² + B² + AB) of the moments; nothing depends on N any more.

Shapes: N pairs, A and B widths of the two spaces, r kept components.
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from reprbasis.component import ComponentConfig
from reprbasis.errors import DataError, ShapeError
from reprbasis.interfaces.aligner import ENOUGH, Aligner, Alignment
from reprbasis.kits.moments import PairMoments

from .config import CCAConfig, PlainConfig, ReducedConfig, RelativeConfig, RidgeConfig, UnembeddingConfig

K = TypeVar("K", bound=ComponentConfig)



class MomentAligner(Aligner[K], Generic[K]):
    """An aligner that sees its pairs only through their moments."""

    means: ClassVar[bool] = True

    def fit(self, a: Tensor, b: Tensor) -> Alignment:
        """[N, A], [N, B] -> a map."""
        return self.fit_stream([(a, b)])

    def fit_stream(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Alignment:
        """The same from batches, each seen once."""
        kind: list[torch.dtype] = []

        def noted() -> Iterable[tuple[Tensor, Tensor]]:
            for a, b in pairs:
                kind[:] = [a.dtype]
                yield a, b

        moments = PairMoments.of(noted()).centred()
        matrix, inverse, details = self.solve(moments)
        return finished(moments, matrix, inverse, kind[0], details, means=self.means)

    @abstractmethod
    def solve(self, moments: PairMoments) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Matrix [A, B], inverse [B, A] and details from centred moments."""


def finished(moments: PairMoments, matrix: Tensor, inverse: Tensor, dtype: torch.dtype, details: dict[str, Any], *,
             means: bool = True) -> Alignment:
    """An `Alignment` that says how many pairs it stands on. It never carries a score on its own pairs."""
    wide = max(moments.aa.shape[0], moments.bb.shape[0])
    facts: dict[str, Any] = {"n": moments.n, "pairs_per_dimension": moments.n / wide,
                             "flops_of_moments": PairMoments.flops(moments.n, *moments.ab.shape), **details}
    if moments.n < ENOUGH * wide:
        facts["warning"] = (f"{moments.n} pairs for {wide} dimensions: fewer than {ENOUGH} each. The map fits noise; judge it on "
                            "held-out pairs only")
    share = 1.0 if means else 0.0
    tensors = (matrix, inverse, share * moments.mean_a, share * moments.mean_b)
    return Alignment(*(t.to(dtype).contiguous() for t in tensors), details=facts)


def same_width(moments: PairMoments, name: str) -> None:
    """Refuse spaces of two widths."""
    a, b = moments.ab.shape
    if a != b:
        raise ShapeError(f"{name} maps between spaces of one width, not {a} and {b}", do="use procrustes-pca, l-ortho or ridge")


def polar(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest (semi-)orthogonal matrix U Vᵀ and the singular values."""
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vt, s


class Procrustes(MomentAligner[PlainConfig]):
    """The rotation (or reflection) R that minimises sum |y - x R|²: U Vᵀ of S_ab = U S Vᵀ (Schönemann 1966)."""

    def solve(self, moments: PairMoments) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Orthogonal matrix and its transpose."""
        same_width(moments, "procrustes")
        rotation, _ = polar(moments.ab)
        return rotation, rotation.T, {}


class ScaledProcrustes(MomentAligner[PlainConfig]):
    """A rotation and one scale: s = sum(S) / tr(S_aa) with the singular values of S_ab."""

    def solve(self, moments: PairMoments) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Scaled orthogonal matrix and its inverse."""
        same_width(moments, "procrustes-scaled")
        rotation, s = polar(moments.ab)
        total = float(moments.aa.trace())
        scale = float(s.sum()) / total if total > 0 else 1.0
        if scale <= 0:
            raise DataError("the two sets of rows have no covariance at all: there is no scale", do="give rows that vary")
        return rotation * scale, rotation.T / scale, {"scale": scale}


class ReducedProcrustes(MomentAligner[ReducedConfig]):
    """A rotation (and one scale) between the leading r principal components of both spaces, for spaces of any two widths."""

    def solve(self, moments: PairMoments) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """P_a R P_bᵀ; the variance that either space keeps stands in the details."""
        spectra = [torch.linalg.eigh(s) for s in (moments.aa, moments.bb)]
        kept = [v.flip(0).clamp_min(0).cumsum(0) / v.clamp_min(0).sum().clamp_min(1e-300) for v, _ in spectra]
        most = min(moments.ab.shape)
        rank = self.config.rank or max(int((k < self.config.variance - 1e-12).sum()) + 1 for k in kept)
        if self.config.rank and rank > most:
            raise ShapeError(f"rank {rank} is more than the narrower space has ({most})", do=f"use at most {most}")
        rank = min(rank, most)
        one, two = (vectors.flip(1)[:, :rank] for _, vectors in spectra)
        rotation, s = polar(one.T @ moments.ab @ two)
        within = float((one.T @ moments.aa @ one).trace())
        scale = float(s.sum()) / within if self.config.scale and within > 0 and float(s.sum()) > 0 else 1.0
        matrix = one @ rotation @ two.T
        details = {"scale": scale, "rank": rank, "variance_a": float(kept[0][rank - 1]), "variance_b": float(kept[1][rank - 1])}
        return scale * matrix, matrix.T / scale, details


class LOrtho(MomentAligner[PlainConfig]):
    """The orthogonal factor of the least-squares map (Maiorca et al. 2023, "l-ortho"); semi-orthogonal for two widths."""

    def solve(self, moments: PairMoments) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """U Vᵀ of S_aa⁻¹ S_ab, and its transpose."""
        matrix, _ = polar(least_squares(moments.aa, moments.ab))
        return matrix, matrix.T, {}


class Affine(MomentAligner[PlainConfig]):
    """Least squares: S_aa⁻¹ S_ab. The way back is its own regression, not the matrix inverse."""

    def solve(self, moments: PairMoments) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Both regressions."""
        return least_squares(moments.aa, moments.ab), least_squares(moments.bb, moments.ab.T), {}


def least_squares(own: Tensor, cross: Tensor) -> Tensor:
    """own⁺ cross: the least-squares map of least norm (directions without variance map to 0)."""
    values, vectors = torch.linalg.eigh(own)
    kept = values > values.max().clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
    inverse = torch.where(kept, 1 / torch.where(kept, values, torch.ones_like(values)), torch.zeros_like(values))
    return vectors @ (inverse[:, None] * (vectors.T @ cross))


class Ridge(Aligner[RidgeConfig]):
    """Ridge regression, (S_aa + λ tr(S_aa)/A I)⁻¹ S_ab, λ by cross-validation over contiguous parts of the rows.

    Every fold's error at every λ comes from moments and one eigendecomposition a fold: the rows are read once.
    """

    def fit(self, a: Tensor, b: Tensor) -> Alignment:
        """[N, A], [N, B] -> a map."""
        if a.ndim != 2 or b.ndim != 2 or len(a) != len(b):
            PairMoments.of([(a, b)])  # says what is wrong
        parts = min(self.config.folds, len(a))
        return self.fit_stream(zip(a.tensor_split(parts), b.tensor_split(parts), strict=True))

    def fit_stream(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Alignment:
        """The same from batches; batch i belongs to fold i mod `folds`."""
        folds: list[PairMoments | None] = [None] * self.config.folds
        dtype = torch.float32
        for number, (a, b) in enumerate(pairs):
            dtype, place = a.dtype, number % self.config.folds
            new, old = PairMoments.of([(a, b)]), folds[place]
            folds[place] = new if old is None else old + new
        parts = [f for f in folds if f is not None]
        if not parts:
            raise DataError("there are no paired rows", do="give at least one")
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        moments = total.centred()
        matrix, forth = self._solve(moments, parts, total)
        inverse, back = self._solve(moments.swapped(), [p.swapped() for p in parts], total.swapped())
        return finished(moments, matrix, inverse, dtype, {"penalty": forth, "penalty_back": back, "folds": len(parts)})

    def _solve(self, moments: PairMoments, parts: list[PairMoments], total: PairMoments) -> tuple[Tensor, float]:
        """Matrix and the penalty it was made with."""
        penalties = self.config.penalties
        if len(parts) > 1 and len(penalties) > 1:
            errors = dict.fromkeys(penalties, 0.0)
            for part in parts:
                rest = (total + -part).centred()
                for penalty, matrix in zip(penalties, self._path(rest), strict=True):
                    errors[penalty] += part.error(matrix, rest.mean_a, rest.mean_b)
            best = min(errors, key=errors.__getitem__)
        else:
            best = penalties[-1]
        return next(m for p, m in zip(penalties, self._path(moments), strict=True) if p == best), best

    def _path(self, moments: PairMoments) -> Iterable[Tensor]:
        """The matrix at every penalty, from one eigendecomposition."""
        values, vectors = torch.linalg.eigh(moments.aa)
        turned, unit = vectors.T @ moments.ab, values.clamp_min(0).mean().clamp_min(1e-300)
        for penalty in self.config.penalties:
            yield vectors @ (turned / (values.clamp_min(0) + penalty * unit)[:, None])


class CCA(MomentAligner[CCAConfig]):
    """Through the canonical variates: C_a^(-1/2) U diag(ρ) Vᵀ C_b^(1/2) with ρ the canonical correlations, covariances shrunk.

    With all pairs and no shrinkage this is least squares; fewer pairs leave out what correlates least.
    """

    def solve(self, moments: PairMoments) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Both directions, and the canonical correlations."""
        (less_a, more_a), (less_b, more_b) = (roots(s, self.config.shrinkage) for s in (moments.aa, moments.bb))
        u, rho, vt = torch.linalg.svd(less_a @ moments.ab @ less_b, full_matrices=False)
        rank = min(self.config.rank or len(rho), len(rho))
        u, rho, vt = u[:, :rank], rho[:rank], vt[:rank]
        return (less_a @ (u * rho) @ vt @ more_b, less_b @ (vt.T * rho) @ u.T @ more_a,
                {"rank": rank, "canonical_correlations": [round(float(r), 4) for r in rho]})


def roots(moment: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """(C^(-1/2), C^(1/2)) of a shrunk moment matrix; directions without variance give 0."""
    values, vectors = torch.linalg.eigh(moment)
    values = (1 - shrinkage) * values.clamp_min(0) + shrinkage * values.clamp_min(0).mean()
    kept = values > values.max() * len(values) * torch.finfo(values.dtype).eps
    less = torch.where(kept, values.clamp_min(1e-300).rsqrt(), torch.zeros_like(values))
    return (vectors * less) @ vectors.T, (vectors * values.sqrt()) @ vectors.T


class Relative(Aligner[RelativeConfig]):
    """Through relative representations: a row is what its cosines to m anchors are, and both spaces agree on those.

    With unit anchor rows U_a [m, A], U_b [m, B] a row x becomes r = (x - mean_a) U_aᵀ (its cosines, times its length), and the
    y of least norm whose own cosines come closest to r is r (U_bᵀ)⁺: a linear map, U_aᵀ (U_bᵀ)⁺ times the ratio of the spreads
    (Moschella et al. 2023; the way back to a space by the pseudo-inverse: Maiorca et al. 2024). It is a rotation where the
    spaces are rotated copies. Fitted are only means, spreads, and below which spread of the anchors a direction counts as not
    seen. A stream is read once; anchors are kept by reservoir sampling.
    """

    def fit(self, a: Tensor, b: Tensor) -> Alignment:
        """[N, A], [N, B] -> a map."""
        return self.fit_stream([(a, b)])

    def fit_stream(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Alignment:
        """The same from batches; memory is that of the moments and of the anchors."""
        draw, kept, seen, dtype = torch.Generator().manual_seed(self.config.seed), [], [0], [torch.float32]

        def sampled() -> Iterable[tuple[Tensor, Tensor]]:
            for a, b in pairs:
                yield a, b  # checked by whoever takes it
                dtype[0] = a.dtype
                most = 2 * (self.config.anchors or 3 * max(a.shape[1], b.shape[1]))
                keys = torch.rand(len(a), generator=draw, dtype=torch.float64)
                rows = list(zip(keys.tolist(), range(seen[0], seen[0] + len(a)), a.double(), b.double(), strict=True))
                kept[:] = sorted([*kept, *rows], key=lambda row: row[:2])[:most]
                seen[0] += len(a)

        moments = PairMoments.of(sampled()).centred()
        spreads = [max(float(m.trace()), 0.0) ** 0.5 for m in (moments.aa, moments.bb)]
        if min(spreads) <= 0:
            raise DataError("the rows of a space are all alike: there are no cosines between them", do="give rows that vary")
        rows = [torch.stack([row[i] for row in kept]) - mean for i, mean in ((2, moments.mean_a), (3, moments.mean_b))]
        scale = spreads[1] / spreads[0]
        matrix, forth, count = self._best(*rows, scale)
        inverse, back, _ = self._best(*reversed(rows), 1 / scale)
        return finished(moments, matrix, inverse, dtype[0], {"anchors": count, "scale": scale, "tolerance": forth,
                                                             "tolerance_back": back})

    def _best(self, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, float, int]:
        """Matrix, tolerance and number of anchors: the first half of the rows are anchors, the second half chooses."""
        half = (len(a) + 1) // 2
        one, two = (torch.nn.functional.normalize(x[:half], dim=-1) for x in (a, b))
        u, s, vt = torch.linalg.svd(two.T, full_matrices=False)
        found = []
        for tolerance in self.config.tolerances:
            inverse = torch.where(s > tolerance * s.max(), 1 / s.clamp_min(1e-300), torch.zeros_like(s))
            matrix = scale * (one.T @ vt.T * inverse) @ u.T
            found.append((float((a[half:] @ matrix - b[half:]).square().sum()), tolerance, matrix))
        _, tolerance, matrix = min(found, key=lambda row: row[0])
        return matrix, tolerance, half


class Unembedding(MomentAligner[UnembeddingConfig]):
    """The map that gives both models the same logits, from the rows of their unembeddings (tokens both know; no text needed).

    Rows w_a [N, A], w_b [N, B] are readers, not activations: an activation x of the first model should become the y with
    w_b · y = w_a · x for every token, up to what softmax ignores (the mean row): M = W_b⁺ W_a, so y = x Mᵀ
    (after Lee et al. 2025, who move steering vectors so). The means are 0, for activations have no known ones.
    """

    means = False
    rows = "unembedding"

    def solve(self, moments: PairMoments) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Matrix Mᵀ = S_ab S_bb⁺, and back S_ba S_aa⁺."""
        return moments.ab @ self._pinv(moments.bb), moments.ab.T @ self._pinv(moments.aa), {"from": "unembedding rows"}

    def _pinv(self, moment: Tensor) -> Tensor:
        return torch.linalg.pinv(moment, rtol=self.config.tolerance ** 2, hermitian=True)
