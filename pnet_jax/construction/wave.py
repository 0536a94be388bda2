"""The host loop around the step: batches scans of one shape, sends them to the devices, and returns the results as NumPy arrays."""

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
# Which axes of (shared, wave) are sharded over locations: the first rule that matches an array's path (`parallel.layout`).
LAYOUT: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"^0/(region|prior/(candidates|log_prior|neighbours|labels|cube|xyz|blocks/(lists|place|inverse)))$", ("location",)),
    (r"^0/(free|prior/table)$", (None, "location")),
    (r"^1/(y|valid|log_tsnr)$", ("subject", "location")),
    (r"^1/halves$", ("subject", None, "location")),
    (r"^1/", ("subject",)),
)
_TABLES: dict[Hashable, tuple[AtlasOnSpace, Shared]] = {}  # tables of the most recently used Spaces, shared by all calls in this process


def shared_of(plan: Plan, placed: AtlasOnSpace) -> Shared:
    """Compute the tables shared by all scans on a Space under a plan, on the device."""
    prior = placed.prior
    region = np.where(prior.labels >= 0, nearest_reference(np.asarray(prior.xyz), np.asarray(plan.model.encoder.references)), -1)
    kappas, betas = jnp.asarray(plan.kappas, jnp.float32), jnp.asarray(plan.betas, jnp.float32)
    free = _free(prior, betas, plan.settings.n_parcels)
    return Shared(plan.model.encoder, prior, jnp.asarray(region.astype(np.int32)), free, kappas, betas)


@functools.partial(jax.jit, static_argnames="n_parcels")
def _free(prior: SpatialPrior, betas: Float[Array, " m"], n_parcels: int) -> Float[Array, "b W C"]:
    z, prototypes = jnp.zeros((len(prior.candidates), 1)), jnp.zeros((n_parcels, 1))
    problem = Problem(z, prior.candidates, prior.log_prior, prior.table, prototypes, prior.blocks)
    # β = 0 is the spatial prior itself, whose labels are those of the atlas.
    return data_free(problem, jnp.pad(betas, (1, 0)))


def subject_of(scan: Scan, placed: AtlasOnSpace, seed: int, adapter: Adapter | None = None) -> Subject:
    """Convert a scan to the input of the step: locations in the order of the atlas, recorded frames padded to a bucket."""
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
    """Return the padded number of frames; it depends on the recorded frames, so scrubbing never triggers a recompilation."""
    return -(-frames // multiple) * multiple


def _padded(frames: Int[np.ndarray, " t"], size: int) -> Int[np.ndarray, " size"]:
    """Return positions relative to the first frame, 0 in padding."""
    return np.pad(frames - frames[:1], (0, size - len(frames))).astype(np.int32)


def _blocks(frames: Int[np.ndarray, " t"], tr: float, size: int) -> Int[np.ndarray, " size"]:
    """Assign each frame to a 20 s block by its time in the recording; blocks of a few frames are merged into the previous one."""
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
    """Derive a seed from the identity of the scan, so that it does not depend on what is processed with it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{scan.label}".encode()).digest()[:4], "big")


def stacked(subjects: Sequence[Subject], mesh: Mesh) -> Subject:
    """Stack a wave on its devices: all arrays gain a leading scan axis, and each device receives its locations (`LAYOUT`).

    Scans are transferred one by one and stacked on arrival: stacking on the host copies all signals again, which takes longer than a GPU
    needs to compute the wave, and one large array transfers more slowly than its parts.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((len(subjects), *np.shape(leaf)), leaf.dtype), subjects[0])
    _, layout = parallel.layout((None, shapes), LAYOUT, mesh)
    return jax.tree.map(lambda to, *parts: parallel.stack(parts, to), layout, *subjects)


def put(shared: Shared, subjects: Sequence[Subject], mesh: Mesh, size: int = 1) -> tuple[Shared, Subject]:
    """Send scans of one shape to the devices; the returned arrays may still be in transfer.

    Args:
      shared: Model and atlas on their Space.
      subjects: The scans.
      mesh: Device mesh.
      size: Least number of rows of the wave; missing rows repeat the last scan.
    """
    size = parallel.padded(max(len(subjects), size), mesh.shape["subject"])
    return on_mesh(shared, mesh), stacked([*subjects, *[subjects[-1]] * (size - len(subjects))], mesh)


def land(outputs: Outputs, count: int) -> list[Outputs]:
    """Wait for a wave and return the results of its first `count` scans as NumPy arrays."""
    found = jax.device_get(outputs)
    return [jax.tree.map(lambda leaf, at=at: leaf[at], found) for at in range(count)]


def on_mesh(shared: Shared, mesh: Mesh) -> Shared:
    """Shard the tables over locations, or return them unchanged if the mesh does not split locations.

    If the number of devices does not divide W, a multiple of 4096, every device holds all locations.
    """
    if mesh.shape["location"] == 1:
        return shared
    layout, _ = parallel.layout((shared, None), LAYOUT, mesh)
    return jax.device_put(shared, layout)


@functools.lru_cache(maxsize=32)
def compiled(settings: Settings, mesh: Mesh) -> Callable[..., Outputs]:
    """Return the step of a wave on a mesh, compiled once per shape."""
    return parallel.over_subjects(functools.partial(step, settings=settings), mesh, shared=1)


class Builder:
    """Builder of networks under one plan; the tables of a Space are computed once and reused for later scans.

    Args:
      plan: Plan from `resolve`.
      mesh: Device mesh; defaults to the one described by `plan.config.parallel`.
    """

    def __init__(self, plan: Plan, mesh: Mesh | None = None):
        self.plan, self.mesh = plan, parallel.make_mesh(plan.config.parallel, jax.local_devices()) if mesh is None else mesh
        parts = self.mesh.shape["location"]
        self.alone = parallel.make_mesh(ParallelConfig(location=parts), self.mesh.local_devices[:parts])

    def placed(self, scan: Scan) -> tuple[AtlasOnSpace, Shared]:
        """Return the atlas on a scan's Space, and the arrays shared there.

        Raises:
          ValueError: If scan and atlas do not overlap.
        """
        plan = self.plan
        learned = None if plan.group is None else plan.group.spatial
        taught = None if plan.group is None or learned is None else plan.group.digest
        key = (plan.atlas.digest, plan.model.digest, taught, plan.betas, space_key(scan.space))
        if key not in _TABLES:
            while len(_TABLES) >= KEPT_SPACES:  # each native-space scan has its own Space
                _TABLES.pop(next(iter(_TABLES)))
            placed = place(plan.atlas, scan.space, learned)
            _TABLES[key] = placed, shared_of(plan, placed)
        placed, shared = _TABLES[key]
        # An atlas with the same parcels but another name uses the same tables.
        return dataclasses.replace(placed, atlas=plan.atlas), shared._replace(kappas=jnp.asarray(plan.kappas, jnp.float32))

    def ready(self, scan: Scan, adapter: Adapter | None = None) -> Ready:
        """Prepare a scan for a wave."""
        placed, shared = self.placed(scan)
        return Ready(scan, placed, shared, subject_of(scan, placed, self.plan.config.seed, adapter))

    def put(self, wave: Sequence[Ready], size: int = 1) -> Callable[[], Outputs]:
        """Send scans of one shape (`Ready.shape`) to the devices; the returned function starts the step on them.

        Waves are padded to at least `size` rows, because waves of one size share a compiled step. A single scan uses one device, or the
        devices that its locations are split over; more devices would repeat the same work.
        """
        mesh = self.mesh if max(len(wave), size) > 1 else self.alone
        given = put(wave[0].shared, [one.subject for one in wave], mesh, size)
        return lambda: compiled(self.plan.settings, mesh)(*given)

    def run(self, wave: Sequence[Ready], size: int = 1) -> list[Outputs]:
        """Run the step on scans arranged by `put`, and return the results of each scan."""
        return land(self.put(wave, size)(), len(wave))


class Ready(NamedTuple):
    """A scan as input of the step, with the atlas on its Space."""

    scan: Scan
    placed: AtlasOnSpace
    shared: Shared
    subject: Subject

    @property
    def shape(self) -> Hashable:
        """Key of the scans that can share a wave and a compiled step."""
        return (space_key(self.scan.space), *(np.shape(leaf) for leaf in jax.tree.leaves(self.subject)))
