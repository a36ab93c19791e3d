"""Warnings that several measurements share."""

from collections.abc import Sequence

from reprbasis.interfaces.evaluator import Measurement
from reprbasis.runtime.basis import Basis
from reprbasis.runtime.fit import DENSE


def density_alarm(basis: Basis, rows: Sequence[Measurement]) -> list[str]:
    """A warning in words where the code is not sparse: it reconstructs well and explains nothing."""
    dense = [m for m in rows if m.name == "l0" and m.condition == "global" and m.value > DENSE * basis.d_dict]
    return [f"DENSITY ALARM: L0 is above {DENSE:.0%} of the {basis.d_dict} latents at {len(dense)} sites "
            f"(worst: {max(dense, key=lambda m: m.value).site}). Reconstruction figures there mean little."] if dense else []
