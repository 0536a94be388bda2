"""Scores of parcels from one recording on another recording of the same participant."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from pnet_jax.parcellation import score
from pnet_jax.space import LEFT, RIGHT, Space


class Judge:
    """Signals that parcels made from other signals are scored on.

    Args:
      y: signals, any unit, `[V, T]`.
      space: V locations.
      inside: the locations that count, the same for all that are compared, `[V]`.
      n_parcels: K.
      per_hemisphere: sample for the DCBC.
    """

    def __init__(
        self,
        y: Float[np.ndarray, "V T"],
        space: Space,
        inside: Bool[np.ndarray, " V"],
        n_parcels: int,
        *,
        per_hemisphere: int = 4000,
    ):
        self.inside, self.n_parcels, self.count = np.asarray(inside, bool), n_parcels, jnp.float32(y.shape[1])
        self.y = score.standardised(jnp.asarray(y, jnp.float32), jnp.ones(y.shape[1]))
        self.pairs = near_pairs(space, np.flatnonzero(self.inside), per_hemisphere)
        self.r = score.pair_correlations(self.y, self.pairs, self.count)

    def __call__(self, labels: Int[np.ndarray, " V"]) -> dict[str, float]:
        """`dcbc` and `homogeneity` of the labels, `[V]`; NaN where they cannot be measured."""
        own = jnp.asarray(np.where(self.inside, labels, -1))
        return {
            "dcbc": float(score.dcbc(self.r, self.pairs, own)),
            "homogeneity": float(score.homogeneity(self.y, own, self.n_parcels, self.count)),
        }


def near_pairs(space: Space, locations: Int[np.ndarray, " n"], per_hemisphere: int, seed: int = 0) -> score.Pairs:
    """All pairs up to 36 mm apart among a random sample of the locations of each hemisphere, with their 4-mm ring of distance."""
    rng = np.random.default_rng(seed)
    sides = [locations[space.hemisphere[locations] == side] for side in (LEFT, RIGHT)]
    return score.near_pairs(space, [np.sort(rng.permutation(here)[:per_hemisphere]) for here in sides])
