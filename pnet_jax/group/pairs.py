"""Pairs of recordings from which the variability of edges is learned: sessions of a participant, or halves of a scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from pnet_jax.edges.guided import Guide, fit_guided, guide
from pnet_jax.edges.shrinkage import CLIP
from pnet_jax.errors import InputError
from pnet_jax.network import Network

SESSIONS, HALVES = "sessions", "halves"
LEAST_FOR_LAYERS = 4  # minimum number of participants for fitting a guide in two folds
ENOUGH_SESSIONS = 20  # number of participants with two sessions that is always enough
VIEWS = ("pearson", "whitened")


class RecordedEdges(NamedTuple):
    """Edges of one recording in P views, Pearson correlations first.

    Attributes:
      whole: edges of the whole recording, `[P, K, K]`.
      n_eff: effective number of independent frames.
      halves: edges of the halves, `[2, P, K, K]`; None for a second session, for which they are not needed.
      n_eff_halves: effective number of independent frames of each half.
      displacement: mean framewise displacement in mm, NaN if unknown.
      session, task: BIDS entities, empty if absent.
    """

    whole: Float[np.ndarray, "P K K"]
    n_eff: float
    halves: Float[np.ndarray, "2 P K K"] | None
    n_eff_halves: tuple[float, float]
    displacement: float
    session: str
    task: str


class EdgePairs(NamedTuple):
    """Edges of two recordings of each of S participants.

    Attributes:
      kind: `"sessions"` or `"halves"`.
      first, second: edges in P views, `[S, P, K, K]`.
      n_eff_first, n_eff_second: effective numbers of independent frames, `[S]`.
      displacement: mean framewise displacement in mm of the recording of `first`, `[S]`.
    """

    kind: str
    first: Float[np.ndarray, "S P K K"]
    second: Float[np.ndarray, "S P K K"]
    n_eff_first: Float[np.ndarray, " S"]
    n_eff_second: Float[np.ndarray, " S"]
    displacement: Float[np.ndarray, " S"]


def recording_of(network: Network, *, second_view: bool, with_halves: bool = True) -> RecordedEdges:
    """Return the edges of a network from which a group is learned.

    If the network has no edges of the whole scan in a view, they are averaged over the halves in Fisher z.

    Raises:
      InputError: If the network has no edges of its halves, or no second view if requested. The message names the participant.
    """
    views = VIEWS if second_view else VIEWS[:1]
    if "pearson" not in network.halves:
        raise InputError(f"sub-{network.subject}: the network has no edges of its halves; construct it again")
    if second_view and "whitened" not in network.halves:
        raise InputError(
            f"sub-{network.subject}: the network has no second view of its edges: construct it again with --cleaning.wide, or fit the "
            "group without the second view"
        )
    whole = [network.edges.get(name, _mean(network.halves[name])) for name in views]
    degrees = tuple(max(float(one), 1.0) for one in network.qc.selection.degrees)
    n_eff, moved = network.qc.n_eff, network.qc.mean_displacement
    return RecordedEdges(
        whole=np.stack(whole).astype(np.float32),
        n_eff=max(sum(degrees) if n_eff is None else float(n_eff), 1.0),
        halves=np.stack([network.halves[name] for name in views], 1).astype(np.float32) if with_halves else None,
        n_eff_halves=(degrees[0], degrees[1]),
        displacement=float("nan") if moved is None else float(moved),
        session=str(network.entities.get("ses", "")),
        task=str(network.entities.get("task", "")),
    )


def is_other_session(network: Network, first: RecordedEdges) -> bool:
    """Return whether a network is of another session with the same task."""
    entities = network.entities
    return str(entities.get("ses", "")) != first.session and str(entities.get("task", "")) == first.task


def pairs_of(recordings: Mapping[str, Sequence[RecordedEdges]]) -> EdgePairs | None:
    """Return pairs of sessions if enough participants have two, pairs of halves otherwise; None for fewer than four participants.

    Variation between sessions that the halves of a session share, such as the state of the participant, is noise for the description of a
    participant. Pairs of halves count it as signal, so that edges are shrunk too little. The two kinds are not mixed. Sessions are used if
    at least 20 participants have two, or at least four and half of all.
    """
    both = [own for own in recordings.values() if len(own) > 1]
    if len(both) >= LEAST_FOR_LAYERS and (len(both) >= ENOUGH_SESSIONS or 2 * len(both) >= len(recordings)):
        first, second = [own[0] for own in both], [own[1] for own in both]
        n_eff = [np.array([one.n_eff for one in part], np.float32) for part in (first, second)]
        moved = np.array([one.displacement for one in first])
        return EdgePairs(
            SESSIONS, np.stack([one.whole for one in first]), np.stack([one.whole for one in second]), n_eff[0], n_eff[1], moved
        )
    if len(recordings) < LEAST_FOR_LAYERS:
        return None
    own = [each[0] for each in recordings.values()]
    halves = np.stack([one.halves for one in own if one.halves is not None], 1)
    n_eff_halves = np.array([one.n_eff_halves for one in own], np.float32)
    return EdgePairs(HALVES, halves[0], halves[1], n_eff_halves[:, 0], n_eff_halves[:, 1], np.array([one.displacement for one in own]))


def motion_of_edges(pairs: EdgePairs) -> dict[str, float]:
    """Compute the association of edges with head motion: the mean over edges of |r| with displacement across participants (QC-FC).

    Guided edges are those of held-out participants, in two folds.

    Returns:
      Mean |QC-FC| of `raw`, `guided` (one view) and, with two views, `guided, second view`; NaN if displacement is unknown.
    """
    views = pairs.first.shape[1]
    estimates = {"raw": pairs.first[:, 0]}
    for known, name in zip(range(1, views + 1), ("guided", "guided, second view"), strict=False):
        made = np.empty_like(pairs.first[:, 0])
        for fold in (0, 1):
            here = np.arange(len(made)) % 2 == fold
            taught = _fit(pairs, ~here, known)
            for at in np.flatnonzero(here):
                made[at] = np.asarray(guide(jnp.asarray(pairs.first[at, :known]), taught, float(pairs.n_eff_first[at]))[0])
        estimates[name] = made
    return {name: qc_fc(edges, pairs.displacement) for name, edges in estimates.items()}


def qc_fc(edges: Float[np.ndarray, "S K K"], displacement: Float[np.ndarray, " S"]) -> float:
    """Return the mean over edges of |r| between Fisher z and displacement; NaN if displacement is unknown or does not vary."""
    known = np.isfinite(displacement)
    if known.sum() < 3 or np.ptp(displacement[known]) == 0:
        return float("nan")
    z = _z(edges[known][:, *np.triu_indices(edges.shape[-1], 1)])
    x = displacement[known] - displacement[known].mean()
    y = z - z.mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.nanmean(np.abs(x @ y / (np.linalg.norm(x) * np.linalg.norm(y, axis=0)))))


def _fit(pairs: EdgePairs, who: np.ndarray, views: int) -> Guide:
    first, second = (jnp.asarray(edges[who][:, :views]) for edges in (pairs.first, pairs.second))
    return fit_guided(first, second, jnp.asarray(pairs.n_eff_first[who]), jnp.asarray(pairs.n_eff_second[who]))


def _mean(halves: Float[np.ndarray, "2 K K"]) -> Float[np.ndarray, "K K"]:
    mean = np.tanh(_z(halves).mean(0))
    own = np.diagonal(halves[0])
    np.fill_diagonal(mean, np.where(np.isnan(own), np.nan, 1.0))
    return mean


def _z(r: np.ndarray) -> np.ndarray:
    return np.arctanh(np.clip(r, -CLIP, CLIP))
