"""Commands from scans to checkpoints."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from pnet_jax.commands.options import Bar, make_parser, parse, refusing, selection_options, sources_of
from pnet_jax.config import PersonalizeConfig, PrepareConfig, PretrainConfig, SimulateConfig


def simulate(arguments: Sequence[str]) -> int:
    """A cohort with known truth."""
    parser = make_parser("simulate", "Writes a simulated cohort to OUT: BIDS-derivatives NIfTI, confounds, and truth.npz for each subject.")
    parser.add_argument("out", type=str, metavar="OUT", help="folder to write to")
    config, args = parse(parser, SimulateConfig, arguments)
    from pnet_jax.outputs.simulated import write_cohort
    from pnet_jax.simulate.cohort import check

    with refusing(parser, SimulateConfig):
        check(config)
    with Bar(config.subjects, "simulate", unit="subject") as bar:
        written = write_cohort(args.out, config, progress=lambda done, total: bar("", done, total))
    print(
        f"{config.subjects} subjects with {config.sessions} sessions each in {args.out} ({len(written)} files); "
        "group parcels in group_dseg.nii.gz"
    )
    return 0


def prepare(arguments: Sequence[str]) -> int:
    """Records from scans."""
    parser = make_parser(
        "prepare", "Cleans the scans in INPUT and stores them in STORE as records, which pre-training reads. Goes on where it stopped."
    )
    parser.add_argument("input", type=str, metavar="INPUT", help="a file, a list of files, a BIDS-derivatives folder or a simulated cohort")
    parser.add_argument("store", type=str, metavar="STORE", help="folder of records, new or to be added to")
    selection_options(parser)
    config, args = parse(parser, PrepareConfig, arguments)
    from pnet_jax.records import prepare as store_scans
    from pnet_jax.records import read_sites

    sources, load = sources_of(args, args.input)
    sites = read_sites(args.input if Path(args.input).is_dir() else Path(args.input).parent)
    with Bar(len(sources), "prepare") as bar:
        done = store_scans(sources, args.store, config, load=load, sites=sites, progress=bar)
    for row in done.skipped:
        print(f"skipped: {row['reason']}", file=sys.stderr)
    print(f"{len(done.written)} scans stored, {len(done.kept)} up to date, {len(done.skipped)} skipped. {done.manifest} lists them all.")
    return 1 if done.skipped else 0


def pretrain(arguments: Sequence[str]) -> int:
    """A checkpoint from scans (linear encoder) or from a store of records (Perceiver)."""
    parser = make_parser(
        "pretrain",
        "Fits a linear encoder to the scans in INPUT and writes the checkpoint folder OUT; or, with encoder = perceiver, trains on the "
        "store INPUT in the folder OUT, where the same command goes on after it was stopped.",
    )
    add = parser.add_argument
    add("source", nargs="?", type=str | None, metavar="INPUT", help="file, list of files, BIDS-derivatives folder, or store of records")
    add("target", nargs="?", type=str | None, metavar="OUT", help="checkpoint folder, new; for a Perceiver the folder of the run")
    add("--store", type=str | None, metavar="STORE", help="INPUT, as an option")
    add("--out", type=str | None, metavar="FOLDER", help="OUT, as an option")
    selection_options(parser)
    config, args = parse(parser, PretrainConfig, arguments)
    source, out = args.store or args.source, args.out or args.target
    if not source or not out:
        parser.error("INPUT and OUT are needed: pnet pretrain INPUT OUT, or --store STORE --out FOLDER")
    return (_pretrain_linear if config.encoder == "linear" else _pretrain_neural)(source, Path(out), config, args)


def _pretrain_neural(store: str, out: Path, config: PretrainConfig, args: Namespace) -> int:
    from pnet_jax import parallel
    from pnet_jax.checkpoint import RUN_MODEL, save_model
    from pnet_jax.pretraining.neural import train

    def lost(said: str) -> None:
        print(
            f"pnet pretrain: {said}. This process stops; the same command goes on from the last state saved.", file=sys.stderr, flush=True
        )
        os._exit(1)  # an orderly end would wait for the process that is gone

    parallel.start(config.parallel)
    watched = parallel.watch(config.parallel, lost)
    try:
        finished = train(store, out, config)
    except parallel.ProcessLostError as error:
        lost(str(error))
    watched()
    if finished.model is None:
        print(f"stopped after step {finished.step} of {config.optimiser.steps}; the same command goes on from there")
        return 0
    save_model(finished.model, out / RUN_MODEL, replace=True)
    if finished.leads:
        print(f"{finished.step} steps. Checkpoint: {out / RUN_MODEL}; curves: {out / 'metrics.jsonl'}, tensorboard --logdir {out}")
        print(f"weights digest: {finished.model.sha256}")
    return 0


def _pretrain_linear(source: str, out: Path, config: PretrainConfig, args: Namespace) -> int:
    from pnet_jax.checkpoint import save_model
    from pnet_jax.outputs import check_writable
    from pnet_jax.pretraining import pretrain as fit
    from pnet_jax.records.manifest import MANIFEST

    if out.exists():
        raise ValueError(f"checkpoint {out} already exists: expected a new folder")
    if (Path(source) / MANIFEST).is_file():
        raise ValueError(f"input {source} is a store of records, which encoder = perceiver reads; encoder = linear expects scans")
    sources, load = sources_of(args, source)
    check_writable(out.absolute().parent)
    skipped: dict[str, str] = {}
    with Bar(len(sources), "pretrain") as bar:

        def scans():
            for number, source in enumerate(sources):
                bar(source.label, number, len(sources))
                try:
                    if source.problem:
                        raise ValueError(source.problem)
                    yield source.load(config.cleaning, **load)
                except (ValueError, OSError) as error:
                    skipped[source.label] = str(error)

        try:
            model = fit(scans, config)
        finally:
            bar.bar.close()
            for error in skipped.values():
                print(f"left out: {error}", file=sys.stderr)
    save_model(model, out)
    print(f"{model.card['scans']} scans of {model.card['subjects']} subjects, {len(skipped)} left out. Checkpoint: {out}")
    print(f"weights digest: {model.sha256}")
    return 1 if skipped else 0


def personalize(arguments: Sequence[str]) -> int:
    """Every participant's own parameters."""
    parser = make_parser(
        "personalize",
        "Fine-tunes model, parcels and dynamics on each recording in STORE, a wave of them at a time, and writes what differs to OUT; "
        "the same command goes on where it stopped.",
    )
    add = parser.add_argument
    add("store", type=str, metavar="STORE", help="folder of records, from pnet prepare")
    add("out", type=str, metavar="OUT", help="folder to write to")
    add("--checkpoint", type=str, default="pnet-linear", metavar="MODEL", help="name of a shipped model, or folder of a checkpoint")
    add("--atlas", type=str | None, metavar="FILE", help="dseg or dlabel file to start from; else the checkpoint's own")
    add("--parcels", type=int | None, metavar="K", help="parcels of the checkpoint's own atlas (default: 200)")
    add("--group", type=str, required=True, metavar="GROUP", help="folder of pnet fit-group --dynamics true, of the same parcels")
    config, args = parse(parser, PersonalizeConfig, arguments)
    from pnet_jax.checkpoint import load_group
    from pnet_jax.config import ConstructConfig
    from pnet_jax.construction import resolve
    from pnet_jax.personalization import personalize as stage
    from pnet_jax.records import open_store

    store = open_store(args.store, allow_damaged=True)
    plan = resolve(ConstructConfig(checkpoint=args.checkpoint, atlas=args.atlas, parcels=args.parcels))
    model, atlas = plan.model, plan.atlas
    group = load_group(args.group)
    with Bar(len(store), "personalize") as bar:
        rows = stage(
            store,
            args.out,
            config,
            model=model,
            atlas=atlas,
            group=group,
            progress=bar,
            say=lambda text: bar.bar.write(text, file=sys.stderr),
        )
    failed = [row for row in rows if row["status"] != "ok"]
    for row in failed:
        print(f"failed: {row['error']}", file=sys.stderr)
    told = sum(float(row["dynamics"]) < 0 for row in rows if row["status"] == "ok")
    kept = sum(row.get("parcels") == "fine-tuned" for row in rows)
    print(
        f"{len(rows) - len(failed)} of {len(rows)} recordings done, {len(failed)} failed. In {told}, individual dynamics predict the "
        f"held-out part better than the group's; {kept} keep fine-tuned parcels. "
        f"{Path(args.out) / 'status.tsv'} has a row for each."
    )
    return 1 if failed else 0


def fit_group(arguments: Sequence[str]) -> int:
    """What a cohort teaches about one more participant."""
    parser = make_parser(
        "fit-group",
        "Learns from the networks in INPUT where participants have their parcels, how their edges vary and, with --dynamics true, their "
        "dynamics; writes it to GROUP, for the option --group of pnet construct and pnet personalize. One network of each "
        "participant counts, the first by name, and for the edges a second one of another session with the same task.",
    )
    add = parser.add_argument
    add("input", type=str, metavar="INPUT", help="derivatives folder that pnet construct wrote")
    add("group", type=str, metavar="GROUP", help="new folder to write to")
    add("--checkpoint", type=str, default="pnet-linear", metavar="MODEL", help="as for pnet construct")
    add("--atlas", type=str | None, metavar="FILE", help="as for pnet construct")
    add("--parcels", type=int | None, metavar="K", help="as for pnet construct")
    add("--dynamics", type=bool, default=False, help="learn dynamics too (true or false)")
    add(
        "--second-view",
        type=bool,
        default=False,
        dest="second_view",
        help="guided edges learn from the edges before the low-pass too (pnet construct --cleaning.wide true); they then depend more on "
        "head motion, which is printed (true or false)",
    )
    add("--structural", type=str | None, metavar="FILE", help="structural connectome, a K x K table in the order of the atlas's parcels")
    _, args = parse(parser, None, arguments)
    from pnet_jax.checkpoint import save_group
    from pnet_jax.config import ConstructConfig
    from pnet_jax.construction import resolve
    from pnet_jax.group.fit import fit_group as fit
    from pnet_jax.ingest.connectome import read_connectome
    from pnet_jax.outputs import atlas_label, check_writable, find_networks, load_network, read_records
    from pnet_jax.outputs.status import check_intact

    if args.structural and not args.dynamics:
        parser.error("--structural informs the dynamics: add --dynamics true")
    out = Path(args.group)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: expected a new or empty folder for the group model, found one with content")
    check_writable(out.absolute().parent)
    atlas = resolve(ConstructConfig(checkpoint=args.checkpoint, atlas=args.atlas, parcels=args.parcels)).atlas
    files = find_networks(args.input, atlas_label(atlas.source, atlas.n_parcels))
    records = {record["dseg"]: record for record in read_records(args.input) if "dseg" in record}
    connectome = read_connectome(args.structural, atlas.n_parcels) if args.structural else None
    skipped: list[str] = []
    each = [(subject, file) for subject, own in files.items() for file in own]
    with Bar(len(each), "fit-group") as bar:

        def networks():
            for number, (subject, file) in enumerate(each):
                bar(f"sub-{subject}", number, len(each))
                try:
                    check_intact(args.input, records.get(file.relative_to(args.input).as_posix(), {}))
                    network = load_network(file)
                except (ValueError, OSError) as error:
                    skipped.append(str(error))
                    continue
                yield network

        group = fit(networks(), atlas, dynamics=args.dynamics, connectome=connectome, second_view=args.second_view)
    for error in skipped:
        print(f"left out: {error}", file=sys.stderr)
    if out.exists():
        out.rmdir()  # empty: a model is written to a new folder
    save_group(group, out)
    learned = [name for name in ("spatial", "shrinkage", "guide", "hierarchy") if getattr(group, name) is not None]
    words = {"spatial": "where parcels lie", "shrinkage": "shrunk edges", "guide": "guided edges", "hierarchy": "dynamics"}
    taught = ", ".join(words[one] for one in learned)
    print(f"{len(group.subjects)} participants, {len(skipped)} left out, taught {taught}. Group model: {out}")
    if group.pairs:
        mark = ": edges of another day are shrunk too little; two sessions of participants are better" if group.pairs == "halves" else ""
        print(f"Edges were learned from {group.n_pairs} pairs of {group.pairs}{mark}.")
    if group.motion:
        print("Mean |QC-FC|: " + ", ".join(f"{name} {value:.3f}" for name, value in group.motion.items()) + ".")
    if group.spatial is None:
        print("where parcels lie was not learned: fewer than 3 participants have parcels of their own", file=sys.stderr)
    return 1 if skipped else 0
