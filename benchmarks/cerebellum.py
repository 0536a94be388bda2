"""Cerebellar parcels of held-out participants, estimated from one half of their task data and scored on the other half.

12 participants, 29 task conditions in each of two halves (betas, with the mean over conditions removed from every voxel). All participants
performed the same tasks, so conditions are axes common to all. For each participant, the group spatial model (K = 10, 20) is fitted to the
other 11. The participant's parcels are estimated from half 1 and their DCBC is computed on half 2, and vice versa.

The hyper-parameters of the participant's fit (kappa, k0) are those with the highest held-out log density among the other 11, each under a
group model of the remaining 10, so a participant has no influence on its own hyper-parameters. The density is that of one half's responses
under the parcels of the other half, with prototypes, concentration and temperature estimated on the scored half.

Rows, on the same voxels:

- personalised: the group model conditioned on the participant's half.
- as decided: personalised if the participant's half supports it, otherwise the group parcels. Both are estimated from 15 of the conditions
  of that half and scored on the other 14, and vice versa; the higher held-out log density decides. The same decision is made for
  smoothed white noise instead of the participant's responses, for which the group parcels are the correct choice.
- group: most probable parcels of the group model.
- others: mean score of the other participants' personalised parcels of the same half.
- k-means: k-means of the participant's half, without group model and spatial information.
- Ward: Ward clustering of the participant's half, with adjacent voxels only.

DCBC rewards fragments, so maps should be compared at similar numbers of connected pieces.

Takes about half an hour on two shared cores.

    python benchmarks/cerebellum.py --out benchmarks/results/cerebellum.json
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from common import CEREBELLUM, average, need, parser, table, write
from scipy.linalg import helmert
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import AgglomerativeClustering, KMeans

from pnet_jax.evaluate.parcel_scores import Judge
from pnet_jax.group.spatial import fit_participant, fit_spatial, start_model
from pnet_jax.ops.potts.chunked import match_table
from pnet_jax.parcellation.held_out import log_density
from pnet_jax.parcellation.mixture import normalise, soft_sums
from pnet_jax.parcellation.score import standardised
from pnet_jax.space import grid_space

MAPS = ("personalised", "as decided", "group", "others", "k-means", "Ward")
HALVES = ((0, 1), (1, 0))  # half for estimation, half for scoring
KAPPAS = (5.0, 10.0, 20.0, 40.0)
WEIGHTS = (10.0, 30.0, 100.0)  # k0
GRID = tuple(itertools.product(KAPPAS, WEIGHTS))
# Held-out data are scored at the best of these, so that the score depends on the positions of parcels and not on their certainty.
CONCENTRATIONS = tuple(np.geomspace(2, 60, 8).tolist())
TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 5.0)
EVEN, ODD = np.arange(0, 29, 2), np.arange(1, 29, 2)  # conditions


def main() -> None:
    args = _arguments()
    subjects, betas, valid, space = load(need(args.data, CEREBELLUM)[0])
    figures = {}
    for k in args.parcels:
        study = Study(betas, valid, space, k)
        rows = []
        for s, subject in enumerate(subjects):
            rows.append(study.one_participant(s))
            shown = "  ".join(f"{name} {rows[-1][name]:.4f}" for name in MAPS)
            print(f"{subject} K={k}: DCBC {shown}  kappa {rows[-1]['kappa']:g} k0 {rows[-1]['k0']:g}", flush=True)
        figures[f"K={k}"] = summary(rows) | {"participants": dict(zip(subjects, rows, strict=True))}
    report(figures, args.parcels, len(subjects))
    write(args, figures)


class Study:
    """Run all analyses for one number of parcels.

    Args:
      betas: Responses, mean over conditions 0, `[S, 2, V, 29]`.
      valid: Voxels with data, `[S, V]`.
      space: V voxels.
      k: Number of parcels.
    """

    def __init__(self, betas, valid, space, k):
        self.betas, self.valid, self.space, self.k = betas, valid, space, k
        self.y = np.stack([[standardised(half.copy()) for half in one] for one in betas])
        self.z, self.whole = embed(betas), embed(betas.mean(1))
        self.graph = adjacency(space)
        every = np.broadcast_to(np.arange(k, dtype=np.int32), (len(space), k))
        self.table = match_table(jnp.asarray(every), jnp.asarray(space.neighbours), n_parcels=k)
        self.group = functools.cache(self._group)
        self.scores = functools.cache(self._scores)

    def _group(self, *left_out):
        """Fit the group model to all but these participants, initialised by Ward clustering of their mean."""
        rest = [s for s in range(len(self.betas)) if s not in left_out]
        mean = self.whole[rest].sum(0)
        labels = ward(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-9), self.valid[rest].any(0), self.graph, self.k)
        start = start_model(labels, self.k, dimensions=mean.shape[1])
        return fit_spatial(start, [(self.whole[s : s + 1], self.valid[s : s + 1]) for s in rest], self.table).model

    def _scores(self, s, without):
        """Held-out log density of each setting for a participant, under the group model without this and another participant."""
        model = self.group(*sorted((s, without)))
        found = [_grid_scores(model, self.z[s, made], self.z[s, scored], self.valid[s]) for made, scored in HALVES]
        return np.mean(found, axis=0)

    def settings(self, s):
        """Select kappa and k0 for a participant on the other participants."""
        others = [i for i in range(len(self.betas)) if i != s]
        return GRID[int(np.mean([self.scores(i, s) for i in others], axis=0).argmax())]

    def one_participant(self, s):
        """Score every map on the half from which it was not estimated, averaged over both directions; also return the choices."""
        (kappa, k0), model, valid = self.settings(s), self.group(s), self.valid[s]
        others = [i for i in range(len(self.betas)) if i != s]
        group = np.asarray(model.log_prior).argmax(1)
        rows = []
        for made, scored in HALVES:
            judge = Judge(self.y[s, scored], self.space, valid, self.k)
            own = labels_of(model, self.z[s, made], valid, kappa, k0)
            gain, of_noise = (own_gain(model, x, valid, kappa, k0) for x in (self.betas[s, made], self.noise(s, made)))
            maps = {"personalised": own, "as decided": own if gain > 0 else group, "group": group}
            maps["k-means"] = kmeans(self.z[s, made], valid, self.k)
            maps["Ward"] = ward(self.y[s, made], valid, self.graph, self.k)
            row = {name: judge(labels)["dcbc"] for name, labels in maps.items()}
            row["others"] = float(
                np.mean([judge(labels_of(model, self.z[i, made], valid & self.valid[i], kappa, k0))["dcbc"] for i in others])
            )
            row |= {f"{name} pieces": pieces(np.where(valid, labels, -1), self.graph) for name, labels in maps.items()}
            row |= {"gain": gain, "decided personalised": float(gain > 0), "moved": float((own != group)[valid].mean())}
            row |= {"gain of noise": of_noise, "noise personalised": float(of_noise > 0)}
            rows.append(row)
        return average(rows) | {"kappa": kappa, "k0": k0}

    def noise(self, s, half):
        """White noise, smoothed over neighbours twice, instead of a participant's responses, `[V, 29]`."""
        x = np.random.default_rng([s, half]).normal(size=self.betas.shape[2:]).astype(np.float32)
        for _ in range(2):
            x = x + self.graph @ x / self.space.neighbours.shape[1]
        return np.where(self.valid[s][:, None], x - x.mean(1, keepdims=True), 0)


def labels_of(model, z, valid, kappa, k0):
    """Return a participant's most probable parcels, −1 without data, `[V]`."""
    q = _participant(model, z, valid, jnp.float32(kappa), jnp.float32(k0)).q
    return np.where(valid, np.asarray(q).argmax(1), -1)


_participant = jax.jit(lambda model, z, valid, kappa, k0: fit_participant(model, z, valid, kappa=kappa, k0=k0))


@jax.jit
def _grid_scores(model, made, scored, valid):
    """Mean log density of a participant's other half for each pair of kappa and k0."""

    def one(setting):
        return _density_of(fit_participant(model, made, valid, kappa=setting[0], k0=setting[1]).q, model.candidates, scored, valid)

    return jax.lax.map(one, jnp.asarray(GRID, jnp.float32))


def own_gain(model, betas, valid, kappa, k0):
    """Held-out log density of personalised over group parcels within one half of a participant, nats per voxel.

    Args:
      model: The group.
      betas: Responses of the half, `[V, 29]`.
      valid: Voxels with data, `[V]`.
      kappa, k0: Settings of the participant's fit.
    """
    conditions = np.asarray(model.prototypes) @ helmert(betas.shape[1])
    gains = []
    for made, scored in ((EVEN, ODD), (ODD, EVEN)):
        part = dataclasses.replace(model, prototypes=jnp.asarray(embed(conditions[:, made])))
        own = _participant(part, embed(betas[:, made]), valid, jnp.float32(kappa), jnp.float32(k0)).q
        z = embed(betas[:, scored])
        gains.append(
            float(_density_of(own, model.candidates, z, valid) - _density_of(jnp.exp(model.log_prior), model.candidates, z, valid))
        )
    return float(np.mean(gains))


@jax.jit
def _density_of(q, candidates, z, valid):
    """Mean log density of embeddings given probabilities and their prototypes, at the best temperature and concentration."""

    def at_temperature(temperature):
        p = jnp.where(valid[:, None], jax.nn.softmax(jnp.log(jnp.maximum(q, 1e-30)) / temperature, axis=1), 0)
        prototypes = normalise(soft_sums(p, candidates, z, candidates.shape[1])[0])

        def at_concentration(kappa):
            return jnp.where(valid, log_density(p, candidates, z, prototypes, kappa), 0).sum() / valid.sum()

        return jax.vmap(at_concentration)(jnp.asarray(CONCENTRATIONS, jnp.float32)).max()  # the cosines are computed once

    return jax.lax.map(at_temperature, jnp.asarray(TEMPERATURES, jnp.float32)).max()


def embed(betas):
    """Directions of the responses in the space of contrasts between conditions, with unit length, `[..., V, 28]`."""
    z = betas @ helmert(betas.shape[-1]).T.astype(np.float32)
    length = np.linalg.norm(z, axis=-1, keepdims=True)
    return (z / np.where(length > 0, length, 1)).astype(np.float32)


def adjacency(space):
    row, at = np.nonzero(space.neighbours >= 0)
    return coo_matrix((np.ones(len(row), np.float32), (row, space.neighbours[row, at])), shape=(len(space),) * 2).tocsr()


def ward(y, inside, graph, k):
    """Ward clustering of adjacent voxels, −1 outside, `[V]`."""
    here = np.flatnonzero(inside)
    labels = np.full(len(inside), -1)
    labels[here] = AgglomerativeClustering(k, linkage="ward", connectivity=graph[here][:, here]).fit_predict(y[here])
    return labels


def kmeans(z, inside, k):
    """k-means of embeddings, −1 outside, `[V]`."""
    labels = np.full(len(inside), -1)
    labels[inside] = KMeans(k, n_init=5, random_state=0).fit_predict(z[inside])
    return labels


def pieces(labels, graph):
    """Count the connected pieces of all parcels."""
    parts = (np.flatnonzero(labels == k) for k in range(labels.max() + 1))
    return float(sum(connected_components(graph[here][:, here], directed=False)[0] for here in parts if len(here)))


def summary(rows):
    """Compute means over participants, and paired tests of the first two maps against the others."""
    tests = {}
    for own in MAPS[:2]:
        tests[f"{own} over"] = {}
        for name in MAPS[2:]:
            gain = np.array([row[own] - row[name] for row in rows])
            tests[f"{own} over"][name] = {
                "gain": float(gain.mean()),
                "t_p": float(scipy.stats.ttest_1samp(gain, 0).pvalue),
                "wilcoxon_p": float(scipy.stats.wilcoxon(gain).pvalue),
                "better": int((gain > 0).sum()),
            }
    return {"mean": average(rows), **tests}


def report(figures, parcels, n):
    rows = [
        (name, *(figures[f"K={k}"]["mean"][entry] for k in parcels for entry in (name, f"{name} pieces") if entry != "others pieces"))
        for name in MAPS
    ]
    rows = [row if len(row) > len(parcels) + 1 else (row[0], *(x for score in row[1:] for x in (score, None))) for row in rows]
    table(("DCBC on the other half, mean of participants", *(x for k in parcels for x in (f"K={k}", "pieces"))), rows)
    for k in parcels:
        mean = figures[f"K={k}"]["mean"]
        print(f"K={k} decided personalised: {mean['decided personalised']:.0%} of halves, {mean['noise personalised']:.0%} of noise")
    for k, own in itertools.product(parcels, MAPS[:2]):
        for name, test in figures[f"K={k}"][f"{own} over"].items():
            print(f"K={k} {own} - {name}: {test['gain']:+.4f}, better in {test['better']} of {n}, paired t p = {test['t_p']:.2g}")


def load(file):
    """Return subjects, betas `[S, 2, V, 29]` minus the mean over the conditions of a half, voxels with data `[S, V]`, and the Space."""
    data = np.load(file)
    mask = np.zeros(data["volume_shape"], bool)
    mask[tuple(data["voxel_ijk"].T)] = True
    space = grid_space(mask, data["affine"], name="SUIT")
    column = np.full(mask.shape, -1)
    column[tuple(data["voxel_ijk"].T)] = np.arange(len(space))
    order = column[tuple(space.grid.ijk.T)]
    halves = [data["betas"][:, data["half"] == half][..., order].astype(np.float32) for half in (1, 2)]
    betas = np.stack(halves, 1)
    betas = (betas - betas.mean(2, keepdims=True)).swapaxes(2, 3)
    valid = np.isfinite(betas).all((1, 3)) & (np.square(betas).sum(3) > 0).all(1)
    return data["subject"].tolist(), np.where(valid[:, None, :, None], betas, 0), valid, space


def _arguments():
    arguments = parser(__doc__)
    arguments.add_argument("--parcels", nargs="+", type=int, default=[10, 20])
    return arguments.parse_args()


if __name__ == "__main__":
    main()
