"""Detection of invalid frames (empty, constant, repeated, extreme outliers) and of identical signals."""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Bool, Float, Int

from pnet_jax.errors import InputError
from pnet_jax.ingest.tables import shortlist

SAMPLED = 4096  # number of locations at which frames are checked
FEWEST = 8  # with fewer locations, equal values may be due to chance
NOT_FINITE = 0.1  # share of locations without a finite value above which the frame is invalid, rather than the locations
FAR = 10.0  # times the distance of the median frame from the locations' medians; head motion in 660 ABIDE recordings reaches at most 5.4
FEW = 0.25  # share of frames; if more are this far out, the signal itself has shifted and no frame is an outlier
CAP = 100.0  # robust standard deviations, so that a few extreme locations do not make a frame invalid
OUTLYING = f"at over {FAR:g} times the usual distance from the median signal"
SAME, COMPARED, MOST_ALIKE = 0.999, 1024, 1 / 3  # |correlation| of identical signals; locations compared; largest share of identical ones


def leave_out_broken(y: Float[np.ndarray, "V recorded"], kept: Int[np.ndarray, " T"], warnings: list[str]) -> Int[np.ndarray, " T"]:
    """Exclude frames that cannot be measurements; a warning gives their number, positions and the reason.

    A frame is excluded if more than a tenth of the locations have no finite value, all have the same value, all repeat the previous
    frame, or if its mean distance from the locations' medians, in robust standard deviations, exceeds 10 times that of the median frame.
    Head motion stays far below that and is left to scrubbing. If more than a quarter of the frames are this far out, they are kept, with
    a warning.

    Args:
      y: Raw series, `[V, recorded]`; at most 4096 evenly spaced locations are checked.
      kept: Positions of the frames kept so far, ascending, `[T]`.
      warnings: List to which warnings are appended.

    Returns:
      Positions of the frames that remain, ascending.
    """
    some = y[np.linspace(0, len(y) - 1, min(len(y), SAMPLED)).astype(int)]
    finite = np.isfinite(some[:, kept])
    usable = finite.mean(1) > 0.5
    if not usable.any():
        return kept
    some = some[usable]
    found = {"without finite values": kept[(~finite[usable]).mean(0) > NOT_FINITE]}
    left = np.setdiff1d(kept, found["without finite values"])
    for why, judge in (("with the same value at all locations", _same_everywhere), ("identical to the previous frame", _repeated)):
        found[why] = left[judge(some, left)]
        left = np.setdiff1d(left, found[why])
    far = left[_far_out(some, left)]
    if len(far) > FEW * len(left):
        warnings.append(f"{len(far)} of {len(left)} frames lie {OUTLYING}, too many for outliers: they are kept; check the recording")
        far = far[:0]
    found[OUTLYING], left = far, np.setdiff1d(left, far)
    each = [f"{len(at)} {why} ({_positions(at)})" for why, at in found.items() if len(at)]
    if each:
        gone = len(kept) - len(left)
        said = f"{gone} of {len(kept)} frames cannot be measurements and were excluded (positions counted from 0)"
        warnings.append(f"{said}: {', '.join(each)}")
    return left


def _same_everywhere(y: Float[np.ndarray, "n recorded"], at: Int[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
    varying = y[:, at][_varies(y[:, at])]
    if len(varying) < FEWEST:
        return np.zeros(len(at), bool)
    same = varying.max(0) == varying.min(0)
    return same & (same.mean() <= 0.5)  # if most frames are uniform, all locations share one signal, which `check_different` reports


def _repeated(y: Float[np.ndarray, "n recorded"], at: Int[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
    varying = y[_varies(y[:, at])]
    if len(varying) < FEWEST:
        return np.zeros(len(at), bool)
    return (at > 0) & (varying[:, at] == varying[:, np.maximum(at - 1, 0)]).all(0)


def _far_out(y: Float[np.ndarray, "n recorded"], at: Int[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
    away = y[:, at][np.isfinite(y[:, at]).all(1)].astype(np.float64)
    away = np.abs(away - np.median(away, axis=1, keepdims=True)) if away.size else away
    spread = 1.4826 * np.median(away, axis=1, keepdims=True) if away.size else np.zeros((0, 1))
    some = spread[:, 0] > 0
    if some.sum() < FEWEST:
        return np.zeros(len(at), bool)
    distance = np.minimum(away[some] / spread[some], CAP).mean(0)
    return distance > FAR * np.median(distance)


def _varies(y: Float[np.ndarray, "n T"]) -> Bool[np.ndarray, " n"]:
    return np.isfinite(y).all(1) & (y.max(1, initial=-np.inf) > y.min(1, initial=np.inf))


def _positions(at: Int[np.ndarray, " n"]) -> str:
    """Format positions, counted from 0; consecutive ones as `3–7`."""
    runs = [[int(t) for _, t in run] for _, run in itertools.groupby(enumerate(at), lambda pair: pair[1] - pair[0])]
    return shortlist([f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs])


def check_different(y: Float[np.ndarray, "V T"], valid: Bool[np.ndarray, " V"], where: str) -> None:
    """Raise if more than a third of the locations have the same signal, up to scale and sign.

    Args:
      y: Cleaned signals, z-scored, `[V, T]`; at most 1024 evenly spaced valid locations are compared.
      valid: Whether each location has a signal, `[V]`.
      where: Name of the scan in messages.

    Raises:
      InputError: If more than a third of the locations have the same signal.
    """
    here = np.flatnonzero(valid)
    here = here[np.linspace(0, len(here) - 1, min(len(here), COMPARED)).astype(int)]
    r = y[here] @ y[here].T / y.shape[1]
    share = ((np.abs(r) > SAME).sum(1).max() - 1) / max(len(here) - 1, 1)
    if share > MOST_ALIKE:
        raise InputError(
            f"{where}: {share:.0%} of the locations have the same signal, expected at most {MOST_ALIKE:.0%}: a network of them would be "
            "meaningless; check the file and its preprocessing"
        )
