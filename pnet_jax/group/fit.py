"""Group model: priors for new participants, learned from the networks of a cohort."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Hashable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from pnet_jax.dynamics import fit as dynamics_fit
from pnet_jax.dynamics.fit import Hierarchy, empirical_bayes, moments, structural
from pnet_jax.dynamics.spectra import Spectra, TooShortError, frequency_bins, pool, spectra, standardise
from pnet_jax.edges.guided import Guide, fit_guided
from pnet_jax.edges.shrinkage import Shrinkage, fit_shrinkage
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.group.pairs import LEAST_FOR_LAYERS, EdgePairs, RecordedEdges, is_other_session, motion_of_edges, pairs_of, recording_of
from pnet_jax.group.spatial import smoothed
from pnet_jax.network import Network
from pnet_jax.parcellation.atlas import Atlas
from pnet_jax.parcellation.spatial import AtlasOnSpace, LearnedPrior, log_shares, place, rows_of, space_key

LEAST = 3  # minimum number of participants for estimating between-participant variance
MOST_HELD = 1000  # maximum number of participants whose edges and spectra are kept in memory; variances then have an error of 5 %
PRIOR_WEIGHT = 0.5  # weight of the atlas in the spatial prior, in participants
SHARPNESS = 0.5  # exponent of the shares
GROUP_SD = 0.1  # prior SD of the group's coupling in 1/s; with a wider prior, a structural connectome would have no effect


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Group model of a cohort: group means and between-participant variances.

    Attributes:
      atlas: digest of the atlas.
      subjects: labels of the participants.
      spatial: spatial prior learned from the participants' parcels; None if fewer than 3 participants have personalised parcels.
      shrinkage: group statistics of the edges, see `edges.fit_shrinkage`; None for fewer than 4 participants.
      guide: guide of the edges, see `edges.fit_guided`; None for fewer than 4 participants.
      hierarchy: group dynamics and their variance, see `dynamics.fit.Hierarchy`; None if not requested.
      pairs: data to which shrinkage and guide were fitted, `"sessions"` or `"halves"`, see `group.pairs`; empty if they were not fitted.
      n_pairs: number of participants with such a pair.
      motion: mean |QC-FC| of the edges, see `group.pairs.motion_of_edges`; empty unless the guide has a second view.
    """

    atlas: str
    subjects: tuple[str, ...]
    spatial: LearnedPrior | None = None
    shrinkage: Shrinkage | None = None
    guide: Guide | None = None
    hierarchy: Hierarchy | None = None
    pairs: str = ""
    n_pairs: int = 0
    motion: dict[str, float] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def digest(self) -> str:
        """First 16 digits of the SHA-256 over all data that affect results."""
        found = hashlib.sha256(self.atlas.encode())
        for name in ("spatial", "shrinkage", "guide", "hierarchy"):
            found.update(name.encode())
            for array in map(np.asarray, jax.tree.leaves(getattr(self, name))):
                found.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return found.hexdigest()[:16]


def fit_group(
    networks: Iterable[Network],
    atlas: Atlas,
    *,
    dynamics: bool = False,
    connectome: Float[np.ndarray, "K K"] | None = None,
    second_view: bool = False,
) -> Group:
    """Fit the group model of a cohort to one network per participant, or to one network of each of two sessions.

    The networks are read once, in order, so they can be loaded lazily. The spatial prior and the dynamics are learned from the first
    network of each participant. The variability of edges is learned from pairs of sessions if enough participants have two, otherwise from
    the halves of the first scan (`group.pairs.pairs_of`); `Group.pairs` states which. Do not apply the model to participants to whom it was
    fitted; fit a separate model without them.

    Args:
      networks: one or two networks per participant with the parcels of the atlas; the second is of another session with the same task.
      atlas: atlas of K parcels from which the networks were constructed.
      dynamics: whether to learn the dynamics, which takes minutes for several hundred parcels.
      connectome: structural connectome of the same parcels in the same order, `[K, K]`; the group's coupling is shrunk towards it.
      second_view: whether the guide uses the whitened edges as a second view. Guided edges then predict the other recording better but
        depend more on head motion, as reported in `Group.motion`. Use them for description only.

    Returns:
      The group model.

    Raises:
      SettingsError: If there are fewer than 3 participants, or nothing can be learned from them.
      InputError: If a network has another atlas, no edges of its halves or no second view, or is the second of a participant but not of
        another session. The message names the participant.
      ValueError: If the connectome is invalid or has another number of parcels.

    Memory: edges of at most 1,000 participants, three or four matrices each, and one table of locations and candidates per Space.
    """
    where, recordings, subjects, found = _Where(atlas), dict[str, list[RecordedEdges]](), dict[str, None](), list[Spectra]()
    for network in networks:
        _check_atlas(network, atlas)
        own = recordings.get(network.subject, [])
        if network.subject in subjects:
            if own:
                _check_session(network, own)
                own.append(recording_of(network, second_view=second_view, with_halves=False))
            continue
        subjects[network.subject] = None
        where.add(network)
        if len(recordings) < MOST_HELD:
            recordings[network.subject] = [recording_of(network, second_view=second_view)]
            if dynamics and (one := _spectra(network)) is not None:
                found.append(one)
    if len(subjects) < LEAST:
        raise SettingsError(f"expected the networks of at least {LEAST} participants, got {len(subjects)}")
    pairs = pairs_of(recordings)
    shrinkage, guide = (None, None) if pairs is None else _layers(pairs)
    hierarchy = _hierarchy(found, connectome) if dynamics else None
    spatial = where.learned()
    if spatial is None and shrinkage is None and hierarchy is None:
        raise SettingsError(
            f"nothing can be learned from {len(subjects)} networks: expected at least {LEAST} with personalised parcels, or "
            f"{LEAST_FOR_LAYERS} for the layers of the edges; use longer scans or more participants"
        )
    learned = ("", 0) if pairs is None else (pairs.kind, len(pairs.first))
    motion = motion_of_edges(pairs) if pairs is not None and second_view and len(pairs.first) >= 2 * LEAST_FOR_LAYERS else {}
    return Group(atlas.digest, tuple(subjects), spatial, shrinkage, guide, hierarchy, *learned, motion)


def _check_session(network: Network, own: list[RecordedEdges]) -> None:
    if len(own) > 1:
        raise InputError(f"sub-{network.subject}: expected networks of at most two sessions, found a third: select two of them")
    if not is_other_session(network, own[0]):
        raise InputError(
            f"sub-{network.subject}: expected one network per participant, or one of each of two sessions with the same task, found a "
            "second that is not of another session: select one of them"
        )


def _check_atlas(network: Network, atlas: Atlas) -> None:
    made_from = network.provenance.get("atlas", {})
    if made_from.get("digest") != atlas.digest:
        raise InputError(
            f"sub-{network.subject}: expected a network of atlas {atlas.source} ({atlas.digest}), found one of {made_from.get('source')} "
            f"({made_from.get('digest')}); construct it with the same --atlas"
        )


class _Where:
    r"""Counts of the participants' parcels at each location, and the spatial prior derived from them.

    .. math:: \pi_{vk} \propto 4 c_{vk} + \sum_{u \in N(v)} c_{uk}, \qquad c_{vk} = \sum_s [l_{sv} = k] + \tfrac{1}{2} \pi^{atlas}_{vk}

    raised to the power of one half. Only participants with personalised parcels are counted, because atlas parcels are not informative.
    Parcels of short scans vary less between participants than true parcels, because they are shrunk towards the prior used in their
    construction; the square root compensates for this.
    """

    def __init__(self, atlas: Atlas):
        self.atlas = atlas
        self.spaces: dict[Hashable, tuple[AtlasOnSpace, np.ndarray]] = {}
        self.seen: dict[Hashable, int] = {}

    def add(self, network: Network) -> None:
        """Count the parcels of one participant."""
        if network.qc.selection.decision == "atlas":
            return
        key = space_key(network.space)
        if key not in self.spaces:
            placed = place(self.atlas, network.space)
            self.spaces[key] = placed, np.zeros(placed.prior.candidates.shape, np.float32)
            self.seen[key] = 0
        placed, counts = self.spaces[key]
        rows = rows_of(placed, network.space)
        labels = np.where(rows >= 0, network.labels[np.maximum(rows, 0)], -1)
        counts[: len(labels)] += (np.asarray(placed.prior.candidates)[: len(labels)] == labels[:, None]) & (labels >= 0)[:, None]
        self.seen[key] += 1

    def learned(self) -> LearnedPrior | None:
        """Return the prior on the most common Space; participants in other Spaces are counted at the nearest locations."""
        if sum(self.seen.values()) < LEAST:
            return None
        most = max(self.seen, key=lambda key: self.seen[key])
        placed, counts = self.spaces[most]
        candidates = np.asarray(placed.prior.candidates)
        for key, (other, more) in self.spaces.items():
            if key != most:
                counts = counts + _moved(other, more, placed, candidates)
        there = candidates >= 0
        counts = counts + PRIOR_WEIGHT * np.where(there, np.exp(np.asarray(placed.prior.log_prior)), 0.0).astype(np.float32)
        smooth = np.asarray(smoothed(jnp.asarray(counts), placed.prior.table))
        n, space = len(placed.here), placed.space
        log_prior = log_shares(smooth[:n] ** SHARPNESS, candidates[:n])
        return LearnedPrior(space.xyz, space.hemisphere, candidates[:n], log_prior, space.resolution)


def _moved(other: AtlasOnSpace, counts: np.ndarray, placed: AtlasOnSpace, candidates: np.ndarray) -> np.ndarray:
    """Return the counts of another Space at its locations nearest to those of this Space."""
    n = len(placed.here)
    reach = max(other.space.resolution, placed.space.resolution) * np.sqrt(3) / 2 + 1e-3
    distance, nearest = cKDTree(other.space.xyz).query(placed.space.xyz, distance_upper_bound=reach)
    at = np.where(np.isfinite(distance), nearest, 0)
    same = candidates[:n, :, None] == np.asarray(other.prior.candidates)[at][:, None, :]
    same &= (candidates[:n] >= 0)[:, :, None] & np.isfinite(distance)[:, None, None]
    out = np.zeros(candidates.shape, np.float32)
    out[:n] = np.where(same, counts[at][:, None, :], 0).sum(2)
    return out


def _spectra(network: Network) -> Spectra | None:
    """Return the spectra of the parcels, 0 for parcels without locations; None, with a warning, if the scan is too short."""
    cleaning = network.provenance.get("cleaning", {})
    low, high = (cleaning.get(name) for name in ("high_pass", "low_pass"))
    try:
        bins = frequency_bins(np.ones(len(network.frames), bool), network.tr, frames=network.frames, filtered=(low, high))
    except TooShortError as error:
        warnings.warn(f"sub-{network.subject} is left out of the group's dynamics: {error}", stacklevel=4)
        return None
    return standardise(spectra(jnp.asarray(np.nan_to_num(network.signals)), bins))


def _hierarchy(recordings: Sequence[Spectra], connectome: Float[np.ndarray, "K K"] | None) -> Hierarchy:
    if len(recordings) < LEAST:
        raise SettingsError(f"at least {LEAST} participants are needed to learn dynamics, got {len(recordings)}")
    pooled = pool(recordings)
    towards = None if connectome is None else structural(moments(pooled), connectome)
    return empirical_bayes(dynamics_fit.fit_group(pooled, mean=towards, sd=GROUP_SD), recordings)


def _layers(pairs: EdgePairs) -> tuple[Shrinkage, Guide]:
    first, second, n_first, n_second = map(jnp.asarray, (pairs.first, pairs.second, pairs.n_eff_first, pairs.n_eff_second))
    return fit_shrinkage(first[:, 0], second[:, 0], n_first, n_second), fit_guided(first, second, n_first, n_second)
