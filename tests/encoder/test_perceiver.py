"""What the neural encoder's embedding must equal, must not depend on, and may cost."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.config import PerceiverConfig
from pnet_jax.encoder import perceiver, views
from pnet_jax.encoder.layers import Attention, product
from pnet_jax.encoder.linear import embed, own_metric, project, whiten
from pnet_jax.encoder.perceiver import embed_scan, init
from pnet_jax.encoder.tokens import Observed, nearest_reference, signal_features

look, look_once, encode = (jax.jit(f) for f in (views.look, views.look_once, perceiver.encode))

V, T = 90, 70
TR = np.float32(2)


@pytest.fixture(scope="module")
def recording(reference_points):
    """The fields of an `Observed`, by name."""
    rng = np.random.default_rng(0)
    xyz = (reference_points[np.arange(V) % len(reference_points)] + rng.normal(scale=5, size=(V, 3))).astype(np.float32)
    region = nearest_reference(xyz, reference_points)
    y = rng.normal(size=(len(reference_points), T))[region] + rng.normal(size=(V, T))
    return {
        "y": y.astype(np.float32),
        "region": region,
        "kept": np.ones(T, bool),
        "frames": np.arange(T, dtype=np.int32),
        "counted": np.arange(V) % 10 != 3,
        "xyz": xyz,
        "tr": TR,
        "log_tsnr": rng.normal(size=V).astype(np.float32),
    }


BY_LOCATION = ("y", "region", "counted", "xyz", "log_tsnr")


def rows(recording, order):
    return recording | {name: recording[name][order] for name in BY_LOCATION}


# Equal to what


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_untrained_encoder_gives_the_linear_embedding(make_encoder, linear, recording, dtype):
    given = (recording[name] for name in ("y", "region", "kept", "counted"))
    assert_allclose(embed_scan(make_encoder(trained=False, dtype=dtype), Observed(**recording)), embed(linear, *given), atol=1e-6)


def test_a_trained_one_does_not(make_encoder, linear, recording):
    given = (recording[name] for name in ("y", "region", "kept", "counted"))
    assert np.abs(embed_scan(make_encoder(), Observed(**recording)) - embed(linear, *given)).max() > 0.1


def test_rows_have_length_1_or_are_0_where_not_counted(make_encoder, recording):
    z = np.asarray(embed_scan(make_encoder(), Observed(**recording)))
    assert_allclose(np.linalg.norm(z, axis=1), recording["counted"], atol=1e-5)


@pytest.mark.parametrize("block", [32, 89])
def test_blocks_of_locations_equal_the_whole(make_encoder, recording, block):
    whole = embed_scan(make_encoder(), Observed(**recording))
    assert_allclose(embed_scan(make_encoder(block=block), Observed(**recording)), whole, atol=1e-5)


def test_the_blocked_scan_equals_the_encoder_that_is_trained(make_encoder, recording):
    encoder, r = make_encoder(block=32), recording
    x = project(encoder.linear, r["y"], r["region"], r["kept"], r["counted"])
    x, _ = encode(encoder, x, signal_features(x, r["y"], r["kept"], r["frames"], TR, r["log_tsnr"]), r["xyz"], r["counted"])
    assert_allclose(embed_scan(encoder, Observed(**r)), whiten(x, own_metric(x)), atol=1e-5)


def test_half_precision_is_close(make_encoder, recording):
    exact, half = (embed_scan(make_encoder(dtype=dtype), Observed(**recording)) for dtype in ("float32", "bfloat16"))
    assert exact.dtype == half.dtype == jnp.float32
    assert 1e-5 < np.abs(exact - half).max() < 0.15


def test_attention_equals_softmax():
    layer = Attention(8, 2, 2, "float32", rngs=nnx.Rngs(0))
    x, context = (np.random.default_rng(i).normal(size=(n, 8)).astype(np.float32) for i, n in enumerate((3, 11)))
    counted = np.arange(11) != 4

    @jax.jit
    def expected():
        seen = layer.context_norm(context[counted])
        q, k, v = layer.query(layer.norm(x)), layer.key(seen), layer.value(seen)
        heads = [jax.nn.softmax(q[:, i] @ k[:, i].T / 2, axis=1) @ v[:, i] for i in (slice(0, 4), slice(4, 8))]
        return layer.mlp(x + layer.output(jnp.concatenate(heads, 1)))

    assert_allclose(jax.jit(lambda: layer(x, context, counted))(), expected(), atol=1e-5)


def test_products_round_their_factors_only_and_so_do_their_gradients():
    a, b = (np.random.default_rng(i).normal(size=shape).astype(np.float32) for i, shape in enumerate(((3, 4, 50), (3, 50, 6))))
    slope = np.random.default_rng(3).normal(size=(3, 4, 6)).astype(np.float32)
    found, back = jax.vjp(lambda a, b: product(a, b, "bfloat16"), a, b)
    a, b, slope = (np.float64(x.astype(jnp.bfloat16)) for x in (a, b, slope))
    da, db = back(jnp.float32(slope))
    assert found.dtype == da.dtype == db.dtype == jnp.float32
    for have, expected in ((found, a @ b), (da, slope @ b.swapaxes(1, 2)), (db, a.swapaxes(1, 2) @ slope)):
        assert_allclose(have, expected, atol=1e-5)


# Not dependent on what


def test_order_of_locations(make_encoder, recording):
    order = np.random.default_rng(3).permutation(V)
    z = embed_scan(make_encoder(block=32), Observed(**recording))
    assert_allclose(embed_scan(make_encoder(block=32), Observed(**rows(recording, order))), z[order], atol=1e-5)


def test_padding_of_locations_and_frames(make_encoder, recording):
    z = embed_scan(make_encoder(), Observed(**recording))
    more = rows(recording, np.r_[np.arange(V), np.zeros(9, int)])
    more["counted"][V:] = False
    for name in ("y", "xyz", "log_tsnr"):
        more[name][V:] = np.nan
    more |= {"y": np.pad(more["y"], ((0, 0), (0, 6)), constant_values=9), "kept": np.arange(T + 6) < T, "frames": np.arange(T + 6)}
    padded = np.asarray(embed_scan(make_encoder(), Observed(**more)))
    assert_allclose(padded[:V], z, atol=1e-4)
    assert_array_equal(padded[V:], 0)


def test_frames_that_were_scrubbed_leave_a_gap(make_encoder, recording):
    """A recording without some frames is that recording with these not counted, and not a shorter one."""
    left = np.flatnonzero(np.random.default_rng(4).random(T) > 0.3)
    cut = recording | {"y": recording["y"][:, left], "kept": np.ones(len(left), bool), "frames": left.astype(np.int32)}
    masked = recording | {"kept": np.isin(np.arange(T), left)}
    z = embed_scan(make_encoder(), Observed(**cut))
    assert_allclose(z, embed_scan(make_encoder(), Observed(**masked)), atol=1e-4)
    glued = embed_scan(make_encoder(), Observed(**(cut | {"frames": np.arange(len(left), dtype=np.int32)})))
    assert np.abs(z - glued).max() > 1e-2


def test_unit_of_the_signals(make_encoder, recording):
    assert_allclose(
        embed_scan(make_encoder(), Observed(**(recording | {"y": 40 * recording["y"] + 3}))),
        embed_scan(make_encoder(), Observed(**recording)),
        atol=1e-3,
    )


def test_scans_of_the_same_batch_change_no_bit(make_encoder, make_segments):
    ours, theirs = make_segments(), make_segments(seed=5, empty=4)
    mixed = jax.tree.map(lambda a, b: np.concatenate([b[:1], a[1:]]), ours, theirs)
    for encoder in (make_encoder(), make_encoder(dtype="bfloat16")):
        for a, b in zip(look(encoder, mixed), look(encoder, ours), strict=True):
            assert_array_equal(a[1], b[1])


def test_what_is_not_counted_is_not_read(make_encoder, make_segments):
    encoder, given = make_encoder(), make_segments()
    counted, kept = given.counted.copy(), given.kept.copy()
    counted[:, 50:], kept[:, :, 64:] = False, False
    y, xyz, tsnr, references = (given.y.copy(), given.xyz.copy(), given.log_tsnr.copy(), given.references.copy())
    y[:, :, 50:], y[..., 64:], xyz[:, 50:], tsnr[..., 50:], references[..., 64:] = 7, -9, 1e4, np.nan, 55
    plain = given._replace(counted=counted, kept=kept)
    found, expected = look(encoder, plain._replace(y=y, xyz=xyz, log_tsnr=tsnr, references=references)), look(encoder, plain)
    for a, b in ((found.x, expected.x), (found.fingerprint, expected.fingerprint), (found.state[:, :, :50], expected.state[:, :, :50])):
        assert_array_equal(a, b)


def test_a_scan_without_any_counted_location_gives_zeros(make_encoder, recording):
    assert_array_equal(embed_scan(make_encoder(), Observed(**(recording | {"counted": np.zeros(V, bool)}))), 0)


def test_of_hidden_locations_only_the_place_is_known(make_encoder, make_segments):
    given = make_segments(1)
    one = [np.asarray(getattr(given, name))[0, 0] for name in ("y", "kept", "frames", "references")]
    rest = [given.xyz[0], given.counted[0], given.log_tsnr[0, 0], given.tr[0, 0]]
    hidden = np.arange(60) < 40
    other = np.where(hidden[:, None], np.random.default_rng(9).normal(size=one[0].shape).astype(np.float16), one[0])
    # The mean fingerprint is over all of the scan; what is left of it through the visible ones is small.
    a, b = (look_once(make_encoder(), y, *one[1:], *rest, hidden).state for y in (one[0], other))
    c = look_once(make_encoder(), other, *one[1:], *rest, np.zeros(60, bool)).state
    assert np.abs(a - b)[hidden].max() < 0.3 * np.abs(a - c)[hidden].max()
    assert np.abs(a - c)[hidden].max() > 0.1


# Parameters and costs


def test_parameters_are_plain_nested_dicts_of_float32(make_encoder):
    def walk(tree):
        assert type(tree) is dict
        for name, value in tree.items():
            assert type(name) is str
            if not isinstance(value, dict):
                assert value.dtype == jnp.float32
            else:
                walk(value)

    walk(make_encoder().params)


def test_no_parameter_has_the_size_of_a_scan(make_encoder, make_segments):
    """The same weights read other numbers of locations and frames, at another TR."""
    encoder = make_encoder()
    shapes = set(sum((x.shape for x in jax.tree.leaves(encoder.params)), ()))
    assert shapes.isdisjoint({61, 83})
    view = look(encoder, make_segments(1, 61, 83, 0.7))
    assert view.x.shape == (1, 2, 61, 5)
    assert np.isfinite(view.x).all()


def test_initialisation_needs_no_values_and_depends_on_its_key_only(linear, make_encoder):
    shapes = jax.eval_shape(lambda key: make_encoder(trained=False).params, jax.random.key(0))
    a, b, c = (make_encoder(trained=False, seed=seed).params for seed in (0, 0, 1))
    assert jax.tree.map(jnp.shape, a) == jax.tree.map(lambda x: x.shape, shapes)
    jax.tree.map(assert_array_equal, a, b)
    assert np.abs(a["perceiver"]["latents"] - c["perceiver"]["latents"]).max() > 0
    with pytest.raises(ValueError, match="400, 5"):
        init(linear, PerceiverConfig(dimensions=5), jax.random.key(0))


def test_gradients_equal_finite_differences_and_those_of_remat(make_encoder, recording):
    encoder, r = make_encoder(), recording
    x = project(encoder.linear, r["y"], r["region"], r["kept"], r["counted"])
    signals = signal_features(x, r["y"], r["kept"], r["frames"], TR, r["log_tsnr"])
    direction = np.random.default_rng(2).normal(size=(V, 5)).astype(np.float32)

    def loss(params, encoder=encoder):
        return (perceiver.encode(encoder._replace(params=params), x, signals, r["xyz"], r["counted"])[0] * direction).mean()

    both = jax.jit(jax.value_and_grad(loss))
    slope = both(encoder.params)[1]
    leaves, tree = jax.tree.flatten(encoder.params)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        step = jax.tree.unflatten(tree, [rng.normal(size=x.shape).astype(np.float32) for x in leaves])
        up, down = (both(jax.tree.map(lambda p, s, h=h: p + h * s, encoder.params, step))[0] for h in (2e-3, -2e-3))
        expected = sum(jax.tree.leaves(jax.tree.map(lambda g, s: (g * s).sum(), slope, step)))
        assert_allclose((up - down) / 4e-3, expected, rtol=2e-2, atol=2e-3)
    again = jax.jit(jax.grad(functools.partial(loss, encoder=make_encoder(remat=True))))(encoder.params)
    jax.tree.map(functools.partial(assert_allclose, rtol=1e-4, atol=1e-5), again, slope)


def compiled(encoder, locations, frames=32):
    shape = jax.ShapeDtypeStruct
    f32, flag = jnp.float32, jnp.bool_
    one = {name: shape((locations,), dtype) for name, dtype in (("counted", flag), ("region", jnp.int32), ("log_tsnr", f32))}
    seen = Observed(
        y=shape((locations, frames), f32),
        kept=shape((frames,), flag),
        frames=shape((frames,), jnp.int32),
        xyz=shape((locations, 3), f32),
        tr=shape((), f32),
        **one,
    )
    return embed_scan.lower(encoder, seen).compile()


def test_memory_of_a_whole_scan_grows_by_a_few_components_a_location(make_encoder):
    encoder = make_encoder(block=1024, width=64, mlp=4, depth=0)
    small, large = (compiled(encoder, n).memory_analysis().temp_size_in_bytes for n in (16384, 65536))
    # The hidden layer alone would take 1024 bytes a location, the fingerprints 56, the places 1024.
    assert (large - small) / (65536 - 16384) < 4 * (4 * 5 + 2 * 32 + 8)


def test_work_is_linear_in_locations(make_encoder):
    encoder = make_encoder()

    def flops(count):
        x, signals, xyz = (jax.ShapeDtypeStruct((count, n), jnp.float32) for n in (5, 38, 3))
        return encode.lower(encoder, x, signals, xyz, jax.ShapeDtypeStruct((count,), jnp.bool_)).compile().cost_analysis()["flops"]

    a, b, c = (flops(n) for n in (500, 1000, 2000))
    assert_allclose((c - b) / (b - a), 2, rtol=0.02)


def test_other_weights_are_no_other_compilation(make_encoder, recording):
    embed_scan.clear_cache()
    for seed in (0, 1):
        embed_scan(make_encoder(seed=seed), Observed(**recording))
    assert embed_scan._cache_size() == 1


@pytest.mark.parametrize(
    ("sizes", "message"), [({"heads": 3, "width": 16}, "divisor of width"), ({"dtype": "float16"}, "float16"), ({"latents": 0}, "latents")]
)
def test_sizes_that_cannot_be_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        PerceiverConfig(**sizes)
