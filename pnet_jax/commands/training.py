"""Commands that make checkpoints and group models from scans."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from pnet_jax.commands.options import Bar, Done, Flat, Selection, Settings, sources_of
from pnet_jax.config import PersonalizeConfig, PrepareConfig, PretrainConfig, SimulateConfig
from pnet_jax.errors import SettingsError


def simulate(out: str, /, *, config: Annotated[SimulateConfig, Settings] = SimulateConfig()) -> Done:
    """Write a simulated cohort with known truth: BIDS-derivatives NIfTI, confounds, and truth.npz of each participant.

    Args:
      out: Folder to write to.
      config: Settings.
    """
    from pnet_jax.outputs.simulated import write_cohort
    from pnet_jax.simulate.cohort import check

    check(config)
    with Bar(config.subjects, "simulate", unit="subject") as bar:
        written = write_cohort(out, config, progress=lambda done, total: bar("", done, total))
    text = (
        f"{config.subjects} subjects with {config.sessions} sessions each in {out} ({len(written)} files); "
        "group parcels in group_dseg.nii.gz"
    )
    return Done(text, {"out": out, "files": len(written)})


def prepare(
    input: str,
    store: str,
    /,
    *,
    selection: Annotated[Selection, Flat] = Selection(),
    config: Annotated[PrepareConfig, Settings] = PrepareConfig(),
) -> Done:
    """Clean the scans in INPUT and store them in STORE as records for pre-training; an interrupted run is resumed by the same command.

    Args:
      input: File, list of files, BIDS-derivatives folder or simulated cohort.
      store: Folder of records, new or to be extended.
      selection: Scans and files.
      config: Settings.
    """
    from pnet_jax.records import prepare as store_scans
    from pnet_jax.records import read_sites

    sources, load = sources_of(selection, input)
    sites = read_sites(input if Path(input).is_dir() else Path(input).parent)
    with Bar(len(sources), "prepare") as bar:
        done = store_scans(sources, store, config, load=load, sites=sites, progress=bar)
    for row in done.skipped:
        print(f"skipped: {row['reason']}", file=sys.stderr)
    text = f"{len(done.written)} scans stored, {len(done.kept)} up to date, {len(done.skipped)} skipped. {done.manifest} lists them all."
    data = {"stored": len(done.written), "up_to_date": len(done.kept), "skipped": len(done.skipped), "manifest": str(done.manifest)}
    return Done(text, data, 1 if done.skipped else 0)


def pretrain(
    input: str,
    out: str,
    /,
    *,
    selection: Annotated[Selection, Flat] = Selection(),
    config: Annotated[PretrainConfig, Settings] = PretrainConfig(),
) -> Done:
    """Pre-train a model: fit a linear encoder to the scans in INPUT, or train a Perceiver on the store INPUT.

    OUT is the checkpoint folder of a linear encoder, or the folder of the training run, which the same command resumes.

    Args:
      input: File, list of files or BIDS-derivatives folder for a linear encoder; store of records for a Perceiver.
      out: Folder to write to; new for a linear encoder.
      selection: Scans and files.
      config: Settings.
    """
    if config.encoder == "linear":
        return _pretrain_linear(input, Path(out), config, selection)
    return _pretrain_neural(input, Path(out), config)


def _pretrain_neural(store: str, out: Path, config: PretrainConfig) -> Done:
    from pnet_jax import parallel
    from pnet_jax.checkpoint import RUN_MODEL, save_model
    from pnet_jax.pretraining.neural import train

    def lost(said: str) -> None:
        print(
            f"pnet pretrain: {said}. This process stops; the same command resumes from the last saved state.", file=sys.stderr, flush=True
        )
        os._exit(1)  # a regular exit would wait for the lost process

    parallel.start(config.parallel)
    watched = parallel.watch(config.parallel, lost)
    try:
        finished = train(store, out, config)
    except parallel.ProcessLostError as error:
        lost(str(error))
    watched()
    if finished.model is None:
        return Done(
            f"stopped after step {finished.step} of {config.optimiser.steps}; the same command resumes there", {"step": finished.step}
        )
    save_model(finished.model, out / RUN_MODEL, replace=True)
    if not finished.leads:
        return Done("")
    text = (
        f"{finished.step} steps. Checkpoint: {out / RUN_MODEL}; curves: {out / 'metrics.jsonl'}, tensorboard --logdir {out}\n"
        f"weights digest: {finished.model.sha256}"
    )
    return Done(text, {"step": finished.step, "checkpoint": str(out / RUN_MODEL), "digest": finished.model.sha256})


def _pretrain_linear(source: str, out: Path, config: PretrainConfig, selection: Selection) -> Done:
    from pnet_jax.checkpoint import save_model
    from pnet_jax.outputs import check_writable
    from pnet_jax.pretraining import pretrain as fit
    from pnet_jax.records.manifest import MANIFEST

    if out.exists():
        raise ValueError(f"checkpoint {out} already exists: expected a new folder")
    if (Path(source) / MANIFEST).is_file():
        raise ValueError(f"input {source} is a store of records, which encoder = perceiver reads; encoder = linear expects scans")
    sources, load = sources_of(selection, source)
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
    text = (
        f"{model.card['scans']} scans of {model.card['subjects']} subjects, {len(skipped)} left out. Checkpoint: {out}\n"
        f"weights digest: {model.sha256}"
    )
    data = {"scans": model.card["scans"], "left_out": skipped, "checkpoint": str(out), "digest": model.sha256}
    return Done(text, data, 1 if skipped else 0)


def personalize(
    store: str,
    out: str,
    /,
    *,
    group: str,
    checkpoint: str = "pnet-linear",
    atlas: str | None = None,
    parcels: int | None = None,
    surfaces: tuple[str, str] | None = None,
    config: Annotated[PersonalizeConfig, Settings] = PersonalizeConfig(),
) -> Done:
    """Fine-tune model, parcels and dynamics on each scan in STORE, several at a time, and write the individual parameters to OUT.

    An interrupted run is resumed by the same command.

    Args:
      store: Folder of records, from `pnet prepare`.
      out: Folder to write to.
      group: Group model with dynamics, of the same atlas: folder written by `pnet fit-group --dynamics`.
      checkpoint: Pre-trained model: name of a shipped model, or checkpoint folder.
      atlas: Atlas to start from: dseg or dlabel file; the atlas of the checkpoint by default.
      parcels: Number of parcels of the atlas of the checkpoint (200 by default).
      surfaces: Left and right GIFTI surface, for an atlas with vertices.
      config: Settings.
    """
    from pnet_jax.checkpoint import load_group
    from pnet_jax.config import ConstructConfig
    from pnet_jax.construction import resolve
    from pnet_jax.personalization import personalize as stage
    from pnet_jax.records import open_store

    opened = open_store(store, allow_damaged=True)
    plan = resolve(ConstructConfig(checkpoint=checkpoint, atlas=atlas, parcels=parcels), surfaces=surfaces)
    learned = load_group(group)
    with Bar(len(opened), "personalize") as bar:
        rows = stage(opened, out, config, model=plan.model, atlas=plan.atlas, group=learned, progress=bar, say=bar.say)
    failed = [row for row in rows if row["status"] != "ok"]
    for row in failed:
        print(f"failed: {row['error']}", file=sys.stderr)
    better = sum(float(row["dynamics"]) < 0 for row in rows if row["status"] == "ok")
    kept = sum(row.get("parcels") == "fine-tuned" for row in rows)
    text = (
        f"{len(rows) - len(failed)} of {len(rows)} scans done, {len(failed)} failed. In {better}, individual dynamics predict the "
        f"held-out part better than those of the group; {kept} have fine-tuned parcels. {Path(out) / 'status.tsv'} has a row for each."
    )
    data = {"scans": len(rows), "failed": len(failed), "better_dynamics": better, "fine_tuned": kept, "out": out}
    return Done(text, data, 1 if failed else 0)


def fit_group(
    input: str,
    group: str,
    /,
    *,
    checkpoint: str = "pnet-linear",
    atlas: str | None = None,
    parcels: int | None = None,
    surfaces: tuple[str, str] | None = None,
    dynamics: bool = False,
    second_view: bool = False,
    structural: str | None = None,
) -> Done:
    """Learn a group model from the networks in INPUT: variation of parcels, of edges and, with `--dynamics`, of dynamics.

    `pnet construct` and `pnet personalize` use it as `--group`. One network of each participant is used, the first by name, and for the
    edges a second one from another session with the same task.

    Args:
      input: Derivatives folder that `pnet construct` wrote.
      group: New folder to write to.
      checkpoint: Pre-trained model, as for `pnet construct`.
      atlas: Atlas, as for `pnet construct`.
      parcels: Number of parcels, as for `pnet construct`.
      surfaces: Left and right GIFTI surface, for an atlas with vertices.
      dynamics: Also fit group dynamics of the parcel signals.
      second_view: Also use edges without low-pass filtering for guided edges (networks constructed with `--cleaning.wide`). This
        increases their association with head motion, which is reported.
      structural: Structural connectome (K × K table in the order of the atlas) towards which the coupling of the group is shrunk; used
        with `--dynamics`.
    """
    from pnet_jax.checkpoint import save_group
    from pnet_jax.config import ConstructConfig
    from pnet_jax.construction import resolve
    from pnet_jax.group.fit import fit_group as fit
    from pnet_jax.ingest.connectome import read_connectome
    from pnet_jax.outputs import atlas_label, check_writable, find_networks, load_network, read_records
    from pnet_jax.outputs.status import check_intact

    if structural and not dynamics:
        raise SettingsError("--structural informs the dynamics: add --dynamics")
    out = Path(group)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: expected a new or empty folder for the group model, found one with content")
    check_writable(out.absolute().parent)
    chosen = resolve(ConstructConfig(checkpoint=checkpoint, atlas=atlas, parcels=parcels), surfaces=surfaces).atlas
    files = find_networks(input, atlas_label(chosen.source, chosen.n_parcels))
    records = {record["dseg"]: record for record in read_records(input) if "dseg" in record}
    connectome = read_connectome(structural, chosen.n_parcels) if structural else None
    skipped: list[str] = []
    each = [(subject, file) for subject, own in files.items() for file in own]
    with Bar(len(each), "fit-group") as bar:

        def networks():
            for number, (subject, file) in enumerate(each):
                bar(f"sub-{subject}", number, len(each))
                try:
                    check_intact(input, records.get(file.relative_to(input).as_posix(), {}))
                    network = load_network(file)
                except (ValueError, OSError) as error:
                    skipped.append(str(error))
                    continue
                yield network

        model = fit(networks(), chosen, dynamics=dynamics, connectome=connectome, second_view=second_view)
    for error in skipped:
        print(f"left out: {error}", file=sys.stderr)
    if out.exists():
        out.rmdir()  # empty, because a model is written to a new folder
    save_group(model, out)
    words = {"spatial": "positions of parcels", "shrinkage": "shrunk edges", "guide": "guided edges", "hierarchy": "dynamics"}
    learned = [name for name in words if getattr(model, name) is not None]
    taught = ", ".join(words[one] for one in learned)
    lines = [f"{len(model.subjects)} participants, {len(skipped)} left out; learned: {taught}. Group model: {out}"]
    if model.pairs:
        mark = ": edges of another day are shrunk too little; two sessions per participant are better" if model.pairs == "halves" else ""
        lines.append(f"Edges were learned from {model.n_pairs} pairs of {model.pairs}{mark}.")
    if model.motion:
        lines.append("Mean |QC-FC|: " + ", ".join(f"{name} {value:.3f}" for name, value in model.motion.items()) + ".")
    if model.spatial is None:
        print("positions of parcels were not learned: fewer than 3 participants have personalised parcels", file=sys.stderr)
    data = {"participants": len(model.subjects), "left_out": skipped, "learned": learned, "group": str(out)}
    return Done("\n".join(lines), data, 1 if skipped else 0)
