"""Group model: what the constructed networks of a cohort teach about one more participant."""

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
from pnet_jax.group.pairs import LEAST_FOR_LAYERS, Pairs, Recording, is_other_session, motion_of_edges, pairs_of, recording_of
from pnet_jax.group.spatial import smoothed
from pnet_jax.network import Network
from pnet_jax.parcellation.atlas import Atlas
from pnet_jax.parcellation.spatial import AtlasOnSpace, LearnedPrior, log_shares, place, rows_of, space_key

LEAST = 3  # participants to learn what participants differ by
MOST_HELD = 1000  # participants whose edges and spectra are held at a time; variances are known to 5 % from so many
PRIOR_WEIGHT = 0.5  # participants that the atlas counts for in the spatial prior
SHARPNESS = 0.5  # exponent of the shares
GROUP_SD = 0.1  # 1/s: of a group's coupling about where its fit begins, or a structural connectome, which a wider one would not notice


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """What a cohort has in common, and what its participants differ by.

    Attributes:
      atlas: digest of the parcels.
      subjects: labels of the participants.
      spatial: where they have their parcels; None where fewer than 3 of them have parcels of their own.
      shrinkage: of the edges, see `edges.fit_shrinkage`; None of fewer than 4 participants.
      guide: see `edges.fit_guided`; None of fewer than 4 participants.
      hierarchy: of the dynamics, see `dynamics.fit.Hierarchy`; None where they were not asked for.
      pairs: what shrinkage and guide were fitted on, `"sessions"` or `"halves"`, see `group.pairs`; empty if there are none.
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
        """SHA-256 over everything that decides a result, first 16 digits."""
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
    """Group model of a cohort, from one constructed network of each participant, or one of each of two sessions.

    The networks are read once, one after another, so that they may come from disk. Parcels and dynamics are learned from the first network
    of a participant. How edges vary is learned from pairs of sessions where enough participants have two, and from the halves of the first
    scan otherwise (`group.pairs.pairs_of`); the group says which. Of a further participant nothing may be judged by a model that it is
    part of: fit one without it.

    Args:
      networks: one or two networks per participant, with the atlas's parcels; the second is of another session with the same task.
      atlas: K parcels that they were constructed from.
      dynamics: learn those too; takes minutes for several hundred parcels.
      connectome: structural, of the same parcels in the same order; the group's coupling is drawn towards it.
      second_view: let the guide learn from the whitened edges as well. Guided edges then predict the other recording better and depend more
        on head motion, which the group reports as `motion`. For description only.

    Raises:
      SettingsError: there are fewer than 3 participants, or nothing can be learned from them.
      InputError: a network is of another atlas, has no edges of its halves or no second view, or is a second one of a participant but not
        of another session; names it.
      ValueError: the connectome is of other parcels.

    Memory: edges of at most 1,000 participants, three or four matrices each, and one table of locations and candidates for each Space.
    """
    where, recordings, subjects, found = _Where(atlas), dict[str, list[Recording]](), dict[str, None](), list[Spectra]()
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
            f"nothing can be learned from {len(subjects)} networks: expected {LEAST} or more with personalised parcels, or "
            f"{LEAST_FOR_LAYERS} for the layers of the edges; use longer scans or more participants"
        )
    learned = ("", 0) if pairs is None else (pairs.kind, len(pairs.first))
    motion = motion_of_edges(pairs) if pairs is not None and second_view and len(pairs.first) >= 2 * LEAST_FOR_LAYERS else {}
    return Group(atlas.digest, tuple(subjects), spatial, shrinkage, guide, hierarchy, *learned, motion)


def _check_session(network: Network, own: list[Recording]) -> None:
    if len(own) > 1:
        raise InputError(f"sub-{network.subject}: expected networks of at most two sessions, found a third: give two of them")
    if not is_other_session(network, own[0]):
        raise InputError(
            f"sub-{network.subject}: expected one network per participant, or one of each of two sessions with the same task, found a "
            "second that is not of another session: give one of them"
        )


def _check_atlas(network: Network, atlas: Atlas) -> None:
    made_from = network.provenance.get("atlas", {})
    if made_from.get("digest") != atlas.digest:
        raise InputError(
            f"sub-{network.subject}: expected a network of atlas {atlas.source} ({atlas.digest}), found one of {made_from.get('source')} "
            f"({made_from.get('digest')}); construct it with the same --atlas"
        )


class _Where:
    r"""Counts of where participants have their parcels, and the prior that they make.

    .. math:: \pi_{vk} \propto 4 c_{vk} + \sum_{u \in N(v)} c_{uk}, \qquad c_{vk} = \sum_s [l_{sv} = k] + \tfrac{1}{2} \pi^{atlas}_{vk}

    to the power of one half, over the participants whose own parcels are supported by their scan: the others have the atlas's, which says
    nothing about where theirs are. Parcels of short scans vary less between participants than true ones do, for they are drawn to the
    prior that they were made with; the root makes up for it.
    """

    def __init__(self, atlas: Atlas):
        self.atlas = atlas
        self.spaces: dict[Hashable, tuple[AtlasOnSpace, np.ndarray]] = {}
        self.seen: dict[Hashable, int] = {}

    def add(self, network: Network) -> None:
        """Counts one participant."""
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
        """The prior on the Space that most participants share; the others count at the nearest location."""
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
    """Counts of another Space at the nearest of its locations to each of this one's."""
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
    """Spectra of the parcels; a parcel without locations has none, and no say."""
    cleaning = network.provenance.get("cleaning", {})
    low, high = (cleaning.get(name) for name in ("high_pass", "low_pass"))
    try:
        bins = frequency_bins(np.ones(len(network.frames), bool), network.tr, frames=network.frames, filtered=(low, high))
    except TooShortError as error:
        warnings.warn(f"left out of the group's dynamics: sub-{network.subject}: {error}", stacklevel=4)
        return None
    return standardise(spectra(jnp.asarray(np.nan_to_num(network.signals)), bins))


def _hierarchy(recordings: Sequence[Spectra], connectome: Float[np.ndarray, "K K"] | None) -> Hierarchy:
    if len(recordings) < LEAST:
        raise SettingsError(f"at least {LEAST} participants are needed to learn dynamics, got {len(recordings)}")
    pooled = pool(recordings)
    towards = None if connectome is None else structural(moments(pooled), connectome)
    return empirical_bayes(dynamics_fit.fit_group(pooled, mean=towards, sd=GROUP_SD), recordings)


def _layers(pairs: Pairs) -> tuple[Shrinkage, Guide]:
    first, second, n_first, n_second = map(jnp.asarray, (pairs.first, pairs.second, pairs.n_eff_first, pairs.n_eff_second))
    return fit_shrinkage(first[:, 0], second[:, 0], n_first, n_second), fit_guided(first, second, n_first, n_second)
