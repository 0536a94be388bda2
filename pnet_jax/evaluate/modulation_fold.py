"""One fold of virtual modulation: axes and priors from the training rows, then the target of each rule for each held-out patient."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from pnet_jax.dynamics.interventions import Kind
from pnet_jax.evaluate.axis import Axis, fit_axis, parts_of
from pnet_jax.evaluate.modulation_model import Dynamics, Effects, control_cost, effects, spreading, square

OWN, GROUP, RANDOM, MATCHED, SPREADING, CONTROL = RULES = (
    "individual best target",
    "group-average target",
    "random target",
    "degree-matched target",
    "FC spreading",
    "minimum control energy",
)
MATCHED_SHARE = 0.1  # share of targets, closest in degree
LEAST_MATCHED = 3


class Setting(NamedTuple):
    """Settings and data shared by all folds.

    Attributes:
      z: Fisher z of all S rows, with covariates removed by `adjust`, `[S, E]`.
      r: Correlations, `[S, K, K]`.
      patient: Whether each row belongs to a patient, `[S]`.
      subjects: Subject of each row, `[S]`.
      covariates: Covariates, `[S, Q]`; Q may be 0.
      dynamics: Dynamics of the rows.
      targets: Nodes of each of N targets, −1 for padding, `[N, m]`.
      kind, cap: Kind and energy cap of the intervention.
      draws: Number of posterior draws of a patient's J.
      seed: Seed of parts and draws.
    """

    z: Float[np.ndarray, "S E"]
    r: Float[np.ndarray, "S K K"]
    patient: Bool[np.ndarray, " S"]
    subjects: np.ndarray
    covariates: Float[np.ndarray, "S Q"]
    dynamics: Dynamics
    targets: Int[np.ndarray, "N m"]
    kind: Kind
    cap: float
    draws: int
    seed: int

    @property
    def members(self) -> Float[np.ndarray, "N K"]:
        """Indicator of the nodes of each target, `[N, K]`."""
        return (self.targets[:, :, None] == np.arange(self.r.shape[-1])).any(1).astype(np.float64)


class Outcome(NamedTuple):
    """Results for one held-out patient.

    Attributes:
      row: Row of the cohort.
      position: Position on the axis of the whole training part; 0 is the mean control, 1 the mean patient.
      shift: Shift by each target on that axis, for the negative and the positive amplitude, `[N, 2]`.
      rules: Results of each rule, `[6, 5]`: shift on an axis that was not used for selection, the same in within-group standard deviations,
          whether converted, damage, and energy.
      chosen: Index of the individually best target on the whole axis.
      first: Share of posterior draws in which it stays ahead of the next four; NaN without draws.
    """

    row: int
    position: float
    shift: Float[np.ndarray, "N 2"]
    rules: Float[np.ndarray, "6 5"]
    chosen: int
    first: float


def adjust(
    z: Float[np.ndarray, "S E"], covariates: Float[np.ndarray, "S Q"], patient: Bool[np.ndarray, " S"], rows: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "S E"]:
    """Remove covariates by their within-diagnosis slopes among training rows; all rows are moved to the training mean."""
    if not covariates.shape[1]:
        return z
    apart = covariates - covariates[rows].mean(0)
    design = np.column_stack([np.ones(len(rows)), patient[rows], apart[rows]])
    slopes = np.linalg.lstsq(design, z[rows], rcond=None)[0][2:]
    return z - apart @ slopes


def axes_of(setting: Setting, z: Float[np.ndarray, "S E"], train: Int[np.ndarray, " n"], seed: int) -> list[Axis]:
    """Return the axis of the training rows; then, for each part of their subjects, the axis of the others and its own.

    Targets are selected on the axis of the others and scored on that of the part.
    """
    parts = parts_of(setting.patient, setting.subjects, train, seed)
    rows = [train, *(some for part in parts for some in (np.setdiff1d(train, part), part))]
    return [fit_axis(z, setting.patient, some) for some in rows]


def one_fold(setting: Setting, train: Int[np.ndarray, " n"], rows: Int[np.ndarray, " p"], seed: int) -> list[Outcome]:
    """Score held-out patients.

    Args:
      setting: Settings and data; see `Setting`.
      train: Training rows, which contain no subject of `rows`.
      rows: Rows of held-out patients.
      seed: Seed of the fold.
    """
    k = setting.r.shape[-1]
    z = adjust(setting.z, setting.covariates, setting.patient, train)
    axes = axes_of(setting, z, train, seed)
    weights, direction = square(np.stack([one.weights for one in axes]), k, 0.5), square(axes[0].direction, k)
    learned = setting.dynamics.learn(setting.patient, train)
    both = (setting.targets, weights, direction, setting.kind, setting.cap)
    group = effects(setting.dynamics.group(learned), *both)
    found = []
    for row in rows:
        subject = setting.dynamics.one(learned, int(row))
        own = effects(subject, *both)
        positions = np.array([axis.position(z[row]) for axis in axes])
        strength = np.abs(np.asarray(subject.jacobian)) @ setting.members.T
        chosen_on = range(1, len(axes), 2)
        wanted = np.stack([_wanted(axes[at], z[row], k) for at in chosen_on])
        costs = dict(zip(chosen_on, control_cost(subject.jacobian, wanted, setting.targets), strict=True))
        spread = {at: spreading(setting.r[row], weights[at], setting.members) for at in chosen_on}
        degree = (strength * setting.members.T).sum(0)
        rules = np.mean([_scored(own, group, positions, degree, costs[at], spread[at], axes, at) for at in chosen_on], 0)
        best = np.argsort(-own.shift[0].max(1))[:5]
        key = jax.random.fold_in(jax.random.key(setting.seed), int(row))
        drawn = setting.dynamics.draws(learned, int(row), subject, setting.draws, key)
        again = [effects(one, setting.targets[best], *both[1:]).shift[0].max(1).argmax() == 0 for one in drawn]
        first = float(np.mean(again)) if again else float("nan")
        found.append(Outcome(int(row), float(positions[0]), own.shift[0], rules, int(best[0]), first))
    return found


def _wanted(axis: Axis, z: Float[np.ndarray, " E"], k: int) -> Float[np.ndarray, " K"]:
    """Return the change of each node's mean Fisher z from the patient to the mean control."""
    return square(axis.healthy - z, k).sum(1) / (k - 1)


def _scored(
    own: Effects,
    group: Effects,
    positions: Float[np.ndarray, " A"],
    degree: Float[np.ndarray, " N"],
    costs: Float[np.ndarray, " N"],
    spread: Float[np.ndarray, " N"],
    axes: list[Axis],
    number: int,
) -> Float[np.ndarray, "6 5"]:
    """Return the results of each rule, with targets selected on one axis and scored on the next, which is based on other subjects."""
    choose, score = own.shift[number], own.shift[number + 1]
    n = len(choose)
    sign = choose.argmax(1)  # every rule can choose the sign
    at = choose.max(1).argmax()
    near = [one for one in np.argsort(np.abs(degree - degree[at]), kind="stable") if one != at][
        : max(LEAST_MATCHED, round(MATCHED_SHARE * n))
    ]
    targets = {
        OWN: [at],
        GROUP: [group.shift[number].max(1).argmax()],
        RANDOM: np.arange(n),
        MATCHED: near,
        SPREADING: [spread.argmax()],
        CONTROL: [costs.argmin()],
    }
    signs = {GROUP: group.shift[number].argmax(1)}
    out = np.full((len(RULES), 5), np.nan)
    for k, rule in enumerate(RULES):
        some = np.asarray(targets[rule], int)
        if not len(some):
            continue
        way = signs.get(rule, sign)[some]
        shift = score[some, way]
        converted = (positions[number + 1] - shift < 0.5).mean() if positions[number + 1] >= 0.5 else np.nan
        out[k] = (
            shift.mean(),
            shift.mean() * axes[number + 1].separation,
            converted,
            own.damage[some, way].mean(),
            own.energy[some, way].mean(),
        )
    return out
