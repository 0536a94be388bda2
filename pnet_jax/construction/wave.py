"""The host loop around the step: scans become batches of one shape, batches go to the devices, results come back as arrays."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from pnet_jax import parallel
from pnet_jax.config import ParallelConfig
from pnet_jax.construction.resolve import Plan
from pnet_jax.construction.step import BLOCK_SECONDS, Outputs, Settings, Shared, Subject, step
from pnet_jax.encoder.adapter import Adapter
from pnet_jax.encoder.tokens import log_tsnr, nearest_reference
from pnet_jax.parcellation.atlas import coverage_of
from pnet_jax.parcellation.choose import data_free
from pnet_jax.parcellation.mixture import Problem
from pnet_jax.parcellation.spatial import AtlasOnSpace, SpatialPrior, locate, place, space_key
from pnet_jax.scan import FRAME_BUCKET, Scan, halves_of

KEPT_SPACES = 4
# Where the locations are split, of (shared, wave): the first rule that an array's path matches (`parallel.layout`).
LAYOUT: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"^0/(region|prior/(candidates|log_prior|neighbours|labels|cube|xyz|blocks/(lists|place|inverse)))$", ("location",)),
    (r"^0/(free|prior/table)$", (None, "location")),
    (r"^1/(y|valid|log_tsnr)$", ("subject", "location")),
    (r"^1/halves$", ("subject", None, "location")),
    (r"^1/", ("subject",)),
)
_TABLES: dict[Hashable, tuple[AtlasOnSpace, Shared]] = {}  # of the Spaces that scans came on last, for every call in this process


def shared_of(plan: Plan, placed: AtlasOnSpace) -> Shared:
    """Make the tables that all scans of a Space share under a plan, on the device."""
    prior = placed.prior
    region = np.where(prior.labels >= 0, nearest_reference(np.asarray(prior.xyz), np.asarray(plan.model.encoder.references)), -1)
    kappas, betas = jnp.asarray(plan.kappas, jnp.float32), jnp.asarray(plan.betas, jnp.float32)
    free = _free(prior, betas, plan.settings.n_parcels)
    return Shared(plan.model.encoder, prior, jnp.asarray(region.astype(np.int32)), free, kappas, betas)


@functools.partial(jax.jit, static_argnames="n_parcels")
def _free(prior: SpatialPrior, betas: Float[Array, " m"], n_parcels: int) -> Float[Array, "b W C"]:
    z, prototypes = jnp.zeros((len(prior.candidates), 1)), jnp.zeros((n_parcels, 1))
    problem = Problem(z, prior.candidates, prior.log_prior, prior.table, prototypes, prior.blocks)
    # β = 0 is the spatial prior itself, whose labels are the atlas's.
    return data_free(problem, jnp.pad(betas, (1, 0)))


def subject_of(scan: Scan, placed: AtlasOnSpace, seed: int, adapter: Adapter | None = None) -> Subject:
    """A scan as the step reads it: the atlas's locations in their order, frames padded to a bucket of what was recorded."""
    rows = locate(placed, scan)
    at, valid = rows
    size = bucket(scan.recorded)
    half = bucket(scan.recorded // 2, FRAME_BUCKET // 2)
    halves = halves_of(scan)
    starts = [one.frames[0] if len(one.frames) else 0 for one in halves]
    blocks = [_blocks(one.frames - start, scan.tr, half) for one, start in zip(halves, starts, strict=True)]
    counted = [int(block.max(initial=-1)) + 1 for block in blocks]
    blocks[1] = np.where(blocks[1] >= 0, blocks[1] + counted[0], -1)
    present = coverage_of(placed.atlas, placed.nearest, valid[: len(placed.here)]) > 0
    labels = np.asarray(placed.prior.labels)
    present[labels[valid & (labels >= 0)]] = True
    return Subject(
        y=rows.take(scan.y, size),
        kept=np.arange(size) < scan.y.shape[1],
        frames=_padded(scan.frames, size),
        halves=np.stack([rows.take(one.y, half) for one in halves]),
        halves_kept=np.stack([np.arange(half) < one.y.shape[1] for one in halves]),
        halves_frames=np.stack([_padded(one.frames, half) for one in halves]),
        blocks=np.stack(blocks).astype(np.int32),
        valid=valid,
        present=present,
        log_tsnr=np.where(valid, log_tsnr(scan.mean[at], scan.std[at], valid), 0).astype(np.float32),
        tr=np.float32(scan.tr),
        n_blocks=np.int32(min(counted)),
        degrees=np.array([one.degrees for one in halves], np.float32),
        seed=np.uint32(seed_of(scan, seed)),
        adapter=adapter,
    )


def bucket(frames: int, multiple: int = FRAME_BUCKET) -> int:
    """Padded number of frames: of what was recorded, so that scrubbing never compiles anew."""
    return -(-frames // multiple) * multiple


def _padded(frames: Int[np.ndarray, " t"], size: int) -> Int[np.ndarray, " size"]:
    """Positions after the first frame, 0 in padding."""
    return np.pad(frames - frames[:1], (0, size - len(frames))).astype(np.int32)


def _blocks(frames: Int[np.ndarray, " t"], tr: float, size: int) -> Int[np.ndarray, " size"]:
    """Stretch of 20 s that each frame lies in, by the clock of the recording; stretches of a few frames join the one before."""
    out = np.full(size, -1, np.int64)
    if not len(frames):
        return out
    block = (frames * tr / BLOCK_SECONDS).astype(np.int64)
    least = BLOCK_SECONDS / tr / 2
    names, counts = np.unique(block, return_counts=True)
    at, filled = {}, 0.0
    number = -1
    for name, count in zip(names.tolist(), counts.tolist(), strict=True):
        if number < 0 or filled >= least:
            number, filled = number + 1, 0.0
        at[name], filled = number, filled + count
    if filled < least and number > 0:
        at = {name: min(value, number - 1) for name, value in at.items()}
    out[: len(frames)] = [at[name] for name in block.tolist()]
    return out


def seed_of(scan: Scan, seed: int) -> int:
    """Depends on who the scan is, never on what is processed beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{scan.label}".encode()).digest()[:4], "big")


def stacked(subjects: Sequence[Subject], mesh: Mesh) -> Subject:
    """Put a wave on its devices: all arrays with one axis more in front, and each device's locations on it (`LAYOUT`).

    Every scan travels on its own and is stacked where it arrives: stacking on the host copies all signals once more, which takes
    longer than a GPU needs to compute the wave, and one large array travels slower than its parts.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((len(subjects), *np.shape(leaf)), leaf.dtype), subjects[0])
    _, layout = parallel.layout((None, shapes), LAYOUT, mesh)
    return jax.tree.map(lambda to, *parts: parallel.stack(parts, to), layout, *subjects)


def put(shared: Shared, subjects: Sequence[Subject], mesh: Mesh, size: int = 1) -> tuple[Shared, Subject]:
    """Send scans of one shape to the devices; the returned arrays may still be on their way.

    Args:
      shared: model and atlas on their Space.
      subjects: the scans.
      mesh: devices.
      size: rows of the wave at least; those beside the scans are the last scan's again.
    """
    size = parallel.padded(max(len(subjects), size), mesh.shape["subject"])
    return on_mesh(shared, mesh), stacked([*subjects, *[subjects[-1]] * (size - len(subjects))], mesh)


def land(outputs: Outputs, count: int) -> list[Outputs]:
    """Wait for a wave and return the results of its first `count` scans as numpy arrays."""
    found = jax.device_get(outputs)
    return [jax.tree.map(lambda leaf, at=at: leaf[at], found) for at in range(count)]


def on_mesh(shared: Shared, mesh: Mesh) -> Shared:
    """Tables with each device's locations on it; as they are where a mesh does not split locations.

    Parts that do not divide W, which is a multiple of 4096, leave all locations on every device.
    """
    if mesh.shape["location"] == 1:
        return shared
    layout, _ = parallel.layout((shared, None), LAYOUT, mesh)
    return jax.device_put(shared, layout)


@functools.lru_cache(maxsize=32)
def compiled(settings: Settings, mesh: Mesh) -> Callable[..., Outputs]:
    """The step of a wave over a mesh, compiled once for each shape."""
    return parallel.over_subjects(functools.partial(step, settings=settings), mesh, shared=1)


class Builder:
    """Networks of scans under one plan; tables of a Space are made once and kept for the scans that follow.

    Args:
      plan: from `resolve`.
      mesh: devices; as `plan.config.parallel` says if not given.
    """

    def __init__(self, plan: Plan, mesh: Mesh | None = None):
        self.plan, self.mesh = plan, parallel.make_mesh(plan.config.parallel, jax.local_devices()) if mesh is None else mesh
        parts = self.mesh.shape["location"]
        self.alone = parallel.make_mesh(ParallelConfig(location=parts), self.mesh.local_devices[:parts])

    def placed(self, scan: Scan) -> tuple[AtlasOnSpace, Shared]:
        """The atlas on a scan's Space, and what the step shares there.

        Raises:
          ValueError: they do not overlap.
        """
        plan = self.plan
        learned = None if plan.group is None else plan.group.spatial
        taught = None if plan.group is None or learned is None else plan.group.digest
        key = (plan.atlas.digest, plan.model.digest, taught, plan.betas, space_key(scan.space))
        if key not in _TABLES:
            while len(_TABLES) >= KEPT_SPACES:  # native-space scans have one each
                _TABLES.pop(next(iter(_TABLES)))
            placed = place(plan.atlas, scan.space, learned)
            _TABLES[key] = placed, shared_of(plan, placed)
        placed, shared = _TABLES[key]
        # The same tables serve an atlas of the same parcels by another name.
        return dataclasses.replace(placed, atlas=plan.atlas), shared._replace(kappas=jnp.asarray(plan.kappas, jnp.float32))

    def ready(self, scan: Scan, adapter: Adapter | None = None) -> Ready:
        """A scan on its way to a wave."""
        placed, shared = self.placed(scan)
        return Ready(scan, placed, shared, subject_of(scan, placed, self.plan.config.seed, adapter))

    def put(self, wave: Sequence[Ready], size: int = 1) -> Callable[[], Outputs]:
        """Send scans that can share a wave (`Ready.shape`) to the devices; the function returned starts the step on them.

        Waves are padded to at least `size` rows, because waves of one size share a compiled step. A scan alone takes one device, or
        those that its locations are split over: more would do the same work.
        """
        mesh = self.mesh if max(len(wave), size) > 1 else self.alone
        given = put(wave[0].shared, [one.subject for one in wave], mesh, size)
        return lambda: compiled(self.plan.settings, mesh)(*given)

    def run(self, wave: Sequence[Ready], size: int = 1) -> list[Outputs]:
        """Run the step on scans as `put` arranges them, and return the results of each."""
        return land(self.put(wave, size)(), len(wave))


class Ready(NamedTuple):
    """A scan with the atlas on its Space and as the step reads it."""

    scan: Scan
    placed: AtlasOnSpace
    shared: Shared
    subject: Subject

    @property
    def shape(self) -> Hashable:
        """Scans of one shape can share a wave, and a compiled step."""
        return (space_key(self.scan.space), *(np.shape(leaf) for leaf in jax.tree.leaves(self.subject)))
