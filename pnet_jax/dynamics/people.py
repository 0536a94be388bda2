"""People: what is known of the dynamics of a prior's parcels before a person is seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pnet_jax.dynamics.fit import Hierarchy, empirical_bayes, fit_group
from pnet_jax.dynamics.spectra import Spectra, pool

LEAST = 3  # people to learn what people differ by, and of a site for it to stand for itself


@dataclasses.dataclass(frozen=True, eq=False)
class People:
    """The dynamics of many people's parcels, and what these people differ by.

    Attributes:
      hierarchy: see `dynamics.fit.Hierarchy`.
      sites: names of the subgroups; one empty name where there is one group.
      prior: digest of the parcels.
      subjects: how many were read.
    """

    hierarchy: Hierarchy
    sites: tuple[str, ...]
    prior: str
    subjects: int


def fit_people(recordings: Sequence[Spectra], sites: Sequence[str], prior: str) -> People:
    """Dynamics of a group and what its members differ by.

    Args:
      recordings: one of each subject, standardised.
      sites: of each; those with fewer than 3 people are taken together.
      prior: digest of the parcels.

    Raises:
      ValueError: fewer than 3 recordings.
    """
    if len(recordings) < LEAST:
        raise ValueError(f"expected {LEAST} people or more to learn what people differ by, got {len(recordings)}")
    enough = [site if list(sites).count(site) >= LEAST else "" for site in sites]
    names = tuple(sorted(set(enough)))
    hierarchy = empirical_bayes(fit_group(pool(recordings)), recordings, [names.index(site) for site in enough])
    return People(hierarchy, names, prior, len(recordings))
