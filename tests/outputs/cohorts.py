"""Networks of several scans of one atlas, and Cohorts that are the same."""

from __future__ import annotations

import dataclasses

import numpy as np

from pnet_jax.cohort import Cohort
from pnet_jax.network import Network
from pnet_jax.space import grid_space
from tests.outputs.helpers import ABSENT, AFFINE, K, correlation, example_qc, make_network, phantom_mask


def make_networks(n: int = 5, **fields) -> list[Network]:
    """Scans with their own signals, of different lengths; the masks of odd ones lack some voxels, and parcel `ABSENT` is absent."""
    out = []
    for s in range(n):
        mask = phantom_mask()
        mask[:, :8] &= s % 2 == 0
        rng = np.random.default_rng(s)
        signals = rng.normal(size=(K, 40 - s)).astype(np.float32)
        signals[ABSENT] = np.nan
        edges = {"pearson": correlation(signals), "partial": -0.1 * correlation(signals)}
        given = {"signals": signals, "edges": edges, "frames": np.arange(40 - s), "displacement": None, "subject": f"{s // 2:02d}"}
        given |= {"entities": {"task": "rest", "ses": "ab"[s % 2], "space": "MNI152NLin6Asym"}, "halves": {}}
        given |= {"qc": dataclasses.replace(example_qc(), minutes=1.0 + s)}
        out.append(make_network(grid_space(mask, AFFINE, name="MNI152NLin6Asym"), **(given | fields)))
    return out


def assert_same(one: Cohort, other: Cohort, rtol: float = 0.0) -> None:
    """Every field is the same, to `rtol` where numbers went through text."""
    assert list(one.table) == list(other.table) and list(one.edges) == list(other.edges) and one.views == other.views
    for name, column in one.table.items():
        if column.dtype.kind == "f":
            np.testing.assert_allclose(column, other.table[name], rtol=rtol, err_msg=name)
        else:
            np.testing.assert_array_equal(column, other.table[name], err_msg=name)
    for name, matrices in one.edges.items():
        np.testing.assert_allclose(matrices, other.edges[name], rtol=rtol, atol=rtol, err_msg=name)
    for name in ("coverage", "signals", "frames", "labels", "confidence", "ids"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            assert mine.dtype == theirs.dtype, name
            np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=rtol, err_msg=name)
    assert (one.names, one.hemispheres, one.atlas) == (other.names, other.hemispheres, other.atlas)
    assert (one.space is None) == (other.space is None)
    if one.space is not None:
        for field in dataclasses.fields(one.space):
            if field.name not in ("grid", "resolution"):
                np.testing.assert_array_equal(getattr(one.space, field.name), getattr(other.space, field.name), err_msg=field.name)
        if one.space.grid is not None:
            np.testing.assert_array_equal(one.space.grid.ijk, other.space.grid.ijk)
            np.testing.assert_allclose(one.space.grid.affine, other.space.grid.affine, atol=1e-6)
