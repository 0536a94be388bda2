"""One function a command of `pnet`: its options, the stage it calls, and what it prints."""

from pnet_jax.commands.evaluation import bench, evaluate
from pnet_jax.commands.networks import construct, demo, report, status
from pnet_jax.commands.training import fit_group, personalize, prepare, pretrain, simulate

__all__ = ["bench", "construct", "demo", "evaluate", "fit_group", "personalize", "prepare", "pretrain", "report", "simulate", "status"]
