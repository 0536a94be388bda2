"""Scores of label maps on independent signals, compared with the scores of control maps.

The distance-controlled boundary coefficient (DCBC, Zhi et al. 2022) is the primary measure: it compares pairs of locations within and
across parcels at equal distance. Homogeneity is high for small and compact parcels regardless of the signals, so it is reported only
together with that of random parcels of equal sizes, and never on the signals from which the parcels were estimated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate.answer import Answer, Row, mean_row, with_interval
from pnet_jax.evaluate.null_parcels import pieces, random_parcels, ward
from pnet_jax.evaluate.reliability import p_value
from pnet_jax.parcellation import score
from pnet_jax.parcellation.score import nearest_centroid
from pnet_jax.space import LEFT, RIGHT, Space

RANDOM = "random parcels of equal sizes"


class Judge:
    """Signals for scoring parcels that were estimated from other signals.

    Args:
      y: Signals, any unit, `[V, T]`.
      space: Space with V locations.
      inside: Locations to include, the same for all compared maps, `[V]`.
      n_parcels: Number of parcels K.
      per_hemisphere: Number of locations sampled per hemisphere for the DCBC.
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
        """Return `dcbc` and `homogeneity` of the labels, `[V]`; NaN if they cannot be computed."""
        own = jnp.asarray(np.where(self.inside, labels, -1))
        return {
            "dcbc": float(score.dcbc(self.r, self.pairs, own)),
            "homogeneity": float(score.homogeneity(self.y, own, self.n_parcels, self.count)),
        }


def near_pairs(space: Space, locations: Int[np.ndarray, " n"], per_hemisphere: int, seed: int = 0) -> score.NearPairs:
    """Return all pairs up to 36 mm apart among a random sample of the locations of each hemisphere, with their 4 mm distance bin."""
    rng = np.random.default_rng(seed)
    sides = [locations[space.hemisphere[locations] == side] for side in (LEFT, RIGHT)]
    return score.near_pairs(space, [np.sort(rng.permutation(here)[:per_hemisphere]) for here in sides])


def parcellation_scores(
    labels: Int[np.ndarray, "S V"],
    signals: Iterable[Float[np.ndarray, "V T"]],
    space: Space,
    n_parcels: int,
    *,
    atlas: Int[np.ndarray, " V"] | None = None,
    made_from: Sequence[Float[np.ndarray, "V T"]] | None = None,
    maps: Mapping[str, Sequence[Int[np.ndarray, " V"]]] | None = None,
    nulls: int = 20,
    seed: int = 0,
) -> Answer:
    """Score parcels on independent scans, and compare them with control maps.

    Rows describe the participant's map and: the atlas; `centroids`, which assigns every location to the nearest centroid of the
    participant's parcels; other participants' maps (mean); random parcels of equal sizes; Ward clusters of the scan from which the parcels
    were estimated; and any further maps.

    Args:
      labels: Map of each participant, −1 outside.
      signals: Another scan of each participant, in the same order; read one at a time.
      space: Space with V locations.
      n_parcels: Number of parcels, K.
      atlas: Labels that do not depend on the participant.
      made_from: Scan of each participant from which the map was estimated, for Ward clusters.
      maps: Further maps by name, one for each participant.
      nulls: Number of maps of random parcels for each participant.
      seed: Seed of the random parcels.

    Returns:
      The Answer: rows of the table `maps` with DCBC, homogeneity and number of connected pieces, means over participants; of the table
      `differences`, the participant's map minus each; p is the share of random maps, averaged over participants, with at least its DCBC.

    Raises:
      InputError: If the numbers of maps and signals differ.
      SettingsError: `nulls` is less than 1; homogeneity is not reported without random parcels.
    """
    if nulls < 1:
        raise SettingsError(f"nulls: expected 1 or more maps of random parcels, got {nulls}: homogeneity is not reported without them")
    labels, rows = np.asarray(labels), []
    found: dict[str, dict[str, list[float]]] = {}
    reached: list[float] = []
    rng = np.random.default_rng(seed)
    for s, y in enumerate(signals):
        if s >= len(labels):
            raise InputError(f"parcellation: expected signals of {len(labels)} participants, found more")
        scored = _maps_of(s, labels, space, rng, atlas, made_from, maps, nulls)
        judge = Judge(y, space, labels[s] >= 0, n_parcels)
        for name, several in scored.items():
            scores = [judge(one) | {"pieces": float(pieces(one, space))} for one in several]
            for measure in scores[0]:
                found.setdefault(name, {}).setdefault(measure, []).append(float(np.mean([one[measure] for one in scores])))
            if name == RANDOM:
                reached.append(p_value(np.array([one["dcbc"] for one in scores]), found["own"]["dcbc"][-1]))
    if len(found["own"]["dcbc"]) != len(labels):
        raise InputError(f"parcellation: expected signals of {len(labels)} participants, found {len(found['own']['dcbc'])}")
    shown = {"dcbc": "DCBC", "homogeneity": "homogeneity", "pieces": "connected pieces"}
    for name, each in found.items():
        rows += [mean_row("maps", name, shown[measure], np.array(values), seed) for measure, values in each.items()]
    for name in list(found)[1:]:
        for measure in ("dcbc", "homogeneity"):
            apart = np.array(found["own"][measure]) - np.array(found[name][measure])
            row = mean_row("differences", f"own - {name}", shown[measure], apart, seed)
            rows.append(row._replace(p=float(np.mean(reached))) if (name, measure) == (RANDOM, "dcbc") else row)
    settings = {"nulls": nulls, "seed": seed, "n_parcels": n_parcels, "maps": list(found)}
    return Answer("parcellation", _score_sentences(rows), tuple(rows), settings)


def _maps_of(
    s: int,
    labels: Int[np.ndarray, "S V"],
    space: Space,
    rng: np.random.Generator,
    atlas: np.ndarray | None,
    made_from: Sequence[np.ndarray] | None,
    maps: Mapping[str, Sequence[np.ndarray]] | None,
    nulls: int,
) -> dict[str, list[Int[np.ndarray, " V"]]]:
    """Return the maps of one participant by name; some names have several maps."""
    own = labels[s]
    out = {"own": [own]}
    if atlas is not None:
        out["atlas"] = [atlas]
    out["centroids"] = [nearest_centroid(own, space)]
    if len(labels) > 1:
        out["another participant"] = [other for number, other in enumerate(labels) if number != s]
    out[RANDOM] = [random_parcels(own, space, rng) for _ in range(nulls)]
    if made_from is not None:
        y = np.asarray(score.standardised(jnp.asarray(made_from[s], jnp.float32), jnp.ones(made_from[s].shape[1])))
        out["Ward"] = [ward(y, own, space)]
    return out | {name: [own_maps[s]] for name, own_maps in (maps or {}).items()}


def _score_sentences(rows: Sequence[Row]) -> tuple[str, ...]:
    row = {(one.table, one.name, one.measure): one for one in rows}
    own = row["maps", "own", "DCBC"]
    said = [f"On scans from which they were not made, individual parcels have DCBC = {with_interval(own, 4)}, n = {own.n}."]
    for name in [one.name for one in rows if one.table == "differences" and one.measure == "DCBC"]:
        apart = row["differences", name, "DCBC"]
        said.append(
            f"Individual parcels minus {name.removeprefix('own - ')}: DCBC difference {apart.value:+.4f}"
            + (f", 95 % CI [{apart.low:+.4f}, {apart.high:+.4f}]." if np.isfinite(apart.low) else ".")
        )
    return tuple(said)
