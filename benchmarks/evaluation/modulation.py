"""Virtual modulation where the truth is known, and the protocol for measured stimulation on patients with Parkinson's disease.

`planted`: signals of 20 patients and 20 controls (K parcels, 10 min at TR 2 s, white noise beside them), whose coupling is a simulated
brain's with a lesion of one node, or with the couplings among eight nodes weakened and among six others strengthened. AUC: how well the
predicted shift tells planted targets from all others, in the ranking pooled over patients and in each patient. For the two circuits it is
also given apart, by the direction that undoes the disease (increase among the weakened, decrease among the strengthened), and for pairs of
target and direction ("signed"). Recovery: mean shift at the planted targets over that of a random target, at equal energy.

`parcels`: whole simulated recordings of the lesion, with parcels of the group (fixed atlas), personalised ones, and the true ones.

`measured`: patients with deep brain stimulation, two runs OFF and two ON: the protocol as it stands, and with the model's own change
injected into runs without a contrast of stimulation (positive control).

    python benchmarks/evaluation/modulation.py planted parcels measured --out benchmarks/results/evaluation_modulation.json
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import average, need, parser, table, write

import pnet_jax
from pnet_jax.cohort import Cohort, view_of
from pnet_jax.config import ConstructConfig, SimulateConfig
from pnet_jax.evaluate import Runs, measured_modulation
from pnet_jax.evaluate.modulation_fold import CONTROL, GROUP, MATCHED, OWN, RANDOM, RULES, SPREADING, Setting
from pnet_jax.evaluate.questions.modulation import prepare, score_patients, shuffled
from pnet_jax.evaluate.questions.modulation_measured import with_injected
from pnet_jax.parcellation.atlas import make_atlas
from pnet_jax.parcellation.signals import parcel_signals
from pnet_jax.simulate import cleaned_scan, coupling, disease, dynamics, simulate_subject
from pnet_jax.simulate.cohort import group_truth

PARTS = ("planted", "parcels", "measured")
RUNS = "pd_dbs_onoff_fc/pd_dbs_motor_fc_float16.npz"
FRAMES, TR, NOISE = 300, 2.0, 0.6
SHAM_PATIENTS = 5
BAND = (0.009, 0.1)
INJECTED = (("noise", 1.0), ("noise", 3.0), ("noise", 10.0), ("local", 3.0))
PARCELS = ("fixed atlas", "personalised", "true parcels")


def main() -> None:
    args = _arguments()
    figures = {}
    for part in args.parts:
        start = time.perf_counter()
        figures[part] = globals()[part](args)
        print(f"{part}: {time.perf_counter() - start:.0f} s\n", flush=True)
    write(args, figures)


def planted(args):
    out = {}
    for disease_kind in ("lesion", "circuits"):
        for kind in args.kinds:
            seeds = [_planted(args, disease_kind, kind, seed) for seed in range(args.seeds)]
            mean = average(seeds)
            out[f"{disease_kind}, {kind}"] = {"mean": mean, "seeds": seeds}
    for name, values in out.items():
        table((name, "mean over cohorts"), [(key, float(value)) for key, value in values["mean"].items()])
    return out


def _planted(args, disease_kind: str, kind: str, seed: int) -> dict[str, float]:
    cohort, plan = planted_cohort(args.parcels, args.participants, disease_kind, seed)
    setting = prepare(cohort, "group", positive="patient", kind=kind, seed=seed)[0]
    scores = scored(setting, plan, disease_kind)
    if args.sham:
        null = [shuffled(setting, SHAM_PATIENTS, number)[RULES.index(OWN)] for number in range(args.sham)]
        scores |= {"sham, standard deviations": float(np.mean(null)), "largest sham": float(np.max(null))}
    print(f"{disease_kind}, {kind}, seed {seed}: " + "  ".join(f"{k} {v:.2f}" for k, v in scores.items()), flush=True)
    return scores


def planted_cohort(parcels: int, participants: int, kind: str, seed: int) -> tuple[Cohort, disease.Plan]:
    """Parcel signals of a simulated cohort without any image; patients and controls in turn."""
    truth, rng = group_truth(4, parcels, seed), np.random.default_rng([seed, 1])
    signals = np.empty((participants, parcels, FRAMES), np.float32)
    for s in range(participants):
        weights, _ = coupling.subject_coupling(truth.coupling, rng)
        own = disease.with_disease(coupling.normalise(weights), truth.plan, float(s % 2), kind)
        model = dynamics.linear_model(coupling.jacobian(own), delay=dynamics.HRF_DELAY_SD_SECONDS * rng.normal())
        signals[s] = dynamics.sample(model, rng, tr=TR, frames=FRAMES) + NOISE * rng.normal(size=(parcels, FRAMES))
    frames = np.tile(np.arange(FRAMES, dtype=np.int32), (participants, 1))
    return cohort_of_signals(signals, frames, np.full(participants, TR), np.arange(participants) % 2 == 1, (None, None)), truth.plan


def cohort_of_signals(signals, frames, tr, patient, filtered) -> Cohort:
    """Cohort whose edges are Pearson's in the band."""
    from scipy.signal import butter, sosfiltfilt

    n, k = signals.shape[:2]
    edges = np.empty((n, k, k), np.float32)
    for s in range(n):
        y = signals[s][:, frames[s] >= 0].astype(float)
        if filtered[1] is None:
            y = sosfiltfilt(butter(5, BAND, "bandpass", fs=1 / tr[s], output="sos"), y)
        edges[s] = np.corrcoef(y)
    label = np.array([f"{s + 1:03d}" for s in range(n)])
    return Cohort(
        table={"scan": label, "subject": label, "group": np.where(patient, "patient", "control"), "tr": np.asarray(tr, float)},
        edges={"pearson": edges},
        views={"pearson": view_of("pearson")},
        coverage=np.ones((n, k), np.float32),
        ids=np.arange(1, k + 1),
        names=tuple(f"parcel {j + 1}" for j in range(k)),
        hemispheres=("L",) * (k // 2) + ("R",) * (k - k // 2),
        atlas={"source": "simulated", "digest": ""},
        signals=signals,
        frames=frames,
        provenance={"cleaning": {"high_pass": filtered[0], "low_pass": filtered[1]}},
    )


def scored(setting: Setting, plan: disease.Plan, disease_kind: str) -> dict[str, float]:
    """AUC of the planted targets and recovery by every rule."""
    found, _ = score_patients(setting)
    shift = np.array([one.shift for one in found])  # [P, N, 2]
    up = 0 if setting.kind == "local" else 1  # less decay, or more coupling, makes up for weakened links
    weak, strong = ([plan.lesion], []) if disease_kind == "lesion" else (plan.weak, plan.strong)
    nodes, pooled = np.concatenate([weak, strong]).astype(int), shift.mean(0)
    n = shift.shape[1]

    def signed(one):
        return auc(np.concatenate([one[:, up], one[:, 1 - up]]), np.concatenate([weak, n + np.asarray(strong, int)]).astype(int))

    out = {
        "AUC pooled": auc(pooled.max(1), nodes),
        "AUC individual": np.mean([auc(one.max(1), nodes) for one in shift]),
        "AUC pooled, signed": signed(pooled),
        "AUC individual, signed": np.mean([signed(one) for one in shift]),
    }
    if len(strong):
        out |= {"AUC pooled, weakened": auc(pooled[:, up], weak), "AUC pooled, strengthened": auc(pooled[:, 1 - up], strong)}
        out["AUC individual, weakened"] = np.mean([auc(one[:, up], weak) for one in shift])
        out["AUC individual, strengthened"] = np.mean([auc(one[:, 1 - up], strong) for one in shift])
    best = pooled.max(1)
    out |= {
        "shift at planted": best[nodes].mean(),
        "shift at a random target": best.mean(),
        "planted over random": best[nodes].mean() / best.mean(),
    }
    rules, sd = (np.mean([one.rules[:, k] for one in found], 0) for k in (0, 1))
    out |= {f"shift by {rule}": rules[RULES.index(rule)] for rule in (OWN, GROUP, RANDOM, MATCHED, SPREADING, CONTROL)}
    out["own, standard deviations"] = sd[RULES.index(OWN)]
    return {name: float(value) for name, value in out.items()}


def auc(values: np.ndarray, positive: np.ndarray) -> float:
    """How well values tell the positive ones from all others."""
    hit = np.isin(np.arange(len(values)), positive)
    ranks = rankdata(values)[hit].sum()
    return float((ranks - hit.sum() * (hit.sum() + 1) / 2) / (hit.sum() * (~hit).sum()))


def parcels(args):
    out = {}
    for seed in range(args.parcel_seeds):
        made = [_recording(args, number, seed) for number in range(args.recordings)]
        plan = group_truth(4, args.parcels, seed).plan
        patient = np.array([one["patient"] for one in made])
        longest = max(one["frames"].shape[0] for one in made)
        frames = np.stack([np.pad(one["frames"], (0, longest - len(one["frames"])), constant_values=-1) for one in made]).astype(np.int32)
        for name in PARCELS:
            signals = np.stack([np.pad(one[name], ((0, 0), (0, longest - one[name].shape[1])), constant_values=np.nan) for one in made])
            cohort = cohort_of_signals(signals.astype(np.float32), frames, [one["tr"] for one in made], patient, BAND)
            setting = prepare(cohort, "group", positive="patient", seed=seed)[0]
            out.setdefault(name, []).append(scored(setting, plan, "lesion"))
            print(f"seed {seed}, {name}: " + "  ".join(f"{k} {v:.3f}" for k, v in out[name][-1].items()), flush=True)
    means = {name: average(rows) for name, rows in out.items()}
    keys = ("AUC pooled", "AUC individual", "shift at planted", "shift at a random target", f"shift by {OWN}")
    table(("parcels", *keys), [(name, *(means[name][key] for key in keys)) for name in PARCELS])
    return {"means": means, "seeds": out}


def _recording(args, number: int, seed: int) -> dict[str, np.ndarray]:
    """Parcel signals of one participant in three parcellations, read from `--keep` where they stand there."""
    file = args.keep / f"modulation-{args.parcels}-{args.minutes:g}-{seed}-{number}.npz" if args.keep else None
    if file is not None and file.is_file():
        return dict(np.load(file))
    config = SimulateConfig(
        subjects=args.recordings,
        sessions=1,
        tier="medium",
        parcels=args.parcels,
        minutes=args.minutes,
        patients=0.5,
        severity=1.0,
        seed=seed,
        sites=1,
    )
    start = time.perf_counter()
    participant = simulate_subject(config, number, disease="lesion")
    space = participant.space
    prior = make_atlas(space.xyz, participant.group_labels + 1, resolution=space.resolution, hemisphere=space.hemisphere, source="group")
    scan = cleaned_scan(participant.sessions[0], fd_threshold=0.5)
    network = pnet_jax.construct(scan, atlas=prior, model=pnet_jax.load_model("pnet-linear"), config=ConstructConfig())
    made = {
        "fixed atlas": np.asarray(parcel_signals(scan.y, participant.group_labels, args.parcels)),
        "personalised": np.asarray(network.signals),
        "true parcels": np.asarray(parcel_signals(scan.y, participant.labels, args.parcels)),
        "frames": np.asarray(scan.frames),
        "tr": np.array(scan.tr),
        "patient": np.array(participant.patient),
    }
    print(f"seed {seed}, participant {number}: {time.perf_counter() - start:.0f} s", flush=True)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **made)
    return made


def measured(args):
    (file,) = need(args.data, RUNS)
    runs = dbs_runs(file)
    answer = measured_modulation(runs)
    print("\n".join(answer.sentences), flush=True)
    table(("measured", "value", "low", "high", "p"), [(f"{r.name}: {r.measure}", r.value, r.low, r.high, r.p) for r in answer.rows])
    out = {"verdict": answer.settings["verdict"], "rows": {f"{r.table}: {r.name}: {r.measure}": list(r[3:7]) for r in answer.rows}}
    rows = []
    for kind, amplitude in INJECTED:
        changed, share = with_injected(runs, kind, amplitude)
        found = measured_modulation(changed, kinds=(kind,))
        own = {row.measure: row for row in found.rows if row.table == "models" and row.name == kind}
        partial, tail = own["correlation beyond the baselines"], own["share of site choices that are as good"]
        rows.append(
            (
                f"{kind} {amplitude:g}",
                100 * share,
                found.rows[0].value,
                found.rows[0].p,
                partial.value,
                partial.p,
                tail.value,
                found.settings["verdict"],
            )
        )
    table(("injected", "% of the variance", "reliability", "gate p", "beyond baselines", "p", "site tail", "verdict"), rows)
    return out | {"injected": [list(row) for row in rows]}


def dbs_runs(file: Path) -> Runs:
    """Motor network of 16 patients; a site is a nucleus on both sides."""
    data = np.load(file)
    sites: dict[str, list[int]] = {}
    for k, name in enumerate(data["motor_roi_name"]):
        sites.setdefault(str(name)[:-2] if str(name)[-2:] in (" l", " r") else str(name), []).append(k)
    z = np.arctanh(data["motor_v1_fc_triu"].astype(float))
    targets = np.where(data["target"] == "STN", "Subthalamic-Nucleus", "Globus-Pallidus-I").tolist()
    return Runs(z[:, :2], z[:, 2:], sites, targets, [f"patient {q + 1}" for q in range(len(z))])


def _arguments():
    arguments = parser(__doc__)
    arguments.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}; all if not given")
    arguments.add_argument("--parcels", type=int, default=60)
    arguments.add_argument("--participants", type=int, default=40, help="of the planted cohorts, half of them patients")
    arguments.add_argument("--seeds", type=int, default=3, help="planted cohorts")
    arguments.add_argument("--kinds", nargs="+", default=["coupling", "local"], help="of interventions")
    arguments.add_argument("--sham", type=int, default=10, help="shuffles of the diagnoses in each cohort")
    arguments.add_argument("--recordings", type=int, default=30, help="whole recordings, half of them of patients")
    arguments.add_argument("--parcel-seeds", type=int, default=1, help="cohorts of whole recordings")
    arguments.add_argument("--minutes", type=float, default=10.0, help="of a whole recording")
    arguments.add_argument("--keep", type=Path, help="keep the signals of whole recordings here; a run that was stopped goes on from there")
    args = arguments.parse_args()
    if unknown := sorted(set(args.parts) - set(PARTS)):
        arguments.error(f"expected parts of {PARTS}, got {unknown}")
    return args


if __name__ == "__main__":
    main()
