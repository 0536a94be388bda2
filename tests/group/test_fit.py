"""The group model: counts by hand, what does not count, what comes back from disk, and what a construction makes of it."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax import load_group, load_network, save_group
from pnet_jax.checkpoint import save_model
from pnet_jax.cli import main
from pnet_jax.config import ConstructConfig
from pnet_jax.construction import build, construct
from pnet_jax.dynamics.linear_stochastic import jacobian
from pnet_jax.edges import fit_shrinkage
from pnet_jax.errors import InputError
from pnet_jax.group import fit, spatial
from pnet_jax.group.fit import fit_group
from pnet_jax.group.pairs import recording_of
from pnet_jax.network import QC, Network, Selection
from pnet_jax.parcellation.atlas import make_atlas, on_space
from pnet_jax.parcellation.spatial import LEAST_PROBABILITY, LearnedPrior, place
from pnet_jax.space import grid_space, point_space, take

K = 12

# A row of eight voxels of 4 mm in one hemisphere, with four voxels for each of two parcels.


def row(shift: float = 0.0, step: float = 4.0, voxels: int = 8):
    affine = np.diag([step, step, step, 1.0])
    affine[:3, 3] = [20, shift, 0]
    return grid_space(np.ones((1, voxels, 1), bool), affine)


LINE = row()
TWO = make_atlas(LINE.xyz, [1, 1, 1, 1, 2, 2, 2, 2], resolution=4, source="two")
GROUP_OF_FOUR = {"participants": 4, "spatial_prior": True, "edges_learned_from": "4 pairs of halves", "views": 1}
BORDERS = [3, 4, 6]  # where the second parcel begins in each of three participants
COUNTS = np.array([[3, 3, 3, 2, 1, 1, 0, 0], [0, 0, 0, 1, 2, 2, 3, 3]], float).T  # of these, by hand


def network(space, labels, atlas=TWO, subject="01", decision="personalised", seed=0, **fields) -> Network:
    """A network with the least that a group reads."""
    rng, k = np.random.default_rng(seed), atlas.n_parcels
    signals = rng.normal(size=(k, 120)).astype(np.float32)
    given = {
        "candidates": np.asarray(labels, np.int32)[:, None],
        "probabilities": np.ones((len(labels), 1), np.float32),
        "signals": signals,
        "edges": {},
        "ids": atlas.ids,
        "names": atlas.names,
        "hemispheres": atlas.hemispheres,
        "atlas_labels": np.asarray(labels, np.int32),
        "coverage": np.ones(k, np.float32),
        "frames": np.arange(120),
        "tr": 2.0,
        "subject": subject,
        "entities": {},
        "qc": QC(selection=Selection(decision=decision, degrees=(40.0, 40.0))),
        "provenance": {"atlas": {"digest": atlas.digest, "source": atlas.source}},
        "halves": {"pearson": np.stack([np.corrcoef(half).astype(np.float32) for half in np.split(signals, 2, 1)])},
    }
    return Network(space=space, labels=np.asarray(labels, np.int32), **(given | fields))


def split(border: int, voxels: int = 8) -> np.ndarray:
    return (np.arange(voxels) >= border).astype(np.int32)


def cohort(space=LINE, borders=BORDERS, **fields) -> list[Network]:
    return [network(space, split(border, len(space)), subject=f"{at:02d}", **fields) for at, border in enumerate(borders)]


def shares(learned: LearnedPrior) -> np.ndarray:
    """π of both parcels at each voxel of the row in order, `[8, 2]`."""
    order = np.argsort(learned.xyz[:, 1])
    out = np.zeros((len(order), 2))
    for parcel in (0, 1):
        out[:, parcel] = np.where(learned.candidates[order] == parcel, np.exp(learned.log_prior[order]), 0).sum(1)
    return out


def by_hand(counts: np.ndarray) -> np.ndarray:
    """The formula of the spatial prior on the row, `[8, 2]`."""
    local = on_space(TWO, LINE)
    atlas = np.stack([np.where(local.candidates == k, np.exp(local.log_prior), 0).sum(1) for k in (0, 1)], 1)
    c = counts + fit.PRIOR_WEIGHT * atlas
    known = np.stack([(local.candidates == k).any(1) for k in (0, 1)], 1)
    c = np.where(known, c, 0)
    smooth = spatial.OWN_WEIGHT * c
    smooth[1:] += c[:-1]
    smooth[:-1] += c[1:]
    weight = np.where(known, smooth, 0) ** fit.SHARPNESS
    return weight / weight.sum(1, keepdims=True)


# Where parcels lie


def test_shares_are_counts_of_participants_by_hand():
    group = fit_group(cohort(), TWO)
    assert group.atlas == TWO.digest and group.subjects == ("00", "01", "02")
    found = shares(group.spatial)
    assert_allclose(found, by_hand(COUNTS), atol=1e-5)
    assert_allclose(found.sum(1), 1, atol=1e-5)
    assert group.spatial.resolution == pytest.approx(4)
    # Two of three have their border before the fifth voxel or at it, so the group's map ends the first parcel there, as the atlas does.
    assert found.argmax(1).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    moved = shares(fit_group(cohort(borders=[6, 6, 6]), TWO).spatial)
    assert moved.argmax(1).tolist() == [0, 0, 0, 0, 0, 0, 1, 1]


def test_networks_that_returned_the_atlas_do_not_count():
    plain = fit_group(cohort(), TWO)
    kept = [network(LINE, split(7), subject=f"9{at}", decision="atlas", seed=at) for at in range(5)]
    group = fit_group([*kept, *cohort()], TWO)
    assert len(group.subjects) == 8
    assert_array_equal(group.spatial.log_prior, plain.spatial.log_prior)


def test_fewer_than_three_with_parcels_of_their_own_teach_no_spatial_prior():
    kept = [network(LINE, split(4), subject=f"9{at}", decision="atlas", seed=at) for at in range(3)]
    assert fit_group([*kept, *cohort(borders=[3, 4])], TWO).spatial is None
    with pytest.raises(
        ValueError, match="nothing can be learned from 3 networks: expected at least 3 with personalised parcels, or 4 for the layers"
    ):
        fit_group(kept, TWO)


def test_locations_without_a_label_count_for_nothing():
    holes = [dataclasses.replace(one, labels=np.where(np.arange(8) == 5, -1, one.labels)) for one in cohort()]
    counts = COUNTS.copy()
    counts[5] = 0
    assert_allclose(shares(fit_group(holes, TWO).spatial), by_hand(counts), atol=1e-5)


def test_a_mask_without_a_voxel_shares_the_space_and_the_other_voxels():
    parts = [dataclasses.replace(one, space=(less := take(LINE, np.arange(7))), labels=one.labels[:7]) for one in cohort()]
    assert len(less) == 7
    counts = COUNTS.copy()
    counts[7] = 0
    found = fit_group(parts, TWO)
    assert len(found.spatial.xyz) == 8
    assert_allclose(shares(found.spatial), by_hand(counts), atol=1e-5)


@pytest.mark.parametrize(
    "other", [row(shift=1.0), point_space(LINE.xyz), row(step=8.0, shift=2.0, voxels=4)], ids=["grid", "rois", "coarse"]
)
def test_scans_of_another_space_count_at_the_nearest_location(other):
    """Voxels of 8 mm lie over two of 4 mm each; the Space of the majority holds the prior."""
    far = split(4, len(other)) if len(other) == 8 else np.array([0, 0, 1, 1], np.int32)
    group = fit_group([network(other, far, subject="far"), *cohort()], TWO)
    assert len(group.spatial.xyz) == 8 and group.spatial.resolution == pytest.approx(4)
    more = COUNTS + np.eye(2)[split(4)]
    assert_allclose(shares(group.spatial), by_hand(more), atol=1e-5)


def test_scans_of_another_space_out_of_reach_count_for_nothing():
    group = fit_group([network(row(shift=-60.0, voxels=16), split(8, 16), subject="far"), *cohort()], TWO)
    plain = shares(fit_group(cohort(), TWO).spatial)
    found = shares(group.spatial)
    assert_allclose(found[3:], plain[3:], atol=1e-5)  # its last voxel lies at the first of this row
    assert not np.allclose(found[0], plain[0])


# What is refused


def test_two_networks_of_one_participant_are_refused():
    """The participant would count twice, as more than there is to know of others."""
    with pytest.raises(InputError, match="sub-01: expected one network per participant, or one of each of two"):
        fit_group([*cohort(), network(LINE, split(4), subject="01")], TWO)


def test_fewer_than_three_networks_are_refused():
    with pytest.raises(ValueError, match="expected the networks of at least 3 participants, got 2"):
        fit_group(cohort()[:2], TWO)
    with pytest.raises(ValueError, match="got 0"):
        fit_group([], TWO)


def test_a_network_of_another_atlas_is_named():
    other = make_atlas(LINE.xyz, [1, 1, 1, 2, 2, 2, 2, 2], resolution=4, source="other")
    mixed = [*cohort(), network(LINE, split(3), other, subject="odd")]
    with pytest.raises(
        ValueError, match=rf"sub-odd: expected a network of atlas two \({TWO.digest}\), found one of other \({other.digest}\)"
    ):
        fit_group(mixed, TWO)
    with pytest.raises(ValueError, match=r"sub-00: .*found one of None \(None\)"):
        fit_group(cohort(provenance={}), TWO)


def test_a_network_without_halves_is_named():
    with pytest.raises(ValueError, match="sub-bare: the network has no edges of its halves; construct it again"):
        fit_group([*cohort(), network(LINE, split(4), subject="bare", halves={})], TWO)


# Edges and dynamics


@pytest.fixture(scope="module")
def many(toy):
    """Eight participants of the toy brain whose signals share a part."""
    common = np.random.default_rng(99).normal(size=(K, K))

    def one(seed):
        rng = np.random.default_rng(seed)
        signals = (common @ rng.normal(size=(K, 160)) + 3 * rng.normal(size=(K, 160))).astype(np.float32)
        halves = np.stack([np.corrcoef(half).astype(np.float32) for half in np.split(signals, 2, 1)])
        fields = {"signals": signals, "frames": np.arange(160), "halves": {"pearson": halves}}
        return network(toy.space, toy.truth if seed % 2 else toy.expected, toy.atlas, f"{seed:02d}", seed=seed, **fields)

    return [one(seed) for seed in range(8)]


def test_three_participants_teach_no_layers_and_four_do(many, toy):
    three, four = fit_group(many[:3], toy.atlas), fit_group(many[:4], toy.atlas)
    assert three.spatial is not None and three.shrinkage is None and three.guide is None
    assert four.shrinkage.mean.shape == (K, K) and four.guide.mean.shape == (1, K, K)


def test_dynamics_are_learned_only_on_request(many, toy):
    assert fit_group(many[:4], toy.atlas).hierarchy is None
    found = fit_group(many[:4], toy.atlas, dynamics=True).hierarchy
    assert found.variance.shape == found.error.shape == (K, K)
    assert np.linalg.eigvalsh(np.asarray(jacobian(found.group))).max() < 0


def test_a_structural_connectome_draws_the_groups_coupling(many, toy):
    connectome = np.zeros((K, K))
    connectome[0, 7] = connectome[7, 0] = 1.0
    plain = np.asarray(fit_group(many[:4], toy.atlas, dynamics=True).hierarchy.group.coupling)
    drawn = np.asarray(fit_group(many[:4], toy.atlas, dynamics=True, connectome=connectome).hierarchy.group.coupling)
    assert drawn[0, 7] - plain[0, 7] > 0.001
    with pytest.raises(ValueError, match="expected 12 x 12 weights, one per pair of parcels, found 3 x 3"):
        fit_group(many[:4], toy.atlas, dynamics=True, connectome=np.eye(3))


def test_a_scan_too_short_for_dynamics_is_left_out_with_a_warning(many, toy):
    short = dataclasses.replace(many[4], signals=many[4].signals[:, :12], frames=np.arange(12))
    with pytest.warns(UserWarning, match="sub-04 is left out of the group's dynamics: too few frames"):
        group = fit_group([*many[:3], short], toy.atlas, dynamics=True)
    assert group.shrinkage is not None  # its edges count
    three = fit_group(many[:3], toy.atlas, dynamics=True)
    assert_array_equal(group.hierarchy.group.coupling, three.hierarchy.group.coupling)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="at least 3 participants are needed to learn dynamics, got 2"):
        fit_group([*many[:2], short], toy.atlas, dynamics=True)


def test_the_second_view_is_learned_on_request_only(many, toy):
    both = [dataclasses.replace(one, halves=one.halves | {"whitened": 0.9 * one.halves["pearson"]}) for one in many[:4]]
    assert fit_group(both, toy.atlas).guide.mean.shape == (1, K, K)
    group = fit_group(both, toy.atlas, second_view=True)
    assert group.guide.mean.shape == (2, K, K) and group.motion == {}  # too few to say how edges go with motion
    with pytest.raises(InputError, match="sub-03: the network has no second view of its edges: construct it again with --cleaning.wide"):
        fit_group([*both[:3], many[3]], toy.atlas, second_view=True)


def test_the_second_view_comes_with_what_edges_owe_to_motion(many, toy):
    moved = np.linspace(0.1, 0.4, 8)
    made = []
    for one, fd in zip(many, moved, strict=True):
        qc = dataclasses.replace(one.qc, mean_displacement=float(fd))
        made.append(dataclasses.replace(one, halves=one.halves | {"whitened": 0.9 * one.halves["pearson"]}, qc=qc))
    motion = fit_group(made, toy.atlas, second_view=True).motion
    assert list(motion) == ["raw", "guided", "guided, second view"] and all(0 < value < 1 for value in motion.values())
    z = np.arctanh(np.stack([one.halves["pearson"][0] for one in many])[:, *np.triu_indices(K, 1)])
    assert_allclose(motion["raw"], np.mean([abs(np.corrcoef(moved, edge)[0, 1]) for edge in z.T]), rtol=1e-3)
    unknown = [dataclasses.replace(one, qc=dataclasses.replace(one.qc, mean_displacement=None)) for one in made]
    assert np.isnan(fit_group(unknown, toy.atlas, second_view=True).motion["raw"])


def sessions(many):
    """Networks of two sessions: edges are what lasts, a state that halves of one session share, and a little noise."""
    rng = np.random.default_rng(0)

    def r(z):
        out = np.tanh((z + z.T) / 2).astype(np.float32)
        out[range(K), range(K)] = 1
        return out

    first, second = [], []
    for one in many:
        trait, *states = (0.4 * rng.normal(size=(K, K)) for _ in range(3))
        noise = 0.05 * rng.normal(size=(2, 2, K, K))
        for number, (made, state) in enumerate(zip((first, second), states, strict=True)):
            halves = np.stack([r(trait + state + part) for part in noise[number]])
            whole = r(trait + state + noise[number].mean(0))
            made.append(dataclasses.replace(one, edges={"pearson": whole}, halves={"pearson": halves}, entities={"ses": str(number + 1)}))
    return first, second


def test_edges_are_learned_from_sessions_where_participants_have_two(many, toy):
    first, second = sessions(many)
    group = fit_group([one for pair in zip(first, second, strict=True) for one in pair], toy.atlas)
    assert (group.pairs, group.n_pairs, len(group.subjects)) == ("sessions", 8, 8)
    n_eff = np.full(8, 80, np.float32)  # of both halves: the networks do not say how many of the whole
    expected = fit_shrinkage(np.stack([one.edges["pearson"] for one in first]), np.stack([one.edges["pearson"] for one in second]), n_eff)
    for own, known in zip(group.shrinkage, expected, strict=True):
        assert_allclose(own, known, rtol=1e-5)
    halves = fit_group(first, toy.atlas)
    assert (halves.pairs, halves.n_pairs) == ("halves", 8)
    assert_array_equal(halves.spatial.log_prior, group.spatial.log_prior)
    assert np.nanmean(group.shrinkage.signal) < 0.75 * np.nanmean(halves.shrinkage.signal)  # what does not last is no signal
    assert fit_group([*first, *second], toy.atlas).digest == group.digest


def test_few_second_sessions_do_not_displace_the_halves_of_all(many, toy):
    first, second = sessions(many)
    assert fit_group([*first, *second[:3]], toy.atlas).pairs == "halves"
    assert fit_group([*first, *second[:4]], toy.atlas).n_pairs == 4


def test_a_third_session_and_another_task_are_refused(many, toy):
    first, second = sessions(many)
    with pytest.raises(InputError, match="sub-00: expected networks of at most two sessions, found a third"):
        fit_group([*first, *second, dataclasses.replace(second[0], entities={"ses": "3"})], toy.atlas)
    with pytest.raises(InputError, match="sub-00: .* found a second that is not of another session"):
        fit_group([*first, dataclasses.replace(second[0], entities={"ses": "2", "task": "movie"})], toy.atlas)


def test_a_whole_without_edges_of_its_own_is_the_mean_of_its_halves(many):
    own = recording_of(dataclasses.replace(many[0], edges={}), second_view=False)
    z = np.arctanh(np.clip(many[0].halves["pearson"], -0.99, 0.99)).mean(0)
    assert_allclose(own.whole[0][0, 1], np.tanh(z[0, 1]), rtol=1e-5)
    assert own.whole[0][3, 3] == 1 and own.n_eff == 80


def test_networks_are_read_one_after_another_and_edges_of_the_first_are_held(many, toy, monkeypatch):
    monkeypatch.setattr(fit, "MOST_HELD", 5)
    held, seen = [], []
    read = fit.recording_of
    monkeypatch.setattr(fit, "recording_of", lambda one, **options: held.append(one.subject) or read(one, **options))

    def stream():
        for one in many:
            yield one
            seen.append(one.subject)

    group = fit_group(stream(), toy.atlas)
    assert len(seen) == len(group.subjects) == 8 and held == [one.subject for one in many[:5]]
    first = fit_group(many[:5], toy.atlas)
    assert_array_equal(group.shrinkage.mean, first.shrinkage.mean)
    assert_array_equal(group.guide.mean, first.guide.mean)
    monkeypatch.undo()
    assert_array_equal(group.spatial.log_prior, fit_group(many, toy.atlas).spatial.log_prior)  # every participant's parcels count


def test_the_digest_changes_with_everything_that_decides_a_result(many, toy):
    group = fit_group(many[:4], toy.atlas, dynamics=True)
    assert len(group.digest) == 16 and fit_group(many[:4], toy.atlas, dynamics=True).digest == group.digest
    log_prior = group.spatial.log_prior.copy()
    log_prior[0, 0] -= 0.1
    changed = [
        {"spatial": group.spatial._replace(log_prior=log_prior)},
        {"spatial": None},
        {"shrinkage": group.shrinkage._replace(noise=2 * group.shrinkage.noise)},
        {"guide": group.guide._replace(scale=2 * group.guide.scale)},
        {"hierarchy": group.hierarchy._replace(error=2 * group.hierarchy.error)},
        {"hierarchy": None},
        {"atlas": "another"},
    ]
    digests = {dataclasses.replace(group, **change).digest for change in changed}
    assert len(digests) == len(changed) and group.digest not in digests
    assert dataclasses.replace(group, subjects=("renamed",)).digest == group.digest


# On disk


@pytest.mark.parametrize("parts", [{}, {"hierarchy": None}, {"spatial": None}, {"shrinkage": None, "guide": None}], ids=str)
def test_a_group_comes_back_bit_by_bit(parts, many, toy, tmp_path):
    group = dataclasses.replace(fit_group(many[:4], toy.atlas, dynamics=True), **parts)
    save_group(group, tmp_path / "group")
    again = load_group(str(tmp_path / "group"))
    assert (again.atlas, again.subjects, again.digest) == (group.atlas, group.subjects, group.digest)
    assert (again.pairs, again.n_pairs, again.motion) == ("halves", 4, {})
    for name in ("spatial", "shrinkage", "guide", "hierarchy"):
        own, read = getattr(group, name), getattr(again, name)
        assert type(read) is type(own)
        for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(read), strict=True):
            assert_array_equal(a, b)
    with pytest.raises(ValueError, match="already exists: expected a new folder"):
        save_group(group, tmp_path / "group")


def test_a_folder_without_a_group_is_refused_with_what_it_holds(toy_model, tmp_path):
    for name, found in (("nowhere", "no such folder"), ("empty", "an empty folder"), ("full", "notes.txt, sub-01/")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / "full/sub-01").mkdir(exist_ok=True, parents=True)
        (tmp_path / "full/notes.txt").touch()
        with pytest.raises(ValueError, match=f"group .*{name}: expected a folder written by `pnet fit-group`, found {found}"):
            load_group(tmp_path / name)
    save_model(toy_model, tmp_path / "model")
    with pytest.raises(ValueError, match="model: expected group model of format 1, found a model of format 1"):
        load_group(tmp_path / "model")


# An atlas with a learned prior


def learned_of(placed, weights) -> LearnedPrior:
    n, space = len(placed.here), placed.space
    return LearnedPrior(space.xyz, space.hemisphere, np.asarray(placed.prior.candidates)[:n], weights, space.resolution)


def test_the_own_space_gives_the_learned_prior_back(many, toy):
    learned = fit_group(many, toy.atlas).spatial
    placed, plain = place(toy.atlas, toy.space, learned), place(toy.atlas, toy.space)
    n, width = len(placed.here), learned.candidates.shape[1]
    assert_array_equal(placed.here, plain.here)
    assert_array_equal(placed.prior.candidates, plain.prior.candidates)
    floor = np.where(learned.candidates >= 0, np.maximum(np.exp(learned.log_prior), LEAST_PROBABILITY), 0)
    found = np.exp(np.asarray(placed.prior.log_prior)[:n, :width])
    assert_allclose(found, floor / floor.sum(1, keepdims=True), atol=1e-6)
    inside = np.asarray(placed.prior.labels)[:n]
    best = np.take_along_axis(learned.candidates, learned.log_prior.argmax(1)[:, None], 1)[:, 0]
    assert_array_equal(inside, best)
    assert (inside != np.asarray(plain.prior.labels)[:n]).any()


def test_locations_far_from_the_learned_ones_keep_the_atlas():
    placed = place(TWO, LINE)
    order = np.argsort(placed.space.xyz[:, 1])[:4]
    part = learned_of(placed, np.asarray(placed.prior.log_prior)[: len(placed.here)])
    flat = np.where(part.candidates >= 0, -1.0, part.log_prior)
    part = LearnedPrior(part.xyz[order], part.hemisphere[order], part.candidates[order], flat[order], 4.0)
    plain, found = (np.asarray(one.prior.log_prior)[:8] for one in (placed, place(TWO, LINE, part)))
    assert_array_equal(found[4:], plain[4:])
    assert np.abs(found[:4] - plain[:4])[np.asarray(placed.prior.candidates)[:4] >= 0].max() > 0.1
    assert_array_equal(place(TWO, LINE, part._replace(hemisphere=1 - part.hemisphere)).prior.log_prior, placed.prior.log_prior)


def test_a_parcel_that_is_nowhere_the_most_probable_keeps_the_atlas_locations():
    placed = place(TWO, LINE)
    candidates = np.asarray(placed.prior.candidates)[:8]
    always_first = np.where(candidates == 0, np.log(0.9), np.where(candidates == 1, np.log(0.1), -1e9)).astype(np.float32)
    found = place(TWO, LINE, learned_of(placed, always_first)).prior
    assert_array_equal(found.labels, placed.prior.labels)
    assert (np.exp(np.asarray(found.log_prior)[:8])[candidates == 0] > 0.5).all()  # the prior itself is the group's


def test_locations_given_back_to_one_parcel_leave_none_to_another():
    """The second parcel is left with the first one's voxels alone, which that one gets back."""
    three = make_atlas(LINE.xyz, [1, 1, 2, 2, 2, 3, 3, 3], resolution=4, source="three")
    placed = place(three, LINE)
    candidates, y = np.asarray(placed.prior.candidates)[:8], placed.space.xyz[:, 1]
    best = np.where(y < 8, 1, 2)  # the first parcel is nowhere
    learned = learned_of(placed, np.where(candidates == best[:, None], np.log(0.9), np.where(candidates >= 0, np.log(0.05), -1e9)))
    labels = np.asarray(place(three, LINE, learned).prior.labels)[:8]
    assert_array_equal(np.unique(labels), [0, 1, 2])
    assert_array_equal(labels, np.asarray(placed.prior.labels)[:8])


def test_a_parcel_never_seen_keeps_a_probability_above_0():
    placed = place(TWO, LINE)
    candidates = np.asarray(placed.prior.candidates)[:8]
    never = np.where(candidates == 0, 0.0, np.where(candidates == 1, np.log(1e-30), -1e9)).astype(np.float32)
    never[(candidates == 0).sum(1) == 0] = 0.0
    found = np.exp(np.asarray(place(TWO, LINE, learned_of(placed, never)).prior.log_prior)[:8])
    assert_allclose(found.sum(1), 1, atol=1e-5)
    both = (candidates >= 0).sum(1) == 2
    assert both.any()
    assert_allclose(found[both][candidates[both] == 1], LEAST_PROBABILITY / (1 + LEAST_PROBABILITY), rtol=1e-4)


def test_a_learned_prior_is_read_on_a_finer_grid_and_at_rois(many, toy):
    learned = fit_group(many, toy.atlas).spatial
    for space in (point_space(toy.space.xyz[::7]), point_space(toy.space.xyz[::7] + np.float32([0.5, 1, -1]))):
        placed = place(toy.atlas, space, learned)
        n, label = len(placed.here), np.asarray(placed.prior.labels)
        nearest = np.linalg.norm(placed.space.xyz[:, None] - learned.xyz[None], axis=2).argmin(1)
        best = np.take_along_axis(learned.candidates, learned.log_prior.argmax(1)[:, None], 1)[:, 0][nearest]
        assert (label[:n] == best).mean() > 0.95


# Construction with a group


@pytest.fixture(scope="module")
def group(toy, toy_builder):
    """Of four scans of the toy participant, whose own borders differ from the atlas's."""
    scans = [toy.scan(seed, subject=f"{seed:02d}") for seed in range(20, 24)]
    networks = [build([toy_builder.ready(scan)], toy_builder)[0] for scan in scans]
    assert all(one.qc.selection.decision == "personalised" for one in networks)
    return fit_group(networks, toy.atlas)


@pytest.fixture(scope="module")
def informed(group, toy, toy_model):
    return construct(toy.scan(5, subject="new"), model=toy_model, group=group)


def test_a_construction_starts_from_the_groups_map_and_names_the_group(informed, group, toy, toy_model):
    placed = place(toy.atlas, toy.space, group.spatial)
    own = np.full(len(toy.space), -1)
    index = {tuple(ijk): at for at, ijk in enumerate(toy.space.grid.ijk)}
    for ijk, label in zip(placed.space.grid.ijk, np.asarray(placed.prior.labels), strict=False):
        if tuple(ijk) in index:
            own[index[tuple(ijk)]] = label
    assert_array_equal(informed.atlas_labels, own)
    assert informed.provenance["group"] == GROUP_OF_FOUR | {"digest": group.digest}
    assert informed.provenance["atlas"]["digest"] == toy.atlas.digest
    # These four and the scan are of one participant: the map is nearer to the truth than the atlas.
    assert (informed.atlas_labels == toy.truth).mean() > (toy.expected == toy.truth).mean() + 0.05
    assert (informed.labels == toy.truth).mean() > 0.95


def test_a_group_adds_the_layers_of_the_edges_and_no_dynamics(informed):
    assert list(informed.edges) == ["pearson", "shrunk", "guided"] and informed.qc.dynamics is None


def test_a_short_scan_returns_the_groups_map_and_says_so(informed, group, toy, toy_model):
    found = construct(toy.scan(5, subject="new", frames=40), model=toy_model, group=group)
    assert found.qc.selection.decision == "atlas" and found.qc.selection.reason.endswith("so the group's map is kept")
    assert_array_equal(found.labels, informed.atlas_labels)
    assert any("the parcels of the group's map are returned" in text for text in found.qc.warnings)


def test_a_group_without_a_spatial_prior_starts_from_the_atlas(group, toy, toy_model):
    edges = dataclasses.replace(group, spatial=None)
    found = construct(toy.scan(5, subject="new"), model=toy_model, group=edges, config=ConstructConfig(kappa=10.0, beta=0.4))
    assert_array_equal(found.atlas_labels, toy.expected)
    assert {"shrunk", "guided"} < set(found.edges)


# The commands


@pytest.fixture(scope="module")
def folder(toy, toy_model, tmp_path_factory):
    """Four recordings of the toy brain as a derivatives folder, its prior, a model, and what `pnet construct` made of them."""
    root = tmp_path_factory.mktemp("commands")
    nib.save(nib.Nifti1Image(toy.labels_volume(), toy.affine), root / "toy_space-MNI152NLin6Asym_dseg.nii.gz")
    save_model(toy_model, root / "model")
    for number in range(1, 5):
        image = nib.Nifti1Image(toy.volume(number), toy.affine)
        image.header.set_xyzt_units("mm", "sec")
        image.header.set_zooms((8, 8, 8, 2))
        stem = root / f"bids/sub-0{number}/func/sub-0{number}_task-rest_space-MNI152NLin6Asym"
        stem.parent.mkdir(parents=True)
        nib.save(image, f"{stem}_desc-preproc_bold.nii.gz")
        nib.save(nib.Nifti1Image(toy.mask.astype(np.uint8), toy.affine), f"{stem}_desc-brain_mask.nii.gz")
    given = ["--checkpoint", str(root / "model"), "--atlas", str(root / "toy_space-MNI152NLin6Asym_dseg.nii.gz")]
    fixed = ["--no-report", "--cleaning.strategy", "--labels", "personalised"]
    assert main(["construct", str(root / "bids"), str(root / "networks"), *given, *fixed]) == 0
    return root, given, fixed


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_from_networks_to_a_group_to_informed_networks(folder, tmp_path, capsys):
    root, given, fixed = folder
    (tmp_path / "group").mkdir()  # an empty folder is as good as none
    assert main(["fit-group", str(root / "networks"), str(tmp_path / "group"), *given]) == 0
    said = capsys.readouterr().out
    assert "4 participants, 0 left out; learned: positions of parcels, shrunk edges, guided edges. Group model:" in said
    assert "Edges were learned from 4 pairs of halves: edges of another day are shrunk too little" in said
    group = load_group(tmp_path / "group")
    assert group.subjects == ("01", "02", "03", "04") and group.hierarchy is None
    out = tmp_path / "out"
    asked = ["--participant-label", "01", "--group", str(tmp_path / "group")]
    assert main(["construct", str(root / "bids"), str(out), *given, *fixed, *asked]) == 0
    network = load_network(next(out.rglob("sub-01*_dseg.tsv")))
    assert network.provenance["group"] == GROUP_OF_FOUR | {"digest": group.digest}
    assert {"pearson", "shrunk", "guided"} == set(network.edges) and "pearson" in network.halves
    before = load_network(next((root / "networks").rglob("sub-01*_dseg.tsv")))
    assert (network.atlas_labels != before.atlas_labels).any()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dynamics_are_learned_where_they_are_asked_for(folder, tmp_path, capsys):
    root, given, _ = folder
    assert main(["fit-group", str(root / "networks"), str(tmp_path / "group"), *given, "--dynamics"]) == 0
    assert "guided edges, dynamics" in capsys.readouterr().out
    assert load_group(tmp_path / "group").hierarchy is not None


def test_a_folder_with_content_is_refused(folder, tmp_path, capsys):
    root, given, _ = folder
    (tmp_path / "notes.txt").touch()
    for out in (tmp_path, tmp_path / "notes.txt"):
        assert main(["fit-group", str(root / "networks"), str(out), *given]) == 1
        assert f"pnet fit-group: {out}: expected a new or empty folder for the group model" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_networks_of_another_atlas_alone_are_refused_with_the_atlases_there_are(folder, tmp_path, capsys):
    root, given, _ = folder
    assert main(["fit-group", str(root / "networks"), str(tmp_path / "group"), "--parcels", "100"]) == 1
    said = capsys.readouterr().err
    assert "expected networks of atlas geometric100 written by `pnet construct`, found only networks of toy; give the atlas" in said
    assert main(["fit-group", str(root / "bids"), str(tmp_path / "group"), *given]) == 1
    assert "expected networks of atlas toy written by `pnet construct`, found none" in capsys.readouterr().err
    assert not (tmp_path / "group").exists()


def test_a_damaged_network_is_left_out_and_named(folder, tmp_path, capsys):
    root, given, _ = folder
    copy = shutil.copytree(root / "networks", tmp_path / "networks")
    next(copy.rglob("sub-02*_desc-pnet_qc.json")).unlink()
    assert main(["fit-group", str(copy), str(tmp_path / "group"), *given]) == 1
    said = capsys.readouterr()
    assert "3 participants, 1 left out; learned: positions of parcels." in said.out
    assert "left out: " in said.err and "desc-pnet_qc.json: missing, or changed" in said.err
    assert load_group(tmp_path / "group").subjects == ("01", "03", "04")


def test_a_connectome_without_dynamics_is_a_mistake(folder, tmp_path, capsys):
    root, given, _ = folder
    assert main(["fit-group", str(root / "networks"), str(tmp_path / "group"), *given, "--structural", "table.csv"]) == 1
    assert "--structural informs the dynamics: add --dynamics" in capsys.readouterr().err
