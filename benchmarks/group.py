"""Effect of a group model on simulated participants who were not used to fit it.

Cohorts of 10, 30 and 100 participants are constructed, and the group model is learned from these networks (`fit_group`). Other participants
are constructed with and without it, and their parcels are compared with the true ones by the adjusted Rand index (ARI). Further measures:
held-out density S, DCBC on the second session, agreement of the parcels of both sessions, share of personalised parcellations, ARI of the
map that is returned otherwise, and connected pieces. The baseline is Ward clustering (scikit-learn, same number of parcels and signals).
`atlas`: the cohort's true group parcels. `displaced`: those of an atlas displaced by up to 4 mm, as for an atlas from other participants.

    python benchmarks/group.py --out benchmarks/results/group.json
"""

from __future__ import annotations

import time

import numpy as np
from common import average, parser, table, write
from scipy.sparse import csr_array
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

import pnet_jax
from pnet_jax.config import ConstructConfig, SimulateConfig
from pnet_jax.construction import Builder, build, resolve
from pnet_jax.evaluate.parcel_scores import Judge
from pnet_jax.parcellation.atlas import make_atlas
from pnet_jax.parcellation.harden import count_components
from pnet_jax.simulate import cleaned_scan, simulate_subject

DISPLACED_MM, WAVE_MM = 4.0, 25.0


def main() -> None:
    args = _arguments()
    figures = {}
    for tier in args.tiers:
        for atlas in ("atlas", "displaced"):
            figures |= one_cohort(args, tier, atlas == "displaced")
    columns = list(next(iter(figures.values())))
    table(("simulated", *columns), [(name, *(row.get(column, float("nan")) for column in columns)) for name, row in figures.items()])
    write(args, figures)


def one_cohort(args, tier: str, displaced: bool) -> dict[str, dict[str, float]]:
    """Compute the measures of the held-out participants for each cohort size."""
    most = max(args.sizes)
    config = SimulateConfig(subjects=most + args.left_out, sessions=2, tier=tier, minutes=args.minutes, seed=args.seed)
    first = simulate_subject(config, 0)
    space, xyz = first.space, np.array(first.space.xyz, np.float64)
    if displaced:
        xyz += DISPLACED_MM * np.stack([np.sin(xyz[:, (axis + 1) % 3] / WAVE_MM + axis) for axis in range(3)], 1)
    labels = first.group_labels + 1
    atlas = make_atlas(xyz, labels, resolution=space.resolution, hemisphere=space.hemisphere, source="group")
    plan = ConstructConfig(edges=())
    builder = Builder(resolve(plan, atlas=atlas))
    left_out = [simulate_subject(config, most + number) for number in range(args.left_out)]
    name = f"{tier}, {'displaced atlas' if displaced else 'atlas'}"
    figures = {
        f"{name}, one scan": average([score(one, builder) for one in left_out]),
        f"{name}, Ward": average([ward(one) for one in left_out]),
    }
    print(figures, flush=True)
    networks = []
    for size in sorted(args.sizes):
        start = time.perf_counter()
        while len(networks) < size:
            networks.append(construct(builder, simulate_subject(config, len(networks)).sessions[0]))
        group = pnet_jax.fit_group(networks, atlas)
        informed = Builder(resolve(plan, atlas=atlas, group=group))
        figures[f"{name}, group of {size}"] = average([score(one, informed) for one in left_out])
        print(size, figures[f"{name}, group of {size}"], f"{time.perf_counter() - start:.0f} s", flush=True)
    return figures


def construct(builder: Builder, session):
    return build([builder.ready(cleaned_scan(session))], builder)[0]


def score(subject, builder: Builder) -> dict[str, float]:
    """Compare the parcels of the first session, as decided, with the truth and the second session."""
    networks = [construct(builder, session) for session in subject.sessions]
    network, inside = networks[0], networks[0].labels >= 0
    chosen = network.qc.selection
    judge = Judge(cleaned_scan(subject.sessions[1]).y, subject.space, inside, network.n_parcels)
    return {
        "ARI": float(adjusted_rand_score(subject.labels[inside], network.labels[inside])),
        "S": chosen.score,
        "DCBC": judge(network.labels)["dcbc"],
        "agreement": float((network.labels == networks[1].labels)[inside].mean()),
        "ECE": float(calibration(network, subject.labels)),
        "personalised": float(chosen.decision == "personalised"),
        "ARI of the start": float(adjusted_rand_score(subject.labels[inside], network.atlas_labels[inside])),
        "pieces": float(count_components(network.labels, subject.space.neighbours, network.n_parcels).sum()),
    }


def calibration(network, truth) -> float:
    """Expected calibration error of the probabilities with respect to the true parcels, in ten bins."""
    inside = network.labels >= 0
    p, hit = network.confidence[inside], (network.labels == truth)[inside]
    at = np.minimum((p * 10).astype(int), 9)
    return np.abs(np.bincount(at, p, 10) - np.bincount(at, hit, 10)).sum() / len(p)


def ward(subject) -> dict[str, float]:
    """Ward clustering into the same number of contiguous parcels, from the signals of the first session alone."""
    space, scan = subject.space, cleaned_scan(subject.sessions[0])
    count = int(subject.group_labels.max()) + 1
    rows, columns = np.nonzero(space.neighbours >= 0)
    graph = csr_array((np.ones(len(rows)), (rows, space.neighbours[rows, columns])), shape=(len(space),) * 2)
    labels = AgglomerativeClustering(count, linkage="ward", connectivity=graph).fit_predict(scan.y)
    judge = Judge(cleaned_scan(subject.sessions[1]).y, space, scan.valid, count)
    pieces = count_components(labels.astype(np.int32), space.neighbours, count).sum()
    return {"ARI": float(adjusted_rand_score(subject.labels, labels)), "DCBC": judge(labels)["dcbc"], "pieces": float(pieces)}


def _arguments():
    arguments = parser(__doc__)
    arguments.add_argument("--tiers", nargs="+", default=["medium", "hard", "real"])
    arguments.add_argument("--sizes", nargs="+", type=int, default=[10, 30, 100])
    arguments.add_argument("--left-out", type=int, default=8)
    arguments.add_argument("--minutes", type=float, default=6.0)
    arguments.add_argument("--seed", type=int, default=50)
    return arguments.parse_args()


if __name__ == "__main__":
    main()
