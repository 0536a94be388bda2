"""Benefit of training on real participants for encoding of real participants: ABIDE, 200 regions, tested on unseen sites.

Four encoders: the shipped linear one (simulated participants), the linear one fitted to the training sites, and the neural one trained on
these from either. Measure: variance explained in the fingerprints of the other half of a participant's scan (R²), compared with the linear
decoder with components weighted by their reliability. The data are for research only; no result of this training is shipped.

    python benchmarks/real_training.py WORK --steps 600 --out benchmarks/results/real_training.json

WORK stores data and runs; repeating the command resumes an interrupted run.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from abide import ATLAS, TABLE, participants
from common import ROOT, need, parser, write
from pretraining import read_config

import pnet_jax
from pnet_jax.checkpoint import RUN_MODEL, save_model
from pnet_jax.config import PretrainConfig
from pnet_jax.evaluate import encoder
from pnet_jax.evaluate.cases import scan_cases
from pnet_jax.pretraining import pretrain
from pnet_jax.pretraining.neural import train
from pnet_jax.records import prepare


def main() -> None:
    args = _arguments()
    table, atlas = need(args.data, TABLE, ATLAS)
    store, shipped = args.work / "store", pnet_jax.load_model("pnet-linear")
    prepare(participants(table, atlas, test=False), store)
    linear = _fitted(lambda: participants(table, atlas, test=False), args.work / "linear", len(shipped.encoder.references))
    models = [shipped, linear, _weighted(linear)]
    for start in (shipped.name, args.work / "linear"):
        models.append(_trained(args, store, str(start)))
    rows = encoder.gate(models, scan_cases(participants(table, atlas, test=True), shipped.atlases[200], args.conditions))
    summed = encoder.summary(rows)
    print("\n".join(encoder.table(summed)))
    write(args, {"rows": encoder.without_nan(summed)})


def _fitted(scans, folder: Path, references: int):
    if not folder.exists():
        save_model(pretrain(scans, PretrainConfig(name="linear, real participants", references=references)), folder)
    return pnet_jax.load_model(folder)


def _weighted(model):
    """Linear model with components weighted by their reliability: the best linear predictor of another recording."""
    encoder = model.encoder
    return dataclasses.replace(
        model, name=f"{model.name}, weighted", encoder=encoder._replace(decoder=encoder.reliability[:, None] * encoder.decoder)
    )


def _trained(args, store: Path, start: str):
    name = f"neural, from {Path(start).name}"
    base = read_config(args)
    config = dataclasses.replace(
        base,
        name=name,
        start=start,
        optimiser=dataclasses.replace(base.optimiser, steps=args.steps),
        input=dataclasses.replace(base.input, batch=args.batch or 8, locations=200, held_out=0.1),
    )
    folder = args.work / name.replace(", ", "_").replace(" ", "_")
    if not (folder / RUN_MODEL).exists():
        save_model(train(store, folder, config).model, folder / RUN_MODEL)
    return pnet_jax.load_model(folder)


def _arguments():
    arguments = parser(__doc__)
    arguments.add_argument("work", type=Path, help="folder for the store and the trained models")
    arguments.add_argument("--config", type=Path, default=ROOT / "configs" / "pretrain_small.toml")
    arguments.add_argument("--steps", type=int, default=600)
    arguments.add_argument("--batch", type=int)
    arguments.add_argument("--conditions", nargs="+", default=["full", "1min"])
    arguments.set_defaults(locations=None, dtype=None)
    return arguments.parse_args()


if __name__ == "__main__":
    main()
