"""Virtual modulation: which node, if modulated in the model of a patient's dynamics, moves the connectivity furthest towards controls.

The answer is a prediction of a linear model. Nothing in it is evidence that a stimulation would work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from pnet_jax.cohort import Cohort
from pnet_jax.dynamics.interventions import KINDS, Kind
from pnet_jax.dynamics.spectra import Spectra, TooShortError, frequency_bins, spectra, standardise
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate.answer import Answer
from pnet_jax.evaluate.columns import class_target, covariate_matrix, fisher_z, layer_of, numbers, shared_parcels, upper
from pnet_jax.evaluate.modulation_fold import Outcome, Setting, one_fold
from pnet_jax.evaluate.modulation_model import Dynamics, OfFc, OfSignals
from pnet_jax.evaluate.modulation_report import FAR_ENOUGH, report
from pnet_jax.evaluate.split import Split, by_subject

LAYER = "pearson"  # shrunk and guided edges halve or erase disease effects
LEAST_PATIENTS = 6
BIN_BUCKET = 16  # bins are padded to multiples of it, so that scans of about one length share a program


def modulation(
    cohort: Cohort,
    diagnosis: str,
    *,
    positive: str | None = None,
    kind: Kind = "coupling",
    cap: float = 0.2,
    targets: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
    covariates: Sequence[str] = (),
    forcing_hz: float = 0.05,
    folds: int = 5,
    max_patients: int = 100,
    draws: int = 8,
    sham: int = 10,
    sham_patients: int = 10,
    seed: int = 0,
) -> Answer:
    """Rank targets of a virtual intervention by the recovery that a model predicts for each patient.

    Every patient's J is a maximum a posteriori under a healthy → patient group → patient prior. Each target is modulated at the same energy
    (`dynamics.interventions`). The recovery rate is the share of the patient's distance from the mean control, along a disease axis fitted
    on other subjects, that the predicted change takes back. Rules that choose a target do so on an axis of most training subjects,
    and are scored on the axis of the others, in turn, so that choosing the largest of many noisy values gains nothing.

    Args:
      cohort: with Pearson edges; with `signals` for fitted dynamics, else J is made of the correlations.
      diagnosis: column of the table with two classes.
      positive: class of the patients; the last in order by default.
      kind: `"coupling"` (gain of a node's links), `"local"` (its own decay) or `"forcing"` (a periodic input).
      cap: largest energy: mean power of the input over the mean power of one node's own drift.
      targets: names of parcels, or sets of them by name; every parcel by default.
      covariates: columns that are removed from the edges, by slopes of the training rows.
      forcing_hz: frequency of the periodic input.
      folds: number of folds over subjects.
      max_patients: number of patients that are scored, drawn by the seed if there are more; all are used for training.
      draws: draws of each patient's J for the certainty of the best target.
      sham: number of sham analyses, in which diagnoses are shuffled among subjects.
      sham_patients: pseudo-patients that each sham analysis scores.
      seed: of folds, parts, draws and shuffles.

    Returns:
      Answer with rows `"rules"`, `"differences"` and `"sham"`, and tables `"targets"` and `"patients"`.

    Raises:
      SettingsError: an unknown column, class, parcel or kind, or a setting out of range.
      InputError: fewer than 6 patients or controls, edges that are not correlations, or signals too short for the band.

    Cost: for K parcels one fit (about 10 K³ · 8 operations) and N targets (1,000 K² operations each) per scored patient.
    """
    _check(kind, cap, folds, max_patients, forcing_hz)
    choice = {"positive": positive, "kind": kind, "cap": cap, "targets": targets, "covariates": covariates, "forcing_hz": forcing_hz}
    setting, names, about = prepare(cohort, diagnosis, draws=draws, seed=seed, **choice)  # type: ignore[arg-type]
    found, split = score_patients(setting, folds=folds, max_patients=max_patients)
    null = [shuffled(setting, sham_patients, number) for number in range(sham)]
    settings = about | {"kind": kind, "cap": cap, "folds": split.name, "split": split.digest, "scored_rows": len(found)}
    settings |= {"draws": draws, "sham": sham, "sham_patients": sham_patients, "seed": seed, "far_enough": FAR_ENOUGH}
    settings |= {"covariates": list(covariates), "forcing_hz": forcing_hz}
    filtered = bool((cohort.provenance.get("cleaning") or {}).get("low_pass"))
    return report(setting, names, found, np.array(null), settings, filtered)


def score_patients(setting: Setting, *, folds: int = 5, max_patients: int = 100) -> tuple[list[Outcome], Split]:
    """Score the patients, or `max_patients` of them drawn by the seed, each in the fold that holds it out; in the order of rows."""
    names = np.unique(setting.subjects[setting.patient])
    if len(names) > max_patients:
        names = np.random.default_rng(setting.seed).choice(names, max_patients, replace=False)
    scored = np.flatnonzero(np.isin(setting.subjects, names))
    split = by_subject(setting.subjects.tolist(), setting.patient.astype(float), folds=folds, seed=setting.seed)
    found: list[Outcome] = []
    for number, (train, test) in enumerate(split):
        found += one_fold(setting, train, np.intersect1d(test, scored), setting.seed + number)
    return sorted(found, key=lambda one: one.row), split


def _check(kind: str, cap: float, folds: int, max_patients: int, forcing_hz: float) -> None:
    if kind not in KINDS:
        raise SettingsError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if not 0 < cap < np.inf:
        raise SettingsError(f"cap: expected an energy above 0, got {cap}")
    if folds < 2 or max_patients < LEAST_PATIENTS:
        raise SettingsError(f"expected 2 folds or more and max_patients of {LEAST_PATIENTS} or more, got {folds} and {max_patients}")
    if not forcing_hz > 0:
        raise SettingsError(f"forcing_hz: expected a frequency above 0 Hz, got {forcing_hz}")


def prepare(
    cohort: Cohort,
    diagnosis: str,
    *,
    positive: str | None = None,
    kind: Kind = "coupling",
    cap: float = 0.2,
    targets: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
    covariates: Sequence[str] = (),
    forcing_hz: float = 0.05,
    draws: int = 0,
    seed: int = 0,
) -> tuple[Setting, list[str], dict[str, Any]]:
    """Return the arrays of the rows that have a diagnosis, the names of the targets, and settings to report; arguments as `modulation`."""
    target = class_target(cohort, diagnosis, positive)
    rows, patient = target.rows, target.y > 0.5
    subjects = np.asarray(cohort.table["subject"], str)[rows]
    for value, name in ((True, target.classes[1]), (False, target.classes[0])):
        if (count := len(np.unique(subjects[patient == value]))) < LEAST_PATIENTS:
            raise InputError(f"{diagnosis}: expected {LEAST_PATIENTS} subjects or more of each class, found {count} of class {name}")
    if mixed := sorted(set(subjects[patient]) & set(subjects[~patient])):
        raise InputError(f"{diagnosis}: subject {mixed[0]} has scans of both classes: expected one class for each subject")
    shared = shared_parcels(cohort, LAYER, rows)
    where = np.flatnonzero(shared)
    r = np.asarray(layer_of(cohort, LAYER)[rows], np.float64)[:, where[:, None], where]
    off = ~np.eye(len(where), dtype=bool)
    if np.abs(r[:, off]).max() > 1 + 1e-5:
        raise InputError(f"edges {LAYER!r}: expected correlations between −1 and 1, found {np.abs(r[:, off]).max():.3g}")
    r[:, ~off] = 1.0
    names = [cohort.names[k] for k in where]
    chosen, said = _targets(names, targets)
    healthy = np.flatnonzero(~patient)
    dynamics: Dynamics
    if cohort.signals is not None:
        dynamics = OfSignals(_spectra(cohort, rows, where), healthy, forcing_hz)
    else:
        n_eff = numbers(cohort, "n_eff")[rows] if "n_eff" in cohort.table else np.full(len(rows), np.nan)
        dynamics = OfFc(r, np.where(np.isfinite(n_eff), n_eff, np.inf), forcing_hz)
    q = covariate_matrix(cohort, covariates, rows)[0]
    z = fisher_z(upper(np.asarray(layer_of(cohort, LAYER)[rows], np.float64), shared))
    about: dict[str, Any] = {
        "diagnosis": diagnosis,
        "patients": target.classes[1],
        "controls": target.classes[0],
        "n_patients": int(patient.sum()),
    }
    about |= {
        "n_controls": int((~patient).sum()),
        "left_out_rows": target.left_out,
        "parcels": len(where),
        "absent_parcels": int((~shared).sum()),
    }
    about |= {"layer": LAYER, "dynamics": dynamics.source, "n_targets": len(said)}
    return Setting(z, r, patient, subjects, q, dynamics, chosen, kind, cap, draws, seed), said, about


def _targets(names: list[str], targets: Mapping[str, Sequence[str]] | Sequence[str] | None) -> tuple[Int[np.ndarray, "N m"], list[str]]:
    """Nodes of each target, −1 padded, and its name."""
    sets = {name: [name] for name in names} if targets is None else targets
    if not isinstance(sets, Mapping):
        sets = {name: [name] for name in sets}
    if not sets:
        raise SettingsError("targets: expected at least one parcel or set, got none")
    place = {name: k for k, name in enumerate(names)}
    out = np.full((len(sets), max(len(nodes) for nodes in sets.values())), -1)
    for number, (name, nodes) in enumerate(sets.items()):
        if unknown := [node for node in nodes if node not in place]:
            raise SettingsError(f"target {name!r}: no parcel {unknown[0]!r} in every scan: expected names such as {', '.join(names[:3])}")
        if not nodes or len(set(nodes)) < len(nodes):
            raise SettingsError(f"target {name!r}: expected one parcel or more, each once, got {list(nodes)}")
        out[number, : len(nodes)] = [place[node] for node in nodes]
    return out, list(sets)


def _spectra(cohort: Cohort, rows: Int[np.ndarray, " n"], where: Int[np.ndarray, " k"]) -> list[Spectra]:
    """Standardised spectra of each row, padded to one number of bins."""
    assert cohort.signals is not None and cohort.frames is not None
    cleaning = cohort.provenance.get("cleaning") or {}
    filtered = (cleaning.get("high_pass"), cleaning.get("low_pass"))
    tr = numbers(cohort, "tr")
    plans = []
    for row in rows:
        kept = cohort.frames[row] >= 0
        try:
            plans.append((row, kept, frequency_bins(kept[kept], float(tr[row]), frames=cohort.frames[row][kept], filtered=filtered)))
        except (TooShortError, ValueError) as error:
            raise InputError(f"{cohort.table['scan'][row]}: {error}") from error
    size = -(-max(len(bins.frequency) for _, _, bins in plans) // BIN_BUCKET) * BIN_BUCKET
    out = []
    for row, kept, bins in plans:
        seen = standardise(spectra(jnp.asarray(cohort.signals[row][where][:, kept], jnp.float32), bins))
        pad = size - len(seen.frequency)
        frequency = jnp.pad(seen.frequency, (0, pad), constant_values=float(seen.frequency.mean()))
        out.append(Spectra(frequency, jnp.pad(seen.dft, ((0, pad), (0, 0), (0, 0))), jnp.pad(seen.weight, (0, pad))))
    return out


def shuffled(setting: Setting, count: int, number: int) -> Float[np.ndarray, " 6"]:
    """Return the mean shift of each rule in standard deviations, for some pseudo-patients of one shuffle of the diagnoses."""
    rng = np.random.default_rng([setting.seed, number])
    names, first = np.unique(setting.subjects, return_index=True)
    shuffled = dict(zip(names, rng.permutation(setting.patient[first]), strict=True))
    patient = np.array([shuffled[name] for name in setting.subjects])
    ill = np.unique(setting.subjects[patient])
    held = rng.permutation(ill)[: min(count, len(ill) // 3)]
    rows = np.flatnonzero(np.isin(setting.subjects, held))
    fake = setting._replace(patient=patient, draws=0)
    return np.mean(
        [one.rules[:, 1] for one in one_fold(fake, np.flatnonzero(~np.isin(setting.subjects, held)), rows, setting.seed + number)], 0
    )
