"""Pre-training of the linear encoder from many scans."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import pnet_jax
from pnet_jax.config import PretrainConfig
from pnet_jax.encoder.linear import LinearEncoder, Statistics, add, halves_statistics, project, solve
from pnet_jax.encoder.model import Model
from pnet_jax.encoder.tokens import nearest_reference
from pnet_jax.ingest.naming import dataset_folder
from pnet_jax.ops.potts.chunked import match_table
from pnet_jax.parcellation.atlas import Atlas, make_atlas, on_space
from pnet_jax.parcellation.harden import harden
from pnet_jax.parcellation.mixture import Problem, group_prototypes, mixture, normalise
from pnet_jax.scan import Scan, split
from pnet_jax.space import LEFT, RIGHT, Space, take

GROUP_KAPPA, GROUP_BETA, GROUP_ROUNDS = 15.0, 0.4, 10

_harden = jax.jit(harden, static_argnames="n_parcels")
_mixture = jax.jit(mixture)


def pretrain(scans: Callable[[], Iterable[Scan]] | Sequence[Scan], config: PretrainConfig | None = None) -> Model:
    """Fit a linear model to scans: reference points, projection, and the requested atlases.

    Scans are read one at a time, and only two R × R statistics are kept. Learning an atlas takes a second pass, which keeps one mean
    embedding per location.

    Args:
      scans: A sequence of scans, or a function that starts a new pass over them.
      config: Settings; see `PretrainConfig`.

    Raises:
      ValueError: If there are no scans, the encoder is unknown, or atlases are learned from scans on different Spaces.
    """
    config = config or PretrainConfig()
    if config.encoder != "linear":
        raise ValueError(f"encoder must be 'linear', got {config.encoder!r}")
    one_pass: Callable[[], Iterable[Scan]] = scans if callable(scans) else lambda: scans
    references = None if config.reference_space == "scans" else reference_points(_grey_matter(), config.references, config.seed)
    total: Statistics | None = None
    seen: list[dict[str, Any]] = []
    for scan in one_pass():
        if references is None:
            references = reference_points(scan.space, config.references, config.seed)
        statistics = scan_statistics(scan, references)
        total = statistics if total is None else add(total, statistics)
        seen.append(
            {
                "subject": scan.subject,
                "folder": dataset_folder(scan.source, scan.subject),
                "space": scan.space.name,
                "minutes": round(scan.duration / 60, 2),
            }
        )
    if total is None or references is None:
        raise ValueError("pre-training needs at least one scan, got none")
    encoder = solve(total, references, config.dimensions)
    atlases = _atlases(one_pass, encoder, config)
    return Model(config.name, encoder, atlases, _card(config, encoder, seen))


def scan_statistics(scan: Scan, references: Float[np.ndarray, "R 3"]) -> Statistics:
    """Compute the `Statistics` of the two halves of a scan."""
    halves = np.zeros((2, scan.y.shape[1]), bool)
    for half, columns in zip(halves, split(scan), strict=True):
        half[columns] = True
    region = nearest_reference(scan.space.xyz, references)
    return Statistics(*(np.asarray(x) for x in halves_statistics(scan.y, region, halves, scan.valid, references)))


def reference_points(space: Space, count: int, seed: int = 0) -> Float[np.ndarray, "R 3"]:
    """Spread R points over a space by k-means on coordinates in mm, mirrored between hemispheres if the space has both, `[R, 3]`.

    Raises:
      ValueError: If the number of points is odd for two hemispheres, or exceeds the number of locations.
    """
    from pnet_jax.simulate.space import kmeans

    def spread(xyz, number):
        labels = kmeans(xyz, number, np.random.default_rng(seed))
        return np.stack([xyz[labels == k].mean(0) for k in range(number)])

    right = space.xyz[space.hemisphere == RIGHT]
    if not len(right) or len(right) == len(space):
        return spread(space.xyz, count).astype(np.float32)
    if count % 2:
        raise ValueError(f"references must be even (half in each hemisphere), got {count}")
    half = spread(right, count // 2)
    return np.concatenate([half * [-1, 1, 1], half]).astype(np.float32)


def geometric_atlas(parcels: int, seed: int = 0) -> Atlas:
    """Build K compact parcels of MNI152 grey matter (nilearn's mask, 4 mm) by k-means on mm within each hemisphere."""
    from pnet_jax.simulate.space import group_parcels

    space = _grey_matter()
    labels = group_parcels(space, parcels, np.random.default_rng(seed))
    half = parcels // 2
    names = [f"{'LH' if k < half else 'RH'}_{k % half + 1:03d}" for k in range(parcels)]
    source = f"geometric, k-means on mm, K = {parcels}, seed {seed}"
    return make_atlas(
        space.xyz, labels + 1, resolution=space.resolution, names=names, hemisphere=space.hemisphere, source=source, space=space.name
    )


def learn_atlas(one_pass: Callable[[], Iterable[Scan]], encoder: LinearEncoder, parcels: int, seed: int = 0) -> Atlas:
    """Learn K parcels from the cohort's mean embedding, for scans that share a Space.

    Compact parcels from k-means on mm are refined by the mixture, whose result becomes the next atlas, for ten iterations. Only the
    correspondence of names remains from the initial map.

    Raises:
      ValueError: If scans are on different Spaces.
    """
    mean, space = _mean_embedding(one_pass, encoder)
    covered = np.flatnonzero(np.square(mean).sum(1) > 0)
    space, z = take(space, covered), jnp.asarray(mean[covered])
    labels = _compact_parcels(space, parcels, seed)
    neighbours = jnp.asarray(space.neighbours)
    for _ in range(GROUP_ROUNDS):
        atlas = make_atlas(space.xyz, labels + 1, resolution=space.resolution, hemisphere=space.hemisphere)
        if atlas.n_parcels < parcels:
            break
        local = on_space(atlas, space)
        candidates, before = jnp.asarray(local.candidates), jnp.asarray(labels)
        table = match_table(candidates, neighbours, n_parcels=parcels)
        problem = Problem(z, candidates, jnp.asarray(local.log_prior), table, group_prototypes(z, before, parcels))
        q = _mixture(problem, jnp.float32(GROUP_KAPPA), jnp.float32(GROUP_BETA)).q
        labels = np.asarray(_harden(q, candidates, table, neighbours, before, n_parcels=parcels).labels)
    source = f"learned from the scans of the checkpoint, K = {parcels}, seed {seed}"
    return make_atlas(space.xyz, labels + 1, resolution=space.resolution, hemisphere=space.hemisphere, source=source, space=space.name)


def _mean_embedding(one_pass, encoder):
    total, space = None, None
    for scan in one_pass():
        if space is not None and (len(space) != len(scan.space) or not np.allclose(space.xyz, scan.space.xyz, atol=0.01)):
            raise ValueError(
                f"{scan.label}: a learned atlas requires scans on one Space: expected {len(space)} locations as in the first scan, "
                f"found {len(scan.space)} or other coordinates"
            )
        space = scan.space
        region, kept = nearest_reference(space.xyz, encoder.references), np.ones(scan.y.shape[1], bool)
        # Mapped back to fingerprints, whose mean is dominated by strong directions shared by the participants.
        z = np.asarray(normalise(project(encoder, scan.y, region, kept, scan.valid) @ encoder.decoder))
        total = z.astype(np.float64) if total is None else total + z
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(length > 0, total / np.where(length > 0, length, 1), 0).astype(np.float32), space


def _compact_parcels(space, parcels, seed):
    from pnet_jax.simulate.space import kmeans

    labels = np.empty(len(space), np.int32)
    sides = [np.flatnonzero(space.hemisphere == side) for side in (LEFT, RIGHT)]
    share = round(parcels * len(sides[0]) / len(space))
    start = 0
    for here, count in zip(sides, (share, parcels - share), strict=True):
        if count:
            labels[here] = kmeans(space.xyz[here], count, np.random.default_rng(seed)) + start
            start += count
    return labels


def _atlases(one_pass, encoder, config) -> dict[int, Atlas]:
    atlases = {k: geometric_atlas(k, config.seed) for k in config.parcels} if config.reference_space == "mni" else {}
    atlases |= {k: learn_atlas(one_pass, encoder, k, config.seed) for k in config.learn_atlas}
    if config.atlas is not None:
        from pnet_jax.ingest import load_atlas

        given = load_atlas(config.atlas)
        atlases[given.n_parcels] = given
    return atlases


def _grey_matter() -> Space:
    from pnet_jax.simulate.space import grey_matter_space

    return grey_matter_space(4)


def _card(config: PretrainConfig, encoder: LinearEncoder, seen: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "what": "linear encoder: reliable directions of connectivity fingerprints, in closed form",
        "made_with": f"pnet_jax {pnet_jax.__version__}",
        "made_on": datetime.date.today().isoformat(),
        "config": dataclasses.asdict(config),
        "scans": len(seen),
        "subjects": len({(row["folder"], row["subject"]) for row in seen}),
        "participants": [{"dataset": config.dataset, "store": "", "subjects": sorted({row["subject"] for row in seen})}],
        "minutes": round(sum(row["minutes"] for row in seen), 1),
        "spaces": sorted({row["space"] for row in seen}),
        "reliability": [round(float(x), 3) for x in encoder.reliability[:8]],
    }
