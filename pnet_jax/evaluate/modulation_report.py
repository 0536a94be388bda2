"""Results of virtual modulation as an Answer: rows, ranking of targets, and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from pnet_jax.evaluate.answer import Answer, Figure, Row, interval_of, mean_row, with_interval, with_p
from pnet_jax.evaluate.modulation_fold import GROUP, OWN, RULES, Outcome, Setting
from pnet_jax.evaluate.modulation_model import OfFc
from pnet_jax.evaluate.resampling import sign_flip

FAR_ENOUGH = 0.25  # least position for which a recovery rate is defined; below it, the denominator is dominated by noise
BOOTSTRAPS = 2000
SHIFT = "shift, share of the group distance"
SHIFT_SD = "shift, standard deviations within a group"  # with shuffled diagnoses, the group distance is noise and cannot serve as a unit
CLAIM = "This is a prediction of a linear model of resting-state connectivity, not evidence of a clinical effect of any stimulation."


def report(
    setting: Setting, names: list[str], found: list[Outcome], null: Float[np.ndarray, "n 6"], settings: dict[str, Any], filtered: bool
) -> Answer:
    of, position = setting.subjects[[one.row for one in found]], np.array([one.position for one in found])
    numbers_ = np.array([one.rules for one in found])
    rate = np.where(position >= FAR_ENOUGH, 1 / np.where(position >= FAR_ENOUGH, position, 1.0), np.nan)
    seed = int(settings["seed"])
    rows = _rule_rows(of, rate, numbers_, seed) + _differences(of, numbers_[..., 1], seed) + _sham_rows(null, numbers_[..., 1], of)
    shift = np.array([one.shift for one in found])
    targets = _target_table(names, shift, of, seed)
    patients = {
        "subject": of,
        "position": position,
        "best_target": np.array([names[one.chosen] for one in found]),
        "shift": np.array([one.shift.max() for one in found]),
        "recovery_rate": np.array([one.shift.max() for one in found]) * rate,
        "first_in_draws": np.array([one.first for one in found]),
    }
    warnings = _warnings(setting, position, filtered)
    sentences = _sentences(rows, targets, settings)
    values = {rule: numbers_[:, k, 0] for k, rule in enumerate(RULES)}
    figure = Figure("Shift towards controls at the energy cap", y=SHIFT, values=values)
    return Answer("modulation", sentences, tuple(rows), settings, {"targets": targets, "patients": patients}, (figure,), warnings)


def _rule_rows(of: np.ndarray, rate: np.ndarray, values: Float[np.ndarray, "P 6 5"], seed: int) -> list[Row]:
    out = []
    for k, rule in enumerate(RULES):
        measures = {
            "recovery rate": values[:, k, 0] * rate,
            SHIFT: values[:, k, 0],
            SHIFT_SD: values[:, k, 1],
            "conversion rate": values[:, k, 2],
            "off-axis damage, Fisher z": values[:, k, 3],
            "energy": values[:, k, 4],
        }
        out += [mean_row("rules", rule, measure, per_subject(of, each), seed) for measure, each in measures.items()]
    return out


def _differences(of: np.ndarray, shift: Float[np.ndarray, "P 6"], seed: int) -> list[Row]:
    out = []
    for k, rule in enumerate(RULES):
        if rule != OWN:
            apart = per_subject(of, shift[:, 0] - shift[:, k])
            row = mean_row("differences", f"{OWN} − {rule}", SHIFT_SD, apart, seed)
            out.append(row._replace(p=sign_flip(apart, seed, two_sided=True)))
    return out


def _sham_rows(null: Float[np.ndarray, "n 6"], shift: Float[np.ndarray, "P 6"], of: np.ndarray) -> list[Row]:
    if not len(null):
        return []
    out = []
    for k, rule in enumerate(RULES):
        real = np.nanmean(per_subject(of, shift[:, k]))
        p = float((1 + (null[:, k] >= real).sum()) / (1 + len(null)))
        low, high = interval_of(null[:, k])
        out.append(
            Row(
                "sham",
                rule,
                SHIFT_SD,
                float(null[:, k].mean()),
                low,
                high,
                p,
                len(null),
                "p value of the observed shift",
            )
        )
    return out


def per_subject(of: np.ndarray, values: Float[np.ndarray, " P"]) -> Float[np.ndarray, " n"]:
    """Return the mean over the rows of each subject; NaN if there is no finite value."""
    known = np.isfinite(values)
    names, at = np.unique(of, return_inverse=True)
    count = np.bincount(at, known, len(names))
    total = np.bincount(at, np.where(known, values, 0.0), len(names))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _target_table(names: list[str], shift: Float[np.ndarray, "P N 2"], of: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Return targets in order of decreasing mean shift, with bootstrap intervals over patients and the direction of the larger mean."""
    each = np.stack([[per_subject(of, shift[:, n, s]) for s in (0, 1)] for n in range(len(names))], 1)  # [2, N, subjects]
    mean = each.mean(2)
    way = mean.argmax(0)
    chosen = each[way, np.arange(len(names))]  # [N, subjects]
    drawn = np.random.default_rng(seed).integers(chosen.shape[1], size=(BOOTSTRAPS, chosen.shape[1]))
    counts = np.stack([np.bincount(one, minlength=chosen.shape[1]) for one in drawn]) / chosen.shape[1]
    boot = counts @ chosen.T  # [B, N]
    low, high = np.percentile(boot, (2.5, 97.5), axis=0)
    winner = np.bincount(boot.argmax(1), minlength=len(names)) / BOOTSTRAPS
    first = np.bincount(each.max(0).argmax(0), minlength=len(names)) / chosen.shape[1]
    order = np.argsort(-chosen.mean(1), kind="stable")
    table = {
        "target": np.array(names),
        "direction": np.where(way == 1, "increase", "decrease"),
        "shift": chosen.mean(1),
        "low": low,
        "high": high,
    }
    table |= {"first_of_patients": first, "first_in_bootstrap": winner}
    return {name: column[order] for name, column in table.items()}


def _warnings(setting: Setting, position: np.ndarray, filtered: bool) -> tuple[str, ...]:
    said = []
    if (near := int((position < FAR_ENOUGH).sum())) > 0:
        said.append(
            f"{near} of {len(position)} scans of patients are less than {FAR_ENOUGH:g} of the group distance from the mean control on the "
            "axis of other participants: the recovery rate is undefined for them, and only their shift is given."
        )
    if isinstance(setting.dynamics, OfFc):
        said.append("The cohort has no signals: J was computed from correlations, so its rates are relative, and it has no posterior.")
    elif not filtered:
        said.append("The cohort does not record the temporal filter of its signals: they were assumed to be unfiltered.")
    return tuple(said)


def _sentences(rows: list[Row], targets: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> tuple[str, ...]:
    by = {(row.table, row.name, row.measure): row for row in rows}
    own, group = by["rules", OWN, SHIFT], by["rules", GROUP, SHIFT]
    texts = [
        f"At an energy cap of {settings['cap']:g}, the model predicts that modulation of the {OWN} shifts patients towards the controls by "
        f"{with_interval(own)}, of the distance between the mean patient and the mean control, and modulation of the {GROUP} by "
        f"{with_interval(group)} (n = {own.n} patients)."
    ]
    sham = by.get(("sham", OWN, SHIFT_SD))
    if sham is not None:
        real = by["rules", OWN, SHIFT_SD]
        texts.append(
            f"The shift for the {OWN} is {with_interval(real)} standard deviations within a group; with shuffled diagnoses, it is "
            f"{sham.value:.3f}, 95 % range [{sham.low:.3f}, {sham.high:.3f}] ({with_p(sham.p)}, {sham.n} shuffles)."
        )
    random = by["differences", f"{OWN} − random target", SHIFT_SD]
    texts.append(
        f"The difference in shift between the {OWN} and a random target of equal energy is {with_interval(random)} standard deviations "
        f"({with_p(random.p)})."
    )
    best = {name: column[0] for name, column in targets.items()}
    texts.append(
        f"The highest-ranked target is {best['target']} ({best['direction']}), with a predicted shift of {best['shift']:.3f}, 95 % CI "
        f"[{best['low']:.3f}, {best['high']:.3f}]; it ranks first in {100 * best['first_in_bootstrap']:.0f} % of the bootstrap samples "
        f"and for {100 * best['first_of_patients']:.0f} % of the patients."
    )
    return (*texts, CLAIM)
