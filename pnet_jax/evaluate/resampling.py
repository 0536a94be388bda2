"""Resampling tests for values of participants."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

DRAWS = 10_000
TIE = 1e-12


def sign_flip(values: Float[np.ndarray, " n"], seed: int = 0, *, two_sided: bool = False, draws: int = DRAWS) -> float:
    """Return the p value of a mean above 0 (or, two-sided, unequal to 0) from random sign flips; NaN for fewer than 3 known values."""
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    if len(known) < 3:
        return float("nan")
    null = np.random.default_rng(seed).choice([-1.0, 1.0], (draws, len(known))) @ known
    real = known.sum()
    beaten = np.abs(null) >= abs(real) - TIE if two_sided else null >= real - TIE
    return float((1 + beaten.sum()) / (draws + 1))
