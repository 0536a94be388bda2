"""A small Network in memory: an asymmetric mask, K = 12 parcels whose ids have gaps, one of them absent."""

from __future__ import annotations

import dataclasses

import numpy as np

from pnet_jax.network import QC, Bin, Calibration, MapScores, Network, Selection, Trial
from pnet_jax.space import Grid, Space, grid_space, point_space

K, T, TR, ABSENT = 12, 40, 2.0, 7
SHAPE = (20, 24, 20)
AFFINE = np.array([[8.0, 0, 0, -76], [0, 8, 0, -108], [0, 0, 8, -64], [0, 0, 0, 1]])
IDS = np.array([2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377], np.int32)
DROPPED = (9, 10, 30)  # frames that were scrubbed


def phantom_mask() -> np.ndarray:
    """An ellipsoid with one corner cut away: no symmetry left."""
    ijk = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    mask = (((ijk - np.array([9.5, 12, 9])) / np.array([8, 10, 7.5])) ** 2).sum(-1) < 1
    mask[12:, 16:, 10:] = False
    return mask


def flip_x(mask: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same brain stored from right to left (LAS instead of RAS)."""
    turn = np.diag([-1.0, 1, 1, 1])
    turn[0, 3] = mask.shape[0] - 1
    return mask[::-1], affine @ turn


def make_network(space: Space | None = None, **fields) -> Network:
    """K parcels around random centres on a Space; 15 % of the locations left their atlas parcel, parcel `ABSENT` lost all."""
    space = space or grid_space(phantom_mask(), AFFINE, name="MNI152NLin6Asym")
    rng = np.random.default_rng(0)
    centres = np.array([[(-1) ** k * (15 + 3 * k), 15 * k - 90, 12 * (k % 5) - 25] for k in range(K)], float)
    distance = ((space.xyz[:, None].astype(float) - centres) ** 2).sum(-1)
    candidates = np.argsort(distance, 1)[:, :5].astype(np.int32)
    weight = np.exp(-np.take_along_axis(distance, candidates, 1) / 2000 + rng.normal(0, 0.3, candidates.shape))
    weight[candidates == ABSENT] = 0
    outside = np.sqrt(distance.min(1)) > 70
    candidates[outside], weight[outside] = -1, 0
    candidates[::3, 4], weight[::3, 4] = -1, 0
    total = weight.sum(1, keepdims=True)
    probabilities = (weight / np.where(total > 0, total, 1)).astype(np.float32)
    labels = np.where(outside, -1, candidates[np.arange(len(space)), probabilities.argmax(1)]).astype(np.int32)
    signals = rng.normal(size=(K, T)).astype(np.float32)
    signals[np.bincount(labels[~outside], minlength=K) == 0] = np.nan
    coverage = np.linspace(0.2, 1, K).astype(np.float32)
    frames = np.setdiff1d(np.arange(T + len(DROPPED)), DROPPED)
    given = {
        "labels": labels,
        "candidates": candidates,
        "probabilities": probabilities,
        "signals": signals,
        "edges": {"pearson": correlation(signals), "partial": -0.1 * correlation(signals)},
        "ids": IDS,
        "names": tuple(f"area {k}" for k in range(K)),
        "hemispheres": tuple("LR"[k % 2] for k in range(K)),
        "atlas_labels": np.where(outside, -1, distance.argmin(1)).astype(np.int32),
        "coverage": coverage,
        "frames": frames,
        "tr": TR,
        "subject": "01",
        "entities": {"run": "1", "task": "rest", "ses": "a", "desc": "preproc", "space": "MNI152NLin6Asym", "res": "8"},
        "qc": example_qc(),
        "provenance": {
            "pnet_jax": "0.1.0",
            "seed": 3,
            "atlas": {"digest": "00ff", "source": "Schaefer12_res-8_dseg.nii.gz"},
            "config": {"cleaning": {"low_pass": 0.1}},
        },
        "mean": rng.uniform(500, 900, len(space)).astype(np.float32),
        "displacement": rng.gamma(1.5, 0.07, T + len(DROPPED)),
        "halves": {"pearson": np.stack([correlation(signals[:, : T // 2]), correlation(signals[:, T // 2 :])])},
    }
    return Network(space=space, **(given | fields))


def correlation(signals: np.ndarray) -> np.ndarray:
    """Pearson with NaN rows where a signal is NaN."""
    return np.corrcoef(signals).astype(np.float32)


def example_qc() -> QC:
    trials = [Trial(k, 0.2, 1 + 0.1 * k - 0.008 * k * k, 2.0) for k in (2.0, 5.0, 10.0)]
    trials += [Trial(6.3, beta, 1.3 + beta / 10, 1.5) for beta in (0.1, 0.2, 0.4)]
    return QC(
        selection=Selection(
            decision="personalised",
            reason="across halves the personalised parcels gain +0.120 nats per location and +0.0201 in DCBC",
            kappa=6.3,
            beta=0.4,
            temperature=1.5,
            score=1.34,
            data_free_score=1.22,
            trials=tuple(trials),
            personalised=MapScores(0.061, 0.41),
            data_free=MapScores(0.042, 0.4),
            atlas=MapScores(0.041, 0.39),
            gain=(0.08, 0.12, 0.16),
            dcbc_gain=(0.0125, 0.0201, 0.0277),
            agreement=0.61,
            degrees=(21.0, 20.5),
        ),
        calibration=Calibration(
            exponents=(0.13, 0.33, 0.4),
            expected_error=0.014,
            expected_agreement=0.71,
            confident_moves=0.12,
            doubtful_moves=0.034,
            curve=(Bin(120, 0.35, 0.33), Bin(600, 0.55, 0.52), Bin(900, 0.85, 0.87)),
        ),
        absent=(f"area {ABSENT}",),
        restored=("area 3",),
        low_coverage=("area 0", "area 1"),
        moved=0.15,
        warnings=("only 1.3 minutes were kept <b>", f"1 of {K} parcels has no location"),
        n_eff=14.5,
        mean_displacement=0.11,
        components={"area 5": 2},
        sizes=(3,) * K,
        seconds={"step": 0.2},
    )


def points_network() -> Network:
    """A scan of 30 ROIs, with the least a result can come with."""
    rng = np.random.default_rng(1)
    names = [f"roi-{v}" for v in range(30)]
    space = point_space(rng.uniform((-60, -90, -40), (60, 60, 60), (30, 3)), names=names)
    return make_network(
        space, edges={}, halves={}, qc=QC(), provenance={}, mean=None, displacement=None, entities={}, names=tuple("ABCDEFGHIJKL")
    )


def cifti_network() -> Network:
    """A scan of two small surfaces and a few voxels of the thalamus."""
    from nibabel.cifti2 import BrainModelAxis

    rng = np.random.default_rng(2)
    voxels = np.argwhere(np.ones((2, 2, 2), bool)) + 9
    models = BrainModelAxis.from_surface(np.arange(0, 400, 2), 400, "CORTEX_LEFT")
    models += BrainModelAxis.from_surface(np.arange(200), 400, "CORTEX_RIGHT")
    thalamus = np.zeros(SHAPE, bool)
    thalamus[tuple(voxels.T)] = True
    models += BrainModelAxis.from_mask(thalamus, "THALAMUS_LEFT", AFFINE)
    side = np.r_[np.zeros(200), np.ones(200), np.zeros(8)].astype(np.int8)
    xyz = rng.uniform((5, -100, -50), (65, 60, 70), (408, 3)).astype(np.float32)
    xyz[side == 0, 0] *= -1
    ijk = np.r_[np.full((400, 3), -1), voxels].astype(np.int32)
    space = Space(
        xyz=xyz,
        hemisphere=side,
        structure=np.r_[np.zeros(200), np.ones(200), np.full(8, 2)].astype(np.int16),
        structures=("CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT", "CIFTI_STRUCTURE_THALAMUS_LEFT"),
        neighbours=np.full((408, 0), -1, np.int32),
        kind="cifti",
        name="fsLR",
        resolution=2.0,
        grid=Grid(ijk, SHAPE, AFFINE, brain_models=models),
    )
    return make_network(space, entities={"task": "rest", "space": "fsLR", "den": "91k"})


def native_network() -> Network:
    """A scan on an oblique grid of its own, without any extra."""
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    network = make_network(displacement=None, entities={"task": "rest", "space": "T1w"})
    grid = dataclasses.replace(network.space.grid, affine=turn @ AFFINE)
    return dataclasses.replace(network, space=dataclasses.replace(network.space, name="T1w", grid=grid))


def vertex_network() -> Network:
    """A scan of two small spheres with a medial wall, as GIFTI recordings give it."""
    from pnet_jax.ingest.cifti import cifti_space
    from pnet_jax.ingest.gifti import brain_models
    from pnet_jax.ingest.surfaces import CORTICES, Surface
    from tests.ingest.meshes import hemispheres

    meshes = {CORTICES[side]: Surface(*mesh, side) for side, mesh in hemispheres(level=2, radius=40.0).items()}
    models = brain_models({"L": np.arange(3, 162), "R": np.r_[0:50, 60:162]}, {"L": 162, "R": 162})
    space = cifti_space(models, meshes, "fsaverage4", "toy")
    return make_network(space, entities={"task": "rest", "space": "fsaverage4"}, mean=None)
