"""What fine-tuning with dynamics, and the layers of the edges, change: simulated people with and without, and what a wave costs.

A cohort shares its group parcels. From some of its people the dynamics of all and the layers are learned; the others are constructed from
session 1 with and without dynamics. Parcels: adjusted Rand index to the person's own, DCBC on session 2. Edges, against the closed-form
truth: correlation over edges of Fisher z; the individual part, which is what is left without the mean over people; 1 − portrait divergence
to the truth (hops, 15 % of the edges with a spanning tree). Dynamics: share of the people whose own foretell held-out time better than the
group's, and by how much (log-likelihood a parcel and a bin).

    python benchmarks/personalization.py simulated --tiers medium hard --out benchmarks/results/personalization.json
    python benchmarks/personalization.py cost --wave 8
"""

from __future__ import annotations

import time

import jax
import numpy as np
from common import parser, table, write
from sklearn.metrics import adjusted_rand_score

import pnet_jax
from pnet_jax import parallel
from pnet_jax.config import ConstructConfig, PersonalizeConfig, SimulateConfig
from pnet_jax.construction import begin, parcel_signals
from pnet_jax.dynamics import correlation, from_jacobian
from pnet_jax.edges import compute
from pnet_jax.evaluate.parcellation import Judge
from pnet_jax.finetune import fine_tune, make_subject, stacked
from pnet_jax.finetune.person import dynamics_prior
from pnet_jax.ops.portrait import portrait_divergence
from pnet_jax.parcellation.prior import make_prior
from pnet_jax.people import fit_people
from pnet_jax.personalization import member, memory_of
from pnet_jax.simulate import cleaned_scan, simulate_cohort

FD_MM = 0.5
EDGES = ("fixed parcels", "raw", "raw, with dynamics", "shrunk", "guided", "dynamics")


def main() -> None:
    args = _arguments()
    figures = {}
    if args.what == "cost":
        figures["cost"] = row = cost(args)
        table(tuple(row), [tuple(row.values())])
    else:
        for tier in args.tiers:
            figures[tier] = simulated(args, tier)
    write(args, figures)


def simulated(args, tier: str) -> dict[str, object]:
    """One cohort: figures of parcels, edges and dynamics, averaged over the people that nothing was learned from."""
    model, people, rest, prior = _cohort(args, tier)
    plain, informed = ConstructConfig(), ConstructConfig(dynamics=True)
    rows, edges, truths = [], {name: [] for name in EDGES}, []
    for person in rest:
        start = time.perf_counter()
        first, second = (_scan(args, session) for session in person.sessions)
        networks = {
            "without": pnet_jax.construct(first, prior=prior, model=model, config=plain),
            "with": pnet_jax.construct(first, prior=prior, model=model, config=informed, people=people),
        }
        judge = Judge(second.y, person.space, second.valid, prior.n_parcels)
        maps = {"prior": networks["with"].prior_labels} | {name: network.labels for name, network in networks.items()}
        row = {f"{name}: ARI": adjusted_rand_score(person.labels, labels) for name, labels in maps.items()}
        row |= {f"{name}: DCBC": judge(labels)["dcbc"] for name, labels in maps.items()}
        report = networks["with"].qc["dynamics"]
        row["kept"] = float(report["parcels"]["kept"])
        row["foretold"] = float(report["fit"]["ok"])
        row["gain"] = report["fit"]["prior_held_out"] - report["fit"]["held_out"]
        rows.append(row)
        truths.append(person.true_fc)
        for name, found in _edges(first, networks, prior).items():
            edges[name].append(found)
        print(f"{tier}, {person.subject}: {time.perf_counter() - start:.0f} s", flush=True)
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    scored = {name: _against(np.stack(found), np.stack(truths)) for name, found in edges.items()}
    table(
        (f"{tier}, {len(rest)} people", "ARI", "DCBC"), [(n, mean[f"{n}: ARI"], mean[f"{n}: DCBC"]) for n in ("prior", "without", "with")]
    )
    print(f"own dynamics better on held-out time in {mean['foretold']:.0%}, by {mean['gain']:.4f}; parcels kept in {mean['kept']:.0%}")
    table(("edges", *scored["raw"]), [(name, *scores.values()) for name, scores in scored.items()])
    return {"people": len(rest), "parcels": mean, "edges": scored}


def _scan(args, session):
    return cleaned_scan(session, fd_threshold=FD_MM if args.scrub else None, wide=True)


def _cohort(args, tier: str):
    """Model, what is learned from the first people, and the others; all of one group."""
    sizes = {"subjects": args.others + args.people, "sessions": 2}
    config = SimulateConfig(**sizes, tier=tier, parcels=args.parcels, minutes=args.minutes, seed=args.seed)
    members, rest, prior = [], [], None
    for number, person in enumerate(simulate_cohort(config)):
        space = person.space
        if prior is None:
            prior = make_prior(space.xyz, person.group_labels + 1, resolution=space.resolution, hemisphere=space.hemisphere, source="group")
        if number < args.others:
            members.append(member(_scan(args, person.sessions[0]), prior))
        else:
            rest.append(person)
    return pnet_jax.load_model(args.checkpoint), fit_people(members, prior.digest), rest, prior


def _edges(scan, networks, prior) -> dict[str, np.ndarray]:
    fixed = compute("pearson", parcel_signals(scan.y, networks["with"].prior_labels, prior.n_parcels))
    coupling = np.asarray(networks["with"].edges["coupling"], np.float64)
    present = np.isfinite(coupling).all(1)
    model = np.full(coupling.shape, np.nan)
    symmetric = (coupling[np.ix_(present, present)] + coupling[np.ix_(present, present)].T) / 2
    model[np.ix_(present, present)] = correlation(from_jacobian(symmetric))
    layers = {name: networks["with"].edges[name] for name in ("shrunk", "guided")}
    raw = {"raw": networks["without"].edges["pearson"], "raw, with dynamics": networks["with"].edges["pearson"]}
    return {"fixed parcels": fixed, **raw, **layers, "dynamics": model}


def _against(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Figures of people's edges against their truth, `[S, K, K]` each."""
    upper = np.triu_indices(found.shape[-1], 1)
    z, t = (np.arctanh(np.clip(x[:, *upper], -0.99, 0.99)) for x in (found, truth))
    known = np.isfinite(z).all(0)
    z, t = z[:, known], t[:, known]
    whole = [np.corrcoef(a, b)[0, 1] for a, b in zip(z, t, strict=True)]
    own = [np.corrcoef(a, b)[0, 1] for a, b in zip(z - z.mean(0), t - t.mean(0), strict=True)]
    pairs = np.stack([np.arange(len(found)), len(found) + np.arange(len(found))], 1)
    graphs = np.nan_to_num(np.concatenate([found, truth])).astype(np.float32)
    apart = portrait_divergence(np.clip((graphs + graphs.swapaxes(1, 2)) / 2, -1, 1), pairs=pairs).divergence
    return {"r": float(np.mean(whole)), "individual r": float(np.mean(own)), "1 - PDiv": float(1 - np.asarray(apart).mean())}


def cost(args) -> dict[str, float]:
    """Seconds a subject in a full wave, compiled before, and the most memory a subject's arrays take."""
    args.others, args.people = 3, 1
    model, people, rest, prior = _cohort(args, "medium")
    config, scan = PersonalizeConfig(), _scan(args, rest[0].sessions[0])
    start = begin(scan, model, prior, ConstructConfig())
    s = start.selection
    before = time.perf_counter()
    subject = make_subject(scan, start.placed, model, start.q, kappa=s.kappa_scan, beta=s.beta, config=config)
    made = time.perf_counter() - before
    own = dynamics_prior(people.hierarchy, prior, config)
    mesh = parallel.make_mesh()
    step = parallel.over_subjects(lambda prior, subject: fine_tune(prior, subject, config), mesh, shared=1)
    wave = stacked([subject] * args.wave)
    before = time.perf_counter()
    compiled = step.lower(own, wave).compile()
    compiling = time.perf_counter() - before
    seconds = []
    for _ in range(2):
        before = time.perf_counter()
        jax.block_until_ready(compiled(own, wave))
        seconds.append(time.perf_counter() - before)
    memory = compiled.memory_analysis()
    return {
        "locations": len(subject.x),
        "frames": scan.y.shape[1],
        "parcels": prior.n_parcels,
        "wave": args.wave,
        "seconds to prepare": made,
        "seconds to compile": compiling,
        "seconds a subject": min(seconds) / args.wave,
        "MB a subject": (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / args.wave / 2**20,
        "MB foretold": memory_of(subject) / 2**20,
    }


def _arguments():
    arguments = parser(__doc__, data=False)
    arguments.add_argument("what", choices=("simulated", "cost"))
    arguments.add_argument("--tiers", nargs="+", default=["medium", "hard"], choices=("easy", "medium", "hard"))
    arguments.add_argument("--people", type=int, default=5, help="that are scored")
    arguments.add_argument("--others", type=int, default=8, help="that dynamics and layers are learned from")
    arguments.add_argument("--parcels", type=int, default=100)
    arguments.add_argument("--minutes", type=float, default=10.0)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--scrub", action="store_true", help=f"drop frames with a displacement above {FD_MM} mm")
    arguments.add_argument("--wave", type=int, default=8)
    arguments.add_argument("--checkpoint", default="pnet-linear", help="model name or checkpoint folder")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
