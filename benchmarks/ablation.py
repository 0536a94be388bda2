"""Ablation of the five pre-training objectives: each omitted, and each alone, compared with all of them and with no training.

All variants train the same model on the same store, batches and seed, for fewer steps than the shipped model. They are then evaluated on
unseen simulated participants and, if available, on the halves of the real scan. The untrained model is the linear encoder.

    python benchmarks/ablation.py STORE RUNS --steps 200 --out benchmarks/results/ablation.json

RUNS stores the trained models; repeating the command resumes an interrupted run.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from common import BOLD, MASK, ROOT, atlas, need, parser, write
from cross_half import halves
from pretraining import read_config

import pnet_jax
from pnet_jax.checkpoint import RUN_MODEL, save_model
from pnet_jax.config import PretrainConfig, SimulateConfig
from pnet_jax.encoder.objectives import TERMS
from pnet_jax.evaluate import encoder
from pnet_jax.evaluate.cases import HELD_OUT_SEED, Case, simulated_cases
from pnet_jax.pretraining.neural import train


def main() -> None:
    args = _arguments()
    base = read_config(args)
    models = [pnet_jax.load_model(base.start)]
    for name, terms in variants().items():
        models.append(_trained(args, base, name, terms))
        print(f"{name}: trained", flush=True)
    rows = encoder.gate(models, [*_real(args), *_simulated(args)])
    summed = encoder.summary(rows)
    print("\n".join(encoder.table(summed)))
    write(args, {"rows": encoder.without_nan(summed)})


def variants() -> dict[str, tuple[str, ...]]:
    """Objectives of each variant, with the weights of the configuration."""
    without = {f"without {term}": tuple(t for t in TERMS if t != term) for term in TERMS}
    return {"all": TERMS, **without, **{f"{term} alone": (term,) for term in TERMS}}


def _trained(args, base: PretrainConfig, name: str, terms: tuple[str, ...]):
    """Train the model of a variant, or load it from RUNS; an objective alone has weight 1."""
    weight = {term: 0.0 if term not in terms else 1.0 if len(terms) == 1 else getattr(base.objectives, term) for term in TERMS}
    config = dataclasses.replace(
        base,
        name=name,
        objectives=dataclasses.replace(base.objectives, **weight),
        optimiser=dataclasses.replace(base.optimiser, steps=args.steps),
    )
    folder = args.runs / name.replace(" ", "_")
    if not (folder / RUN_MODEL).exists():
        save_model(train(args.store, folder, config).model, folder / RUN_MODEL)
    return pnet_jax.load_model(folder)


def _simulated(args):
    config = SimulateConfig(subjects=args.subjects, tier="medium", parcels=100, minutes=10.0, seed=HELD_OUT_SEED)
    return simulated_cases(("6min", "3min"), config)


def _real(args):
    """Yield the halves of the real scan with one prior, or nothing if the data are not available."""
    if not (args.data / BOLD).is_file():
        return []
    bold, mask, file = need(args.data, BOLD, MASK, atlas(200))
    prior = pnet_jax.load_atlas(file, space="MNI152NLin6Asym")
    return [Case("real halves", "1", tuple(halves(bold, mask)), prior, kind="halves")]


def _arguments():
    arguments = parser(__doc__)
    arguments.add_argument("store", type=Path, help="store of records, from pnet prepare")
    arguments.add_argument("runs", type=Path, help="folder for the trained models")
    arguments.add_argument("--config", type=Path, default=ROOT / "configs" / "pretrain_small.toml")
    arguments.add_argument("--steps", type=int, default=200)
    arguments.add_argument("--subjects", type=int, default=3, help="simulated participants")
    arguments.set_defaults(batch=None, locations=None, dtype=None)
    return arguments.parse_args()


if __name__ == "__main__":
    main()
