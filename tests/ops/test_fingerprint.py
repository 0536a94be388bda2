"""Properties first, then numpy, then equality of implementations, then compiled cost."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.ops.fingerprint import chunked, fingerprint

IMPLEMENTATIONS = ("reference", "chunked")
LARGEST = np.arctanh(0.99)


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(chunked, "BLOCK", 8)


def data(shape=(13, 4, 30), seed=0):
    """Locations and references that share something."""
    locations, references, frames = shape
    y, r, common = (jax.random.normal(key, s) for key, s in zip(jax.random.split(jax.random.key(seed), 3), [(locations, frames), (references, frames), (1, frames)], strict=True))
    return y + common, r + common


def test_unit_and_level_of_signals_do_not_matter(implementation):
    y, r = data()
    moved = fingerprint(5 * y - 40, 0.2 * r + 3, implementation=implementation)
    assert_allclose(moved, fingerprint(y, r, implementation=implementation), atol=2e-5)


def test_permuting_locations_permutes_the_result(implementation, small_blocks):
    y, r = data()
    order = np.random.default_rng(0).permutation(len(y))
    expected = fingerprint(y, r, implementation=implementation)[order]
    assert_allclose(fingerprint(y[order], r, implementation=implementation), expected, atol=1e-6)


def test_values_stay_within_the_clip(implementation):
    y, _ = data()
    f = fingerprint(y, jnp.concatenate([y[:3], -y[:3]]), implementation=implementation)
    assert_allclose([f[0, 0], f[0, 3]], [LARGEST, -LARGEST], rtol=1e-5)
    assert jnp.abs(f).max() <= LARGEST * (1 + 1e-6)


@pytest.mark.parametrize("spoil", [1e3, 1e8])
def test_scrubbed_frames_have_no_say(implementation, spoil):
    y, r = data()
    kept = jnp.ones(30, bool).at[4:9].set(False)
    left = fingerprint(jnp.delete(y, jnp.arange(4, 9), axis=1), jnp.delete(r, jnp.arange(4, 9), axis=1), implementation=implementation)
    spoiled = fingerprint(y.at[:, 4:9].set(spoil), r.at[:, 4:9].set(-spoil), kept=kept, implementation=implementation)
    assert_allclose(spoiled, left, atol=1e-5)


@pytest.mark.parametrize("level", [0.0, 0.1, 123.456])
def test_constant_locations_and_references_have_correlation_0_and_gradients_of_0(implementation, level):
    y, r = data()
    y, r = y.at[5].set(level), r.at[2].set(-level)
    f = fingerprint(y, r, implementation=implementation)
    assert_array_equal(f[5], 0)
    assert_array_equal(f[:, 2], 0)
    assert (f[np.arange(13) != 5][:, np.array([0, 1, 3])] != 0).all()
    gy, gr = jax.grad(lambda y, r: jnp.square(fingerprint(y, r, implementation=implementation)).sum(), (0, 1))(y, r)
    assert_array_equal(gy[5], 0)
    assert_array_equal(gr[2], 0)
    assert jnp.isfinite(gy).all()
    assert jnp.isfinite(gr).all()


def test_no_kept_frame_gives_0_and_finite_gradients(implementation):
    y, r = data()
    none = jnp.zeros(30, bool)
    value, gradient = jax.value_and_grad(lambda y: jnp.square(fingerprint(y, r, kept=none, implementation=implementation)).sum())(y)
    assert value == 0
    assert_array_equal(gradient, 0)


def test_equals_numpy(implementation, small_blocks):
    y, r = data((20, 5, 25))
    kept = np.arange(25) % 4 > 0
    both = np.corrcoef(np.float64(np.concatenate([y, r]))[:, kept])[:20, 20:]
    expected = np.arctanh(np.clip(both, -0.99, 0.99))
    assert_allclose(fingerprint(y, r, kept=jnp.asarray(kept), implementation=implementation), expected, atol=1e-5)


def test_mean_is_taken_off_before_the_projection(implementation, small_blocks):
    y, r = data()
    mean, projection = jax.random.normal(jax.random.key(3), (4,)), jax.random.normal(jax.random.key(4), (4, 2))
    expected = (np.float64(fingerprint(y, r)) - np.float64(mean)) @ np.float64(projection)
    assert_allclose(fingerprint(y, r, mean=mean, projection=projection, implementation=implementation), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 3), (8, 3, 12), (13, 4, 30), (33, 1, 20)])
@pytest.mark.parametrize("dimensions", [None, 1, 3])
def test_implementations_agree_in_values_and_gradients(shape, dimensions, small_blocks):
    y, r = data(shape)
    projection = None if dimensions is None else jax.random.normal(jax.random.key(5), (shape[1], dimensions))
    mean, kept = 0.1 * jnp.arange(shape[1], dtype=jnp.float32), jnp.arange(shape[2]) != 5
    weights = jax.random.normal(jax.random.key(6), (shape[0], dimensions or shape[1]))

    def loss(y, r, mean, implementation):
        f = fingerprint(y, r, kept=kept, mean=mean, projection=projection, implementation=implementation)
        return (weights * f).sum(), f

    (ga, fa), (gb, fb) = (jax.grad(loss, (0, 1, 2), has_aux=True)(y, r, mean, i) for i in IMPLEMENTATIONS)
    assert fa.shape == weights.shape
    assert_allclose(fb, fa, atol=2e-6)
    for a, b in zip(ga, gb, strict=True):
        assert_allclose(b, a, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("block", [1, 5, 13, 64])
def test_block_size_changes_nothing(monkeypatch, block):
    y, r = data()
    whole = fingerprint(y, r, projection=jnp.eye(4)[:, :2])
    monkeypatch.setattr(chunked, "BLOCK", block)
    assert_allclose(fingerprint(y, r, projection=jnp.eye(4)[:, :2]), whole, atol=1e-6)


def test_gradients_equal_finite_differences(implementation):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        y, r, projection = (jnp.asarray(rng.normal(size=s)) for s in [(4, 9), (3, 9), (3, 2)])
        kept = jnp.arange(9) != 4
        face = lambda y, r, p: fingerprint(y, r, kept=kept, projection=p, implementation=implementation)  # noqa: E731
        check_grads(face, (y, r, projection), order=1, modes=["rev"], eps=1e-5)


def test_temporary_memory_never_holds_all_fingerprints():
    references, dimensions, frames = 256, 8, 16

    def temporary(locations):
        arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in [(locations, frames), (references, frames), (references, dimensions)]]
        loss = lambda y, r, p: jnp.square(fingerprint(y, r, projection=p)).sum()  # noqa: E731
        return [jax.jit(f).lower(*arrays).compile().memory_analysis().temp_size_in_bytes for f in (loss, jax.grad(loss, (0, 1, 2)))]

    for few, many in zip(temporary(2 * chunked.BLOCK), temporary(8 * chunked.BLOCK), strict=True):
        assert many - few < 0.25 * 6 * chunked.BLOCK * references * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": (13, 29)}, r"\[R, T\] with one T, got \(13, 29\) and \(4, 30\)"),
        ({"y": (30,)}, r"y must be \[V, T\]"),
        ({"kept": (13,)}, r"kept must have shape \(30,\), got \(13,\)"),
        ({"mean": (5,)}, r"mean must have shape \(4,\), got \(5,\)"),
        ({"projection": (5, 2)}, r"projection must have shape \(4, D\), got \(5, 2\)"),
        ({"projection": (4,)}, r"projection must have shape \(4, D\), got \(4,\)"),
    ],
)
def test_shapes_that_do_not_agree_are_refused(arguments, message):
    given = {name: jnp.ones(shape) for name, shape in ({"y": (13, 30), "references": (4, 30)} | arguments).items()}
    with pytest.raises(ValueError, match=message):
        fingerprint(**given)


def test_an_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match=r"one of \['chunked', 'reference'\], got 'pallas'"):
        fingerprint(*data(), implementation="pallas")
