"""What an example draws at random: two stretches of time, and a set of locations. Pure functions of a random generator."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from pnet_jax.config import InputConfig

Stretch = tuple[int, int]  # first kept frame, and the one after the last
_CENTRES_TRIED = 8  # times the balls that are wanted: some centres lie where nothing is left to draw


def stream(seed: int, *key: int) -> np.random.Generator:
    """Random numbers that depend on (seed, key) and nothing else."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def draw_length(rng: np.random.Generator, tr: float, config: InputConfig) -> int:
    """Frames of a segment: seconds are log-uniform, because what a scan can tell grows with their logarithm."""
    seconds = np.exp(rng.uniform(np.log(max(config.min_seconds, tr)), np.log(max(config.max_seconds, tr))))
    return int(np.clip(round(seconds / tr), 1, config.frames))


def draw_stretch(rng: np.random.Generator, frames: int, length: int) -> Stretch:
    """`length` successive frames of a scan, all of it where it is shorter."""
    length = min(length, frames)
    start = int(rng.integers(frames - length + 1))
    return start, start + length


def draw_parts(rng: np.random.Generator, frames: int, tr: float, lengths: tuple[int, int], gap_seconds: float) -> tuple[Stretch, Stretch]:
    """Two stretches of one scan with a gap between them, in random order.

    The gap counts kept frames, so it lasts `gap_seconds` of the recording or, where frames were scrubbed, longer. As in
    `pnet_jax.scan.split` it is a tenth of the scan at most. Stretches that do not fit shrink together.
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
    """Up to `config.locations` usable locations, ascending; all where there are no more.

    A share of them (`config.balls`) comes from compact balls around random locations, the rest from everywhere. Uniformly drawn, 2048 of
    200 000 voxels lie 12 mm apart: masking a 24-mm ball would hide a handful of them, and few would have a neighbour at the 8–30 mm
    that hard negatives are drawn from. From balls alone most of the brain would be missing, and with it the far negatives.
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
