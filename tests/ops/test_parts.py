"""Parts of the locations: the same as on one device, gradients too, and nothing added where nothing is split."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from tolerance import rounding

from pnet_jax import parallel
from pnet_jax.bench import hlo
from pnet_jax.config import ParallelConfig
from pnet_jax.ops.parts import over_parts, segment_sum

ROWS = 24


def split_over(parts: int, function):
    """A step of two subjects on a mesh, with their locations as given, and how they lie."""
    mesh = parallel.make_mesh(ParallelConfig(subject=2, location=parts), jax.devices()[: 2 * parts])
    return parallel.over_subjects(function, mesh), lambda *arrays: parallel.place(arrays, mesh, "subject", "location")


def given() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, ROWS, 8)).astype(np.float32), rng.integers(0, 5, (2, ROWS)).astype(np.int32)


def summed(y, at):
    return segment_sum(y, at, 5)


def test_a_sum_by_label_costs_one_sum_over_the_parts():
    y, at = given()
    step, place = split_over(4, summed)
    placed = place(y, at)
    assert hlo.read(step.lower(*placed).compile()).collectives == {"all-reduce": 1}
    expected = np.stack([jax.ops.segment_sum(*one, 5) for one in zip(y, at, strict=True)])
    assert_allclose(step(*placed), expected, rtol=0, atol=rounding(ROWS, scale=np.abs(expected).max()))
    slope = jax.jit(jax.grad(lambda y: jnp.square(step(y, placed[1])).sum()))(placed[0])
    assert_allclose(slope, 2 * np.take_along_axis(expected, at[..., None], 1), rtol=1e-5, atol=1e-5)


def test_each_part_runs_on_its_device_along_rows_and_along_columns():
    y, at = given()

    def several(y, at):
        loop = over_parts(lambda y, scale: jax.lax.map(lambda row: scale * jnp.cumsum(row), y), (y,), (at[0].astype(y.dtype),))
        columns = over_parts(lambda y: jax.lax.map(jnp.square, y).sum(0), (y,), along=1)
        return loop, columns, over_parts(lambda y: y @ y.T, (y,), along=1, total=True)

    (step, place), (alone, _) = split_over(4, several), split_over(1, several)
    counts = hlo.read(step.lower(*place(y, at)).compile()).collectives
    assert counts["all-to-all"] == 1 and "all-gather" not in counts
    for a, b in zip(step(*place(y, at)), alone(y, at), strict=True):
        assert_allclose(a, b, rtol=0, atol=rounding(ROWS, scale=np.abs(b).max()))


@pytest.mark.parametrize("parts", [1, 3])
def test_what_is_not_split_is_called_as_it_is(parts):
    y, at = (x[:, :20] for x in given())  # 3 parts do not divide 20
    step, _ = split_over(parts, lambda y, at: (over_parts(lambda y: y[::-1], (y,)), summed(y, at)))
    assert_array_equal(step(y, at)[0], y[:, ::-1])
    assert hlo.read(step.lower(y, at).compile()).collectives == {}
    assert_array_equal(jax.jit(summed)(y[0], at[0]), step(y, at)[1][0])
