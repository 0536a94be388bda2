"""People: what is known of a prior's parcels before a person is seen: their dynamics, and how their edges vary."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from pnet_jax.dynamics.fit import Hierarchy, empirical_bayes, fit_group, moments, structural
from pnet_jax.dynamics.spectra import Spectra, pool
from pnet_jax.edges.guided import Guide, fit_guided
from pnet_jax.edges.shrinkage import Shrinkage, fit_shrinkage

LEAST = 3  # people to learn what people differ by
LEAST_FOR_LAYERS = 4  # people to fit a guide in two folds
GROUP_SD = 0.1  # 1/s: of a group's coupling about where its fit begins, or a structural connectome, which a wider one would not notice


@dataclasses.dataclass(frozen=True, eq=False)
class People:
    """What many people's parcels have in common, and what these people differ by.

    Attributes:
      hierarchy: of the dynamics, see `dynamics.fit.Hierarchy`.
      shrinkage: of the edges, see `edges.fit_shrinkage`; None of fewer than 4 people.
      guide: see `edges.fit_guided`; None of fewer than 4 people.
      prior: digest of the parcels.
      subjects: labels of those who were read.
    """

    hierarchy: Hierarchy
    shrinkage: Shrinkage | None
    guide: Guide | None
    prior: str
    subjects: tuple[str, ...]


class Member(NamedTuple):
    """What is learned from of one person.

    Attributes:
      spectra: of a recording of the prior's parcels, standardised.
      halves: edges of two recordings, or of two halves of one, in P views: Pearson's, and `whitened` where signals before a low-pass are
        known, `[2, P, K, K]`; NaN for absent parcels.
      n_eff: independent frames of each of the two, `[2]`.
      subject: label.
    """

    spectra: Spectra
    halves: Float[np.ndarray, "2 P K K"]
    n_eff: Float[np.ndarray, 2]
    subject: str


def fit_people(members: Sequence[Member], prior: str, connectome: Float[np.ndarray, "K K"] | None = None) -> People:
    """Dynamics and edges of a group, and what its members differ by.

    Args:
      members: one of each person.
      prior: digest of the parcels.
      connectome: structural, of the same parcels in the same order; the group's coupling is drawn towards it.

    Raises:
      ValueError: fewer than 3 people, or a connectome of other parcels.
    """
    if len(members) < LEAST:
        raise ValueError(f"expected {LEAST} people or more to learn what people differ by, got {len(members)}")
    recordings = [member.spectra for member in members]
    pooled = pool(recordings)
    towards = None if connectome is None else structural(moments(pooled), connectome)
    hierarchy = empirical_bayes(fit_group(pooled, mean=towards, sd=GROUP_SD), recordings)
    shrinkage, guide = _layers(members) if len(members) >= LEAST_FOR_LAYERS else (None, None)
    return People(hierarchy, shrinkage, guide, prior, tuple(member.subject for member in members))


def _layers(members: Sequence[Member]) -> tuple[Shrinkage, Guide]:
    views = min(member.halves.shape[1] for member in members)  # that everybody has
    first, second = np.stack([member.halves[:, :views] for member in members], 1).astype(np.float32)
    n_eff = np.stack([member.n_eff for member in members], 1).astype(np.float32)
    return fit_shrinkage(first[:, 0], second[:, 0], *n_eff), fit_guided(first, second, *n_eff)
