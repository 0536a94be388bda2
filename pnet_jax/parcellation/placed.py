"""A prior on one recording: what the mixture needs of both, made once for all fits."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pnet_jax.ops.potts.chunked import match_table
from pnet_jax.parcellation.mixture import Problem, group_prototypes, normalise
from pnet_jax.parcellation.prior import PADDING, LocalPrior, Prior, on_space
from pnet_jax.scan import LOCATION_BUCKET, Scan
from pnet_jax.space import Space, take

_group_prototypes = jax.jit(group_prototypes, static_argnames="n_parcels")


@dataclasses.dataclass(frozen=True, eq=False)
class Placed:
    """The part of a recording that a prior says something of; n locations, padded to W.

    Attributes:
      here: those of the scan, `[n]`.
      space: of these.
      whole: the prior on all V locations.
      local: the prior on the n.
      candidates, log_prior, table, labels: the same for the mixture (`Problem`), `[W, C]`, `[W, C]`, `[N, W, C]` and `[W]`.
      n_parcels: K.
    """

    here: Int[np.ndarray, " n"]
    space: Space
    whole: LocalPrior
    local: LocalPrior
    candidates: Int[Array, "W C"]
    log_prior: Float[Array, "W C"]
    table: Int[Array, "N W C"]
    labels: Int[Array, " W"]
    n_parcels: int

    def problem(self, z: Float[Array, "W D"], offsets: Float[Array, "K D"] | None = None) -> Problem:
        """The mixture's input; `offsets` are added to the prototypes of the prior."""
        prototypes = _group_prototypes(z, self.labels, n_parcels=self.n_parcels)
        prototypes = prototypes if offsets is None else normalise(prototypes + offsets)
        return Problem(z, self.candidates, self.log_prior, self.table, prototypes)


def place(scan: Scan, prior: Prior) -> Placed:
    """A prior on a scan.

    Raises:
      ValueError: they do not overlap.
    """
    whole = on_space(prior, scan.space, scan.valid)
    here = np.flatnonzero(whole.labels >= 0)
    space = take(scan.space, here)
    local = dataclasses.replace(whole, candidates=whole.candidates[here], log_prior=whole.log_prior[here], labels=whole.labels[here])
    candidates = pad_rows(local.candidates, -1)
    table = match_table(candidates, pad_rows(space.neighbours, -1), n_parcels=prior.n_parcels)
    padded = jnp.asarray(candidates), jnp.asarray(pad_rows(local.log_prior, PADDING)), table, jnp.asarray(pad_rows(local.labels, -1))
    return Placed(here, space, whole, local, *padded, prior.n_parcels)


def pad_rows(table: np.ndarray, value: float, multiple: int = LOCATION_BUCKET) -> np.ndarray:
    """Rows up to a multiple, filled with a value, so that scans of like sizes share compiled steps."""
    return np.pad(table, ((0, -len(table) % multiple),) + ((0, 0),) * (table.ndim - 1), constant_values=value)
