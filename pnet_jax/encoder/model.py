"""Model: what a checkpoint holds."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np

from pnet_jax.encoder.linear import LinearEncoder
from pnet_jax.parcellation.prior import Prior


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """An encoder with the priors it was stored with.

    Attributes:
      name: of the checkpoint.
      encoder: weights.
      priors: group priors by number of parcels.
      card: what it was made from, by which command and configuration, and its known limits.
    """

    name: str
    encoder: LinearEncoder
    priors: dict[int, Prior]
    card: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the weights and priors, first 16 digits."""
        whole = hashlib.sha256()
        for array in self.encoder:
            whole.update(np.ascontiguousarray(array, "<f4").tobytes())
        for key in sorted(self.priors):
            whole.update(self.priors[key].digest.encode())
        return whole.hexdigest()[:16]
