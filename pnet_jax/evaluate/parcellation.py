"""Parcellation: fit, replication and individual specificity of parcels, compared with the atlas.

The module has two functions. `parcellation` reads a cohort and reports the quality of parcels across the halves of each scan (gain, DCBC
gain, agreement), and the overlap of parcels in repeated scans and between participants: Dice (1945) of each parcel and adjusted Rand index
(Hubert and Arabie 1985). `parcellation_scores` takes label maps and the signals of the locations in *another* scan, which a cohort does
not contain, and compares them with control maps.

The distance-controlled boundary coefficient (DCBC, Zhi et al. 2022) is the primary measure: it compares pairs of locations within and
across parcels at equal distance. Homogeneity is high for small and compact parcels regardless of the signals: it is given only together
with that of random parcels of equal sizes, and never on the signals from which the parcels were made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from pnet_jax.cohort import Cohort
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate.answer import Answer, Figure, Row, mean_row, with_interval
from pnet_jax.evaluate.label_maps import dice, pair_agreement, rand_index
from pnet_jax.evaluate.null_parcels import pieces, random_parcels, ward
from pnet_jax.evaluate.reliability import p_value, wilson
from pnet_jax.evaluate.repeats import SAME, Repeats, per_subject, repeats_of
from pnet_jax.parcellation import score
from pnet_jax.parcellation.score import nearest_centroid
from pnet_jax.space import LEFT, RIGHT, Space

QUALITY = ("dcbc_gain", "gain", "agreement", "expected_agreement", "moved")
UNITS = {"gain": "gain (nats per location)", "dcbc_gain": "DCBC gain"}
RANDOM = "random parcels of equal sizes"


class Judge:
    """Signals used to score parcels that were made from other signals.

    Args:
      y: Signals, any unit, `[V, T]`.
      space: V locations.
      inside: The locations that count, the same for all that are compared, `[V]`.
      n_parcels: K.
      per_hemisphere: Sample for the DCBC.
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


def near_pairs(space: Space, locations: Int[np.ndarray, " n"], per_hemisphere: int, seed: int = 0) -> score.Pairs:
    """Return all pairs up to 36 mm apart among a random sample of the locations of each hemisphere, with their 4 mm distance bin."""
    rng = np.random.default_rng(seed)
    sides = [locations[space.hemisphere[locations] == side] for side in (LEFT, RIGHT)]
    return score.near_pairs(space, [np.sort(rng.permutation(here)[:per_hemisphere]) for here in sides])


# a cohort


def parcellation(cohort: Cohort, *, same: Sequence[str] = SAME, others: int = 5, seed: int = 0) -> Answer:
    """Evaluate the parcels of a cohort.

    Args:
      cohort: Scans; repeated scans, if any, are compared.
      same: Columns of the table that must be equal for two scans to count as repeats.
      others: Number of other participants with which each pair is compared.
      seed: Random seed.

    Returns:
      The Answer. Tables of rows: `quality` (means over scans; intervals over participants), `decisions`, `overlap` (participants with two
      scans). The table `parcels` gives the Dice coefficient of each parcel.

    Raises:
      InputError: The cohort has neither values of quality nor labels of repeated scans.
    """
    rows, figures = _quality_rows(cohort, seed)
    rows += _decision_rows(cohort)
    alarms: list[str] = []
    tables: dict[str, Mapping[str, np.ndarray]] = {}
    repeats = _repeats_or_none(cohort, same)
    if cohort.labels is None:
        alarms.append("The cohort has no labels, because its scans do not share a Space: overlap is not available.")
    elif repeats is None:
        alarms.append("Fewer than two participants have two scans: overlap within and between participants is not available.")
    else:
        own, tables["parcels"] = _overlap_rows(cohort, repeats, others, seed)
        rows, alarms = rows + own, alarms + repeats.warnings
        figures.append(Figure("Dice of each parcel", "Dice", "parcels", values={k: tables["parcels"][k] for k in ("within", "between")}))
    if not any(np.isfinite(row.value) for row in rows):
        raise InputError("parcellation: expected values of quality or labels of repeated scans, found neither in the cohort")
    settings = {"same": list(same), "others": others, "seed": seed, "dice": "mean over parcels", "quality": list(QUALITY)}
    return Answer("parcellation", _sentences(rows), tuple(rows), settings, tables, tuple(figures), tuple(alarms))


def _repeats_or_none(cohort: Cohort, same: Sequence[str]) -> Repeats | None:
    try:
        return repeats_of(cohort, "parcellation", same)
    except InputError:
        return None


def _quality_rows(cohort: Cohort, seed: int) -> tuple[list[Row], list[Figure]]:
    names, subject = np.unique(cohort.table["subject"].astype(str), return_inverse=True)
    rows, figures = [], []
    for name in QUALITY:
        values = np.asarray(cohort.table[name], float)
        known = values[np.isfinite(values)]
        rows.append(mean_row("quality", UNITS.get(name, name), "mean", per_subject(values, subject, len(names)), seed))
        if len(known):
            quantiles = zip(("5 %", "median", "95 %"), np.percentile(known, (5, 50, 95)), strict=True)
            rows += [
                Row("quality", UNITS.get(name, name), measure, float(value), n=len(known), note="n is the number of scans")
                for measure, value in quantiles
            ]
            figures.append(Figure(f"Parcels: {name}", UNITS.get(name, name), "scans", values={name: known}))
    return rows, figures


def _decision_rows(cohort: Cohort) -> list[Row]:
    """Return the share of scans with each decision; intervals treat scans as independent."""
    decisions = cohort.table["decision"].astype(str)
    n, rows = len(decisions), []
    for name in sorted(set(decisions.tolist()) - {""}):
        share = float((decisions == name).mean())
        rows.append(Row("decisions", name, "share of scans", share, *wilson(share, n), n=n))
    return rows


def _overlap_rows(cohort: Cohort, repeats: Repeats, others: int, seed: int) -> tuple[list[Row], dict[str, np.ndarray]]:
    assert cohort.labels is not None
    labels, k, n = cohort.labels[repeats.rows], cohort.n_parcels, len(repeats.names)
    measures: dict[str, dict[str, np.ndarray]] = {"Dice": {}, "adjusted Rand index": {}, "agreement": {}}
    table = {"id": np.asarray(cohort.ids), "name": np.array(cohort.names)}
    for which, pairs in (("within", repeats.within), ("between", repeats.between(others, seed))):
        owner = repeats.subject[pairs[:, 0]]
        overlap = np.stack([dice(labels[i], labels[j], k) for i, j in pairs])
        known = np.isfinite(overlap)
        table[which] = np.where(known, overlap, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)
        each = {"Dice": np.where(known, overlap, 0).sum(1) / np.maximum(known.sum(1), 1), "agreement": pair_agreement(labels, pairs)}
        each["adjusted Rand index"] = np.array([rand_index(labels[i], labels[j]) for i, j in pairs])
        for measure, values in each.items():
            measures[measure][which] = per_subject(values, owner, n)
    table["difference"] = table["within"] - table["between"]
    rows = []
    for measure, each in measures.items():
        each["within - between"] = each["within"] - each["between"]
        rows += [mean_row("overlap", measure, which, values, seed) for which, values in each.items()]
    return rows, table


def _sentences(rows: Sequence[Row]) -> tuple[str, ...]:
    row = {(one.table, one.name, one.measure): one for one in rows}
    said = []
    if overlap := row.get(("overlap", "Dice", "within - between")):
        within, between = (row["overlap", "Dice", which] for which in ("within", "between"))
        said.append(
            f"Parcels of repeated scans overlap more than those of different participants; the difference in Dice is "
            f"{with_interval(overlap)} ({within.value:.3f} within, {between.value:.3f} between, n = {overlap.n})."
        )
    if (gain := row["quality", UNITS["dcbc_gain"], "mean"]).n:
        said.append(
            f"Across the halves of a scan, personalised parcels exceed parcels that do not use the data in DCBC by "
            f"{with_interval(gain)} (n = {gain.n})."
        )
    for one in rows:
        if (one.table, one.name) == ("decisions", "personalised"):
            said.append(
                f"{one.value:.0%} of {one.n} scans have personalised parcels; in the others, the gain over the atlas was not sufficient."
            )
    return tuple(said)


# label maps and signals of another scan


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
    """Score parcels on scans from which they were not made, and compare them with control maps.

    Rows describe the participant's own map and: the atlas; `centroids`, which assigns every location to the nearest centroid of the
    participant's parcels; another participant's map (the mean over all others); random parcels of equal sizes; Ward's clusters of
    the scan from which the parcels were made; and any further maps.

    Args:
      labels: Map of each participant, −1 outside.
      signals: Another scan of each participant, in the same order; read one at a time.
      space: Space of V locations.
      n_parcels: Number of parcels, K.
      atlas: Labels that do not depend on the participant.
      made_from: Scan of each participant from which the map was made, for Ward's clusters.
      maps: Further maps by name, one for each participant.
      nulls: Number of maps of random parcels for each participant.
      seed: Seed of the random parcels.

    Returns:
      The Answer: rows of the table `maps` with DCBC, homogeneity and number of connected pieces, means over participants; of the table
      `differences`, own minus each; p is the share of random maps, averaged over participants, that reach the DCBC of the own map.

    Raises:
      InputError: The numbers of maps and signals differ.
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
    said = [f"On scans from which they were not made, the participants' own parcels have DCBC = {with_interval(own, 4)} (n = {own.n})."]
    for name in [one.name for one in rows if one.table == "differences" and one.measure == "DCBC"]:
        apart = row["differences", name, "DCBC"]
        said.append(
            f"Own minus {name.removeprefix('own - ')}: DCBC difference {apart.value:+.4f}"
            + (f", 95 % CI [{apart.low:+.4f}, {apart.high:+.4f}]." if np.isfinite(apart.low) else ".")
        )
    return tuple(said)
