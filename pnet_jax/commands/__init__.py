"""One function a command of `pnet`: its options, the stage it calls, and what it prints."""

from pnet_jax.commands.cohorts import collect, export, import_
from pnet_jax.commands.evaluation import bench, evaluate
from pnet_jax.commands.networks import construct, demo, report, status
from pnet_jax.commands.training import fit_group, personalize, prepare, pretrain, simulate

__all__ = ["bench", "collect", "construct", "demo", "evaluate", "export", "fit_group", "import_"]
__all__ += ["personalize", "prepare", "pretrain", "report", "simulate", "status"]
