"""Random choices of an example: two stretches of time and a set of locations. Pure functions of a random generator."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from pnet_jax.config import InputConfig

Stretch = tuple[int, int]  # first retained frame, and one past the last
_CENTRES_TRIED = 8  # multiple of the requested balls, since no locations are left around some centres


def stream(seed: int, *key: int) -> np.random.Generator:
    """Return random numbers that depend on (seed, key) alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def draw_length(rng: np.random.Generator, tr: float, config: InputConfig) -> int:
    """Draw the number of frames of a segment, log-uniform in seconds, since the information in a scan grows with log duration."""
    seconds = np.exp(rng.uniform(np.log(max(config.min_seconds, tr)), np.log(max(config.max_seconds, tr))))
    return int(np.clip(round(seconds / tr), 1, config.frames))


def draw_stretch(rng: np.random.Generator, frames: int, length: int) -> Stretch:
    """Draw `length` successive frames of a scan, or all of a shorter scan."""
    length = min(length, frames)
    start = int(rng.integers(frames - length + 1))
    return start, start + length


def draw_parts(rng: np.random.Generator, frames: int, tr: float, lengths: tuple[int, int], gap_seconds: float) -> tuple[Stretch, Stretch]:
    """Draw two stretches of one scan, separated by a gap, in random order.

    The gap is counted in retained frames, so it lasts `gap_seconds` of the recording, or longer if frames were scrubbed. As in
    `pnet_jax.scan.split`, it is at most a tenth of the scan. Stretches that do not fit are shortened in proportion.
    """
    gap = int(np.ceil(min(gap_seconds / tr, frames / 10)))
    room = frames - gap
    first, second = lengths
    if first + second > room:
        first = int(np.clip(room * first // (first + second), 1, room - 1))
        second = room - first
    before, after = sorted(rng.integers(0, room - first - second + 1, 2).tolist())
    start = after + first + gap  # `after − before` of the spare frames widen the gap
    parts = (before, before + first), (start, start + second)
    return parts if rng.random() < 0.5 else (parts[1], parts[0])


def draw_locations(
    rng: np.random.Generator, tree: cKDTree, xyz: Float[np.ndarray, "V 3"], usable: Bool[np.ndarray, " V"], config: InputConfig
) -> Int[np.ndarray, " n"]:
    """Draw up to `config.locations` usable locations, in ascending order; all of them if there are no more.

    A share of them (`config.balls`) lies in compact balls around random locations, the rest anywhere. If 2048 of 200 000 voxels were drawn
    uniformly, they would lie 12 mm apart: masking a 24-mm ball would hide only a handful, and few would have the neighbours at 8–30 mm that
    serve as hard negatives. Balls alone would leave out most of the brain, and with it the distant negatives.
    """
    here = np.flatnonzero(usable)
    if len(here) <= config.locations:
        return here
    left = usable.copy()
    wanted = round(config.balls * config.locations)
    share = -(-wanted // config.ball_count)
    drawn: list[Int[np.ndarray, " n"]] = []
    for centre in rng.choice(here, min(len(here), _CENTRES_TRIED * config.ball_count), replace=False):
        if wanted <= 0:
            break
        ball = np.asarray(tree.query_ball_point(xyz[centre], config.ball_mm, return_sorted=True), np.int64)
        ball = ball[left[ball]]
        taken = rng.choice(ball, min(share, wanted, len(ball)), replace=False) if len(ball) else ball
        left[taken] = False
        wanted -= len(taken)
        drawn.append(taken)
    missing = config.locations - sum(map(len, drawn))
    drawn.append(rng.choice(np.flatnonzero(left), missing, replace=False, shuffle=False))
    return np.sort(np.concatenate(drawn))
