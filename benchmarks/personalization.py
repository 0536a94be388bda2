"""Effect of fine-tuning with dynamics, and of shrunk and guided edges, on simulated participants; and cost of a wave.

Participants of a cohort share group parcels. Dynamics and edge priors are learned from the networks of some participants (`fit_group`,
without the spatial prior, which `group.py` measures); the others are constructed from each of two sessions, with and without dynamics.
Parcels: adjusted Rand index with the true parcels, DCBC on session 2. Edges are compared with the closed-form truth: correlation over edges
of Fisher z; correlation of the individual part, which remains after removal of the mean over participants; 1 − portrait divergence (hops,
15 % of the edges with a spanning tree). Dynamics: share of participants whose individual dynamics predict held-out time better than the
group's, and the gain (log-likelihood per parcel and frequency bin): the end of session 1, also used for early stopping, and session 2, not
used for stopping, in the parcels of session 1. Sessions: participants are identified if their labels (Dice) and edges (correlation beyond
the mean of others) are most similar to those of their other session; ICC(1,1) is the median over edges.

Values are means over `--seeds` cohorts, with the standard deviation over cohorts. `--go-on` reuses the cohorts in `--out`.

    python benchmarks/personalization.py simulated --tiers medium hard --out benchmarks/results/personalization.json
    python benchmarks/personalization.py cost --wave 8
"""

from __future__ import annotations

import dataclasses
import json
import time

import jax
import numpy as np
from common import average, given, parser, table, write
from sessions import score
from sklearn.metrics import adjusted_rand_score

import pnet_jax
from pnet_jax import parallel
from pnet_jax.config import ConstructConfig, PersonalizeConfig, SimulateConfig
from pnet_jax.construction import Builder, build, resolve
from pnet_jax.construction.informed import tunable
from pnet_jax.dynamics import correlation, frequency_bins, from_jacobian, negative_log_likelihood, spectra, standardise
from pnet_jax.edges import compute, layers
from pnet_jax.evaluate.parcel_scores import Judge
from pnet_jax.finetune import fine_tune, stacked
from pnet_jax.finetune.person import dynamics_of, dynamics_prior
from pnet_jax.group.fit import fit_group
from pnet_jax.network import Network
from pnet_jax.ops.portrait import portrait_divergence
from pnet_jax.parcellation.atlas import make_atlas
from pnet_jax.parcellation.signals import parcel_signals
from pnet_jax.personalization import memory_of
from pnet_jax.simulate import cleaned_scan, simulate_cohort

FD_MM = 0.5
EDGES = ("fixed parcels", "raw", "raw, with dynamics", "shrunk", "guided, raw view", "guided", "dynamics")
LAYERS = ("fixed parcels", "raw", "shrunk", "guided, raw view", "guided")  # scored between sessions
likelihood = jax.jit(negative_log_likelihood)


def main() -> None:
    args = _arguments()
    if args.what == "cost":
        row = cost(args)
        table(tuple(row), [tuple(row.values())])
        write(args, {"cost": row})
        return
    cohorts, figures = _standing(args), {}
    for tier in args.tiers:
        made = cohorts.setdefault(tier, {})
        for seed in map(str, range(args.seed, args.seed + args.seeds)):
            if seed not in made:
                made[seed] = simulated(args, tier, int(seed))
                write(args, figures | {"cohorts": cohorts})
        wanted = [made[str(seed)] for seed in range(args.seed, args.seed + args.seeds)]
        figures[tier] = {"participants": args.participants, "cohorts": len(wanted)} | _over_cohorts(wanted)
        _show(tier, figures[tier])
    write(args, figures | {"cohorts": cohorts})


def _standing(args) -> dict[str, dict[str, dict]]:
    """Return cohorts by tier and seed from an earlier run with the same arguments."""
    if not (args.go_on and args.out is not None and args.out.is_file()):
        return {}
    found, free = json.loads(args.out.read_text()), ("seed", "seeds", "tiers", "go_on")
    before, now = ({key: value for key, value in some.items() if key not in free} for some in (found["arguments"], given(args)))
    if before != now:
        raise SystemExit(f"{args.out.name} was made with other arguments: expected {now}, found {before}; leave out --go-on")
    return found["figures"]["cohorts"]


def _over_cohorts(cohorts: list[dict]) -> dict[str, dict]:
    """Compute the mean of each measure, and under `sd` its standard deviation over the cohorts (0 for one)."""
    return _each(np.mean, cohorts) | {"sd": _each(lambda values: np.std(values, ddof=1) if len(values) > 1 else 0.0, cohorts)}


def _each(reduce, figures: list):
    if isinstance(figures[0], dict):
        return {name: _each(reduce, [one[name] for one in figures]) for name in figures[0]}
    return float(reduce(figures))


def _show(tier: str, found: dict) -> None:
    def cells(*path):
        mean, sd = found, found["sd"]
        for key in path:
            mean, sd = mean[key], sd[key]
        return [f"{value:.3f} ± {sd[name]:.3f}" for name, value in mean.items()]

    head = f"{tier}, {found['cohorts']} cohorts of {found['participants']} participants"
    maps = tuple(found["parcels"])
    table((head, *found["parcels"]["prior"]), [(name, *cells("parcels", name)) for name in maps])
    table(("labels between sessions", *found["labels"]["with"]), [(name, *cells("labels", name)) for name in found["labels"]])
    table(("dynamics", *found["dynamics"]), [("", *cells("dynamics"))])
    table(("edges and the truth", *found["edges"]["raw"]), [(name, *cells("edges", name)) for name in EDGES])
    table(("edges of the other session", *found["sessions"]["raw"]), [(name, *cells("sessions", name)) for name in LAYERS])
    print(flush=True)


def simulated(args, tier: str, seed: int) -> dict[str, dict]:
    """Compute measures of parcels, edges and dynamics for one cohort, averaged over the participants that were not used for learning."""
    model, group, rest, prior = _cohort(args, tier, seed)
    maps: dict[str, list] = {"prior": [], "without": [], "with": []}
    labels: dict[str, list] = {"without": [], "with": []}
    edges: dict[str, list] = {name: [] for name in EDGES}
    dynamics = []
    for participant in rest:
        start = time.perf_counter()
        scans = [_scan(args, session) for session in participant.sessions]
        networks = [_networks(scan, prior, model, group) for scan in scans]
        first = networks[0]
        judge = Judge(scans[1].y, participant.space, scans[1].valid, prior.n_parcels)
        for name, own in {"prior": first["with"].atlas_labels, "without": first["without"].labels, "with": first["with"].labels}.items():
            maps[name].append({"ARI": adjusted_rand_score(participant.labels, own), "DCBC": judge(own)["dcbc"]})
        for name, both in labels.items():
            both.append([network[name].labels for network in networks])
        report = first["with"].qc.dynamics
        row = {"parcels kept": float(report["parcels"]["kept"]), "better at the end": float(report["fit"]["ok"])}
        row["gain at the end"] = report["fit"]["prior_held_out"] - report["fit"]["held_out"]
        dynamics.append(row | next_session(*scans, first["with"], group, prior))
        found = [_edges(scan, network, prior, group) for scan, network in zip(scans, networks, strict=True)]
        for name, both in edges.items():
            both.append([one[name] for one in found])
        print(f"{tier} {seed}, {participant.subject}: {time.perf_counter() - start:.0f} s", flush=True)
    truths = np.stack([participant.true_fc for participant in rest])
    return {
        "parcels": {name: average(rows) for name, rows in maps.items()},
        "labels": {name: _told_apart(np.stack(both), prior.n_parcels) for name, both in labels.items()},
        "dynamics": average(dynamics),
        "edges": {name: against(np.stack(both)[:, 0], truths) for name, both in edges.items()},
        "sessions": _between_sessions({name: np.stack(edges[name]) for name in LAYERS}, np.asarray(group.shrinkage.mean)),
    }


def _networks(scan, prior, model, group) -> dict[str, Network]:
    return {
        "without": pnet_jax.construct(scan, atlas=prior, model=model, config=ConstructConfig()),
        "with": pnet_jax.construct(scan, atlas=prior, model=model, config=ConstructConfig(dynamics=True), group=group),
    }


def next_session(first, second, network, group, prior) -> dict[str, float]:
    """Score the prediction of session 2 by dynamics fitted to session 1, in the same parcels, compared with the group's.

    Session 2 is scaled to unit power for both, since its units are arbitrary.
    """
    config = PersonalizeConfig()
    there = np.asarray(parcel_signals(second.y, network.labels, prior.n_parcels))
    here = np.where(np.isfinite(there).all(1)[:, None], network.signals, np.nan)
    present = np.flatnonzero(np.isfinite(here).all(1))
    expected = dynamics_prior(group.hierarchy, prior, config)
    own = dynamics_of(first, here, expected, config).fit.params
    common = expected.mean._replace(coupling=expected.mean.coupling[np.ix_(present, present)])
    bins = frequency_bins(np.ones(second.y.shape[1], bool), second.tr, frames=second.frames, filtered=second.band)
    seen = standardise(spectra(there[present], bins))
    levels = common._replace(log_sigma_x=own.log_sigma_x, log_sigma_e=own.log_sigma_e, delay=own.delay)
    personal, all_of_them, in_between = (float(likelihood(params, seen)) for params in (own, common, levels))
    return {
        "better in session 2": float(personal < all_of_them),
        "gain in session 2": all_of_them - personal,
        "gain beyond own levels": in_between - personal,
    }


def _told_apart(labels: np.ndarray, n_parcels: int) -> dict[str, float]:
    """Dice of participants' labels `[S, 2, V]` between sessions, averaged over parcels: within, between, and identification."""
    parcels = [labels[:, session, None, :] == np.arange(n_parcels)[:, None] for session in (0, 1)]  # [S, K, V] each
    both = np.einsum("skv,tkv->stk", *(one.astype(np.float32) for one in parcels))
    size = [one.sum(-1) for one in parcels]
    dice = (2 * both / np.maximum(size[0][:, None] + size[1][None], 1)).mean(-1)
    apart = ~np.eye(len(dice), dtype=bool)
    found = (dice.argmax(1) == np.arange(len(dice))).mean()
    return {"own Dice": float(np.diagonal(dice).mean()), "others' Dice": float(dice[apart].mean()), "identification": float(found)}


def _between_sessions(edges: dict[str, np.ndarray], mean: np.ndarray) -> dict[str, dict[str, float]]:
    """Compare edges `[S, 2, K, K]` with the raw ones of the other session, after removal of the training mean."""
    upper = np.triu_indices(len(mean), 1)
    z = {name: np.arctanh(np.clip(found[:, :, *upper], -0.99, 0.99)) for name, found in edges.items()}
    known = np.isfinite(mean[upper]) & np.all([np.isfinite(found).all((0, 1)) for found in z.values()], 0)
    centre = np.broadcast_to(mean[upper][known], z["raw"][..., known].shape)
    return {name: score(found[..., known], z["raw"][..., known], centre) for name, found in z.items()}


def _scan(args, session):
    return cleaned_scan(session, fd_threshold=FD_MM if args.scrub else None, wide=True)


def _cohort(args, tier: str, seed: int):
    """Return the model, the group learned from the first participants, and the other participants, all from one simulated group."""
    sizes = {"subjects": args.others + args.participants, "sessions": 2}
    config = SimulateConfig(**sizes, tier=tier, parcels=args.parcels, minutes=args.minutes, seed=seed)
    networks, rest, prior = [], [], None
    model = pnet_jax.load_model(args.checkpoint)
    for number, participant in enumerate(simulate_cohort(config)):
        space = participant.space
        if prior is None:
            prior = make_atlas(
                space.xyz, participant.group_labels + 1, resolution=space.resolution, hemisphere=space.hemisphere, source="group"
            )
            builder = Builder(resolve(ConstructConfig(), atlas=prior, model=model))
        if number < args.others:
            networks.append(build([builder.ready(_scan(args, participant.sessions[0]))], builder)[0])
        else:
            rest.append(participant)
    group = dataclasses.replace(fit_group(networks, prior, dynamics=True), spatial=None)
    return model, group, rest, prior


def _edges(scan, networks, prior, group) -> dict[str, np.ndarray]:
    fixed = compute("pearson", np.asarray(parcel_signals(scan.y, networks["with"].atlas_labels, prior.n_parcels)))
    coupling = np.asarray(networks["with"].edges["coupling"], np.float64)
    present = np.isfinite(coupling).all(1)
    model = np.full(coupling.shape, np.nan)
    symmetric = (coupling[np.ix_(present, present)] + coupling[np.ix_(present, present)].T) / 2
    model[np.ix_(present, present)] = correlation(from_jacobian(symmetric))
    made = {name: networks["with"].edges[name] for name in ("shrunk", "guided")}
    raw_view = layers(networks["with"].edges["pearson"], networks["with"].qc.n_eff, group.shrinkage, group.guide)
    made["guided, raw view"] = raw_view["guided"].edges
    raw = {"raw": networks["without"].edges["pearson"], "raw, with dynamics": networks["with"].edges["pearson"]}
    return {"fixed parcels": fixed, **raw, **made, "dynamics": model}


def against(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Compare participants' edges with their truth, `[S, K, K]` each."""
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
    """Measure the seconds per subject in a full wave, after compilation, and the peak memory of a subject's arrays."""
    args.others, args.participants = 3, 1
    model, group, rest, prior = _cohort(args, "medium", args.seed)
    config, scan = PersonalizeConfig(), _scan(args, rest[0].sessions[0])
    before = time.perf_counter()
    builder = Builder(resolve(ConstructConfig(), atlas=prior, model=model))
    _, subject = tunable(builder.ready(scan), builder, config)
    made = time.perf_counter() - before
    own = dynamics_prior(group.hierarchy, prior, config)
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
        "MB predicted": memory_of(subject) / 2**20,
    }


def _arguments():
    arguments = parser(__doc__, data=False)
    arguments.add_argument("what", choices=("simulated", "cost"))
    arguments.add_argument("--tiers", nargs="+", default=["medium", "hard"], choices=("easy", "medium", "hard", "real"))
    arguments.add_argument("--participants", type=int, default=5, help="that are scored")
    arguments.add_argument("--others", type=int, default=8, help="that dynamics and layers are learned from")
    arguments.add_argument("--parcels", type=int, default=100)
    arguments.add_argument("--minutes", type=float, default=10.0)
    arguments.add_argument("--seed", type=int, default=0, help="of the first cohort")
    arguments.add_argument("--seeds", type=int, default=1, help="cohorts")
    arguments.add_argument("--go-on", action="store_true", help="take the cohorts that --out has already, made with the same arguments")
    arguments.add_argument("--scrub", action="store_true", help=f"drop frames with a displacement above {FD_MM} mm")
    arguments.add_argument("--wave", type=int, default=8)
    arguments.add_argument("--checkpoint", default="pnet-linear", help="model name or checkpoint folder")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
