"""Properties first, then numpy, then equality of implementations, then compiled cost."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal
from tolerance import rounding

from pnet_jax.ops.fingerprint import chunked, fingerprint

IMPLEMENTATIONS = ("reference", "chunked")
LARGEST = np.arctanh(0.99)
BLOCK = chunked.BLOCK


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """13 locations are one full block and a part of one."""
    monkeypatch.setattr(chunked, "BLOCK", 8)


@functools.cache
def compiled(implementation):
    return jax.jit(functools.partial(fingerprint, implementation=implementation))


def run(y, references, implementation="chunked", **options):
    return np.asarray(compiled(implementation)(y, references, **options))


def tolerance(y, r):
    """r is a sum over frames, and Fisher's transform enlarges its rounding by cosh(z)²."""
    return rounding(y.shape[1], condition=np.square(np.cosh(np.abs(run(y, r)).max())))


def data(shape=(13, 4, 30), seed=0):
    """Locations and references that share something."""
    locations, references, frames = shape
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(1, frames))
    return tuple((rng.normal(size=(n, frames)) + common).astype(np.float32) for n in (locations, references))


def test_unit_and_level_of_signals_do_not_matter(implementation):
    y, r = data()
    assert_allclose(run(5 * y - 40, 0.2 * r + 3, implementation), run(y, r, implementation), atol=5e-5)


def test_permuting_locations_permutes_the_result(implementation):
    y, r = data()
    order = np.random.default_rng(0).permutation(len(y))
    assert_allclose(run(y[order], r, implementation), run(y, r, implementation)[order], rtol=0, atol=tolerance(y, r))


def test_values_stay_within_the_clip(implementation):
    y, _ = data()
    f = run(y, np.concatenate([y[:2], -y[:2]]), implementation)
    assert_allclose([f[0, 0], f[1, 3]], [LARGEST, -LARGEST], rtol=1e-5)
    assert np.abs(f).max() <= LARGEST * (1 + 1e-6)


@pytest.mark.parametrize("spoil", [1e3, 1e8])
def test_scrubbed_frames_have_no_say(implementation, spoil):
    y, r = data()
    kept = np.ones(30, bool)
    kept[4:9] = False
    plain = run(y, r, implementation, kept=kept)
    y[:, 4:9], r[:, 4:9] = spoil, -spoil
    assert (plain != 0).all()
    assert_allclose(run(y, r, implementation, kept=kept), plain, atol=1e-5)


@pytest.mark.parametrize("level", [0.0, 0.1, 123.456])
def test_constant_locations_and_references_have_correlation_0_and_gradients_of_0(implementation, level):
    y, r = data()
    y[5], r[2] = level, -level
    (_, f), (gy, gr) = _squared(implementation)(y, r, None)
    assert_array_equal(f[5], 0)
    assert_array_equal(f[:, 2], 0)
    assert (np.delete(np.delete(f, 5, 0), 2, 1) != 0).all()
    assert_array_equal(gy[5], 0)
    assert_array_equal(gr[2], 0)
    assert np.isfinite(gy).all()
    assert np.isfinite(gr).all()


@pytest.mark.parametrize("frames", [150, 1000, 4000])
def test_a_constant_is_recognised_however_long_it_is(implementation, frames):
    """The rounding of its mean grows with the number of frames."""
    y = np.full((4, frames), [[0.1], [0.7], [123.456], [1000 / 3]], np.float32)
    r = np.random.default_rng(0).normal(size=(2, frames)).astype(np.float32)
    assert_array_equal(run(y, r, implementation), 0)


def test_no_kept_frame_gives_0_and_finite_gradients(implementation):
    y, r = data()
    (_, f), (gy, gr) = _squared(implementation)(y, r, np.zeros(30, bool))
    for nothing in (f, gy, gr):
        assert_array_equal(nothing, 0)


@functools.cache
def _squared(implementation):
    def loss(y, r, kept):
        f = fingerprint(y, r, kept=kept, implementation=implementation)
        return jnp.square(f).sum(), f

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


def test_equals_numpy(implementation):
    y, r = data((20, 5, 25))
    kept = np.arange(25) % 4 > 0
    both = np.corrcoef(np.float64(np.concatenate([y, r]))[:, kept])[:20, 20:]
    assert_allclose(run(y, r, implementation, kept=kept), np.arctanh(np.clip(both, -0.99, 0.99)), atol=1e-5)


def test_mean_is_taken_off_before_the_projection(implementation):
    y, r = data()
    mean, projection = data((1, 2, 4), 1)
    expected = (np.float64(run(y, r)) - mean[0]) @ np.float64(projection.T)
    assert_allclose(run(y, r, implementation, mean=mean[0], projection=projection.T), expected, atol=1e-5)


@pytest.mark.parametrize(("shape", "dimensions"), [((1, 1, 3), None), ((8, 3, 12), 2), ((33, 1, 20), 3)])
def test_implementations_agree_in_values_and_gradients(shape, dimensions):
    y, r = data(shape)
    projection = None if dimensions is None else data((1, shape[1], dimensions), 1)[1]
    mean, kept = 0.1 * np.arange(shape[1], dtype=np.float32), np.arange(shape[2]) != 5
    weights = data((shape[0], 1, dimensions or shape[1]), 2)[0]

    @functools.partial(jax.jit, static_argnums=3)
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def step(y, r, mean, implementation):
        f = fingerprint(y, r, kept=kept, mean=mean, projection=projection, implementation=implementation)
        return (weights * f).sum(), f

    (_, fa), ga = step(y, r, mean, "reference")
    (_, fb), gb = step(y, r, mean, "chunked")
    assert fa.shape == weights.shape
    assert_allclose(fb, fa, rtol=0, atol=rounding(sum(shape[1:]), condition=50))  # Fisher's slope at .99, where r is clipped
    for a, b in zip(ga, gb, strict=True):
        assert_allclose(b, a, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("block", [1, 13, 64])
def test_block_size_changes_nothing(monkeypatch, block):
    y, r = data()
    monkeypatch.setattr(chunked, "BLOCK", block)
    assert_allclose(jax.jit(lambda y, r: fingerprint(y, r))(y, r), run(y, r, "reference"), rtol=0, atol=tolerance(y, r))


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        y, r, projection = (rng.normal(size=s) for s in [(9, 7), (3, 7), (3, 2)])
        face = jax.jit(lambda y, r, p: fingerprint(y, r, kept=np.arange(7) != 4, projection=p))
        check_grads(face, (y, r, projection), order=1, modes=["rev"], eps=1e-5)


def test_temporary_memory_never_holds_all_fingerprints(monkeypatch):
    monkeypatch.setattr(chunked, "BLOCK", BLOCK)
    references, dimensions, frames = 256, 8, 16

    def temporary(locations):
        arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in [(locations, frames), (references, frames), (references, dimensions)]]
        loss = jax.value_and_grad(lambda y, r, p: jnp.square(fingerprint(y, r, projection=p)).sum(), (0, 1, 2))
        return jax.jit(loss).lower(*arrays).compile().memory_analysis().temp_size_in_bytes

    assert temporary(8 * BLOCK) - temporary(2 * BLOCK) < 0.25 * 6 * BLOCK * references * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": (13, 29)}, r"\[R, T\] with the same T, got \(13, 29\) and \(4, 30\)"),
        ({"y": (30,)}, r"y must be \[V, T\]"),
        ({"kept": (13,)}, r"kept must have shape \(30,\), got \(13,\)"),
        ({"mean": (5,)}, r"mean must have shape \(4,\), got \(5,\)"),
        ({"projection": (5, 2)}, r"projection must have shape \(4, D\), got \(5, 2\)"),
        ({"projection": (4,)}, r"projection must have shape \(4, D\), got \(4,\)"),
    ],
)
def test_shapes_that_do_not_agree_are_refused(arguments, message):
    given = {name: np.ones(shape, np.float32) for name, shape in ({"y": (13, 30), "references": (4, 30)} | arguments).items()}
    with pytest.raises(ValueError, match=message):
        fingerprint(**given)


def test_an_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match=r"one of \['chunked', 'reference'\], got 'pallas'"):
        fingerprint(*data(), implementation="pallas")
