"""pnet_jax: individual brain functional networks from resting-state fMRI.

>>> import pnet_jax
>>> scan = pnet_jax.load_scan("bold.nii.gz", mask="mask.nii.gz")  # doctest: +SKIP
>>> network = pnet_jax.construct(scan, parcels=200)  # doctest: +SKIP
>>> network.edges["pearson"].shape  # doctest: +SKIP
(200, 200)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Loaded on first use: `pnet --help` needs none of them, and the pure core runs where nibabel, nilearn and grain are absent.
_PUBLIC = {
    "CleaningConfig": "config",
    "ConstructConfig": "config",
    "PersonalizeConfig": "config",
    "PrepareConfig": "config",
    "PretrainConfig": "config",
    "SimulateConfig": "config",
    "Cohort": "cohort",
    "Group": "group.fit",
    "Model": "encoder.model",
    "Network": "network",
    "PersonalizedConnectome": "estimators",
    "PersonalizedParcellation": "estimators",
    "Atlas": "parcellation.atlas",
    "Scan": "scan",
    "Space": "space",
    "construct": "construction",
    "construct_cohort": "batch.run",
    "explain": "report.words",
    "find_scans": "ingest",
    "fit_group": "group.fit",
    "labels_image": "outputs",
    "list_models": "checkpoint",
    "load_cohort": "outputs",
    "load_group": "checkpoint",
    "load_model": "checkpoint",
    "load_network": "outputs",
    "load_atlas": "ingest",
    "load_scan": "ingest",
    "make_scan": "scan",
    "open_store": "records",
    "personalize": "personalization",
    "prepare": "records",
    "pretrain": "pretraining",
    "train": "pretraining.neural",
    "save": "outputs",
    "save_group": "checkpoint",
    "save_model": "checkpoint",
    "write_report": "report",
}
__all__ = ["__version__", *sorted(_PUBLIC)]

if TYPE_CHECKING:
    from pnet_jax.batch.run import construct_cohort
    from pnet_jax.checkpoint import list_models, load_group, load_model, save_group, save_model
    from pnet_jax.cohort import Cohort
    from pnet_jax.config import CleaningConfig, ConstructConfig, PersonalizeConfig, PrepareConfig, PretrainConfig, SimulateConfig
    from pnet_jax.construction import construct
    from pnet_jax.encoder.model import Model
    from pnet_jax.estimators import PersonalizedConnectome, PersonalizedParcellation
    from pnet_jax.group.fit import Group, fit_group
    from pnet_jax.ingest import find_scans, load_atlas, load_scan
    from pnet_jax.network import Network
    from pnet_jax.outputs import labels_image, load_cohort, load_network, save
    from pnet_jax.parcellation.atlas import Atlas
    from pnet_jax.personalization import personalize
    from pnet_jax.pretraining import pretrain
    from pnet_jax.pretraining.neural import train
    from pnet_jax.records import open_store, prepare
    from pnet_jax.report import write_report
    from pnet_jax.report.words import explain
    from pnet_jax.scan import Scan, make_scan
    from pnet_jax.space import Space


def __getattr__(name: str) -> Any:
    if name in ("dynamics", "edges", "evaluate", "outputs"):
        return importlib.import_module(f"pnet_jax.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'pnet_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pnet_jax.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
