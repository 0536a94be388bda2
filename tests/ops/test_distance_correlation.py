"""Properties first, then a plain double loop and dcor, then equality of implementations, then compiled cost."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal
from tolerance import rounding

from pnet_jax.ops.distance_correlation import chunked, distance_correlation

IMPLEMENTATIONS = ("reference", "chunked")
FORMS = pytest.mark.parametrize("corrected", [False, True], ids=["plain", "corrected"])


# Sums over 21 x 21 pairs of frames. The root doubles errors of a squared correlation of 1/16, the smallest that is looked at, and
# centring takes off means as large as the distances.
TOLERANCE = rounding(21 * 21, condition=2)


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """21 frames are two full blocks and a part of one."""
    monkeypatch.setattr(chunked, "BLOCK", 8)


def signals(shape=(2, 5, 21), seed=0):
    """Some related in a line, some by a square, some not."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    if shape[1] > 3:
        x[:, 1] += x[:, 0]
        x[:, 2] = np.square(x[:, 3]) + 0.3 * x[:, 2]
    return x.astype(np.float32)


@functools.cache
def compiled(implementation, corrected):
    return jax.jit(functools.partial(distance_correlation, implementation=implementation, bias_corrected=corrected))


def run(x, kept=None, implementation="chunked", corrected=False):
    kept = np.ones((x.shape[0], x.shape[2]), bool) if kept is None else kept
    return np.asarray(compiled(implementation, corrected)(x, kept))


@functools.partial(jax.jit, static_argnames=("implementation", "corrected"))
@functools.partial(jax.value_and_grad, has_aux=True)
def step(x, weights, implementation, corrected):
    found = distance_correlation(x, bias_corrected=corrected, implementation=implementation)
    return jnp.nansum(weights * found), found


def centred(x, corrected):
    """Of one signal, by the papers' definitions."""
    a, n = np.abs(x[:, None] - x[None, :]), len(x)
    out = np.zeros_like(a)
    for i in range(n):
        for j in range(n):
            if not corrected:
                out[i, j] = a[i, j] - a[i].mean() - a[:, j].mean() + a.mean()
            elif i != j:
                out[i, j] = a[i, j] - a[i].sum() / (n - 2) - a[:, j].sum() / (n - 2) + a.sum() / ((n - 1) * (n - 2))
    return out


def by_numpy(x, corrected):
    out = []
    for subject in np.float64(x):
        tables = [centred(signal, corrected) for signal in subject]
        products = np.array([[(a * b).sum() for b in tables] for a in tables])
        r = products / np.sqrt(np.outer(np.diag(products), np.diag(products)))
        out.append(r if corrected else np.sqrt(r))
    return np.stack(out)


@FORMS
def test_equals_a_plain_double_loop(implementation, corrected):
    assert_allclose(run(signals(), None, implementation, corrected), by_numpy(signals(), corrected), rtol=0, atol=TOLERANCE)


@FORMS
def test_equals_dcor(corrected):
    dcor = pytest.importorskip("dcor")
    x = np.float64(signals()[0])
    function = dcor.u_distance_correlation_sqr if corrected else dcor.distance_correlation
    expected = [[function(a, b) for b in x] for a in x]
    assert_allclose(run(signals(), None, "chunked", corrected)[0], expected, rtol=0, atol=TOLERANCE)


@FORMS
def test_result_is_symmetric_with_diagonal_1_and_within_bounds(implementation, corrected):
    found = run(signals(seed=3), None, implementation, corrected)
    assert_allclose(found, found.swapaxes(1, 2), rtol=0, atol=TOLERANCE)
    assert_allclose(np.diagonal(found, axis1=1, axis2=2), 1, rtol=0, atol=TOLERANCE)
    assert found.min() >= (-1 - TOLERANCE if corrected else 0) and found.max() <= 1 + TOLERANCE


@FORMS
def test_unit_sign_and_level_of_the_signals_do_not_matter(implementation, corrected):
    assert_allclose(run(10 - 3 * signals(), None, implementation, corrected), run(signals(), None, implementation, corrected), atol=1e-5)


@FORMS
def test_permuting_frames_changes_nothing(corrected):
    order = np.random.default_rng(0).permutation(21)
    assert_allclose(
        run(signals()[:, :, order], None, "chunked", corrected), run(signals(), None, "chunked", corrected), rtol=0, atol=TOLERANCE
    )


def test_a_square_is_seen_where_pearson_sees_nothing():
    line = np.linspace(-1, 1, 21, dtype=np.float32)
    x = signals()
    x[0, :2] = line, line**2
    found = run(x)[0, 0, 1]
    assert abs(np.corrcoef(line, line**2)[0, 1]) < 1e-6
    assert found > 0.4


def test_the_corrected_form_of_independent_signals_is_0_on_average():
    x = np.random.default_rng(0).normal(size=(30, 2, 5, 21)).astype(np.float32)
    plain, corrected = (np.stack([run(two, None, "chunked", form) for two in x]) for form in (False, True))
    pairs = np.triu_indices(5, 1)
    assert plain[:, :, *pairs].mean() > 0.25
    assert abs(corrected[:, :, *pairs].mean()) < 0.01


@FORMS
def test_frames_that_do_not_count_have_no_say(implementation, corrected):
    x, kept = signals(), np.random.default_rng(1).random((2, 21)) < 0.7
    expected = np.concatenate([by_numpy(s[None, :, k], corrected) for s, k in zip(x, kept, strict=True)])
    x[~np.broadcast_to(kept[:, None], x.shape)] = np.nan
    assert_allclose(run(x, kept, implementation, corrected), expected, rtol=0, atol=TOLERANCE)


@FORMS
@pytest.mark.parametrize("level", [2.0, 123.456])
def test_a_constant_signal_gives_nan_in_its_own_row_and_column_and_gradients_of_0(corrected, level):
    x, absent = signals(), np.zeros((2, 5, 5), bool)
    x[0, 2] = level
    absent[0, 2, :] = absent[0, :, 2] = True
    assert_array_equal(np.isnan(run(x, None, "chunked", corrected)), absent)
    _, gradient = step(x, np.ones((2, 5, 5), np.float32), "chunked", corrected)
    assert np.isfinite(gradient).all()
    assert_array_equal(gradient[0, 2], 0)
    assert (np.asarray(gradient)[0, :2] != 0).any(1).all()


def test_a_subject_with_too_few_frames_is_nan():
    kept = np.arange(21)[None, :] < np.array([[21], [3]])
    found = run(signals(), kept, "chunked", True)
    assert_array_equal(np.isnan(found).all((1, 2)), [False, True])


def test_half_precision_is_summed_in_float32():
    x = jnp.asarray(signals(), jnp.bfloat16)
    found = run(x)
    assert found.dtype == np.float32
    assert_allclose(found, by_numpy(np.asarray(x, np.float64), False), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("shape", "corrected"), [((2, 5, 21), False), ((2, 5, 21), True), ((1, 1, 4), True)], ids=str)
def test_implementations_agree_in_values_and_gradients(shape, corrected):
    x, weights = signals(shape), np.random.default_rng(1).normal(size=(shape[0], shape[1], shape[1])).astype(np.float32)
    (_, a), ga = step(x, weights, "reference", corrected)
    (_, b), gb = step(x, weights, "chunked", corrected)
    assert np.isfinite(a).all()
    assert_allclose(b, a, rtol=0, atol=TOLERANCE)
    assert_allclose(gb, ga, atol=1e-4)


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        x = np.float64(signals((1, 3, 9)))
        check_grads(jax.jit(distance_correlation), (x,), order=1, modes=["rev"], eps=1e-6, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("block", [1, 100])
def test_block_size_changes_nothing(monkeypatch, block):
    monkeypatch.setattr(chunked, "BLOCK", block)
    assert_allclose(jax.jit(lambda x: distance_correlation(x))(signals()), by_numpy(signals(), False), rtol=0, atol=TOLERANCE)


def test_temporary_memory_never_holds_a_distance_matrix(monkeypatch):
    monkeypatch.setattr(chunked, "BLOCK", 32)
    parcels, frames = 40, 320

    def temporary(function, subjects):
        shape = jax.ShapeDtypeStruct((subjects, parcels, frames), jnp.float32)
        return jax.jit(function).lower(shape).compile().memory_analysis().temp_size_in_bytes

    assert temporary(distance_correlation, 20) < 1.1 * temporary(distance_correlation, 2) < 0.1 * parcels * frames * frames * 4
    assert temporary(jax.grad(lambda x: distance_correlation(x).sum()), 20) < 0.3 * parcels * frames * frames * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"signals": np.ones((5, 40), np.float32)}, r"\[subjects, parcels, frames\].*got shape \(5, 40\)"),
        ({"signals": np.ones((1, 5, 3), np.float32), "bias_corrected": True}, "needs at least 4 frames, got 3"),
        ({"kept": np.ones(6, bool)}, r"kept must have shape \(1, 6\) \(subjects, frames\), got \(6,\)"),
        ({"implementation": "dense"}, r"one of \['chunked', 'reference'\], got 'dense'"),
    ],
)
def test_what_cannot_be_used_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        distance_correlation(**({"signals": np.ones((1, 5, 6), np.float32)} | arguments))
