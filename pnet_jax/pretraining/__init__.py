"""Pre-training of encoders from many scans. `linear` fits a closed form over scans, `neural` trains on a store of records."""

from pnet_jax.pretraining.linear import geometric_atlas, learn_atlas, pretrain, reference_points, scan_statistics

__all__ = ["geometric_atlas", "learn_atlas", "pretrain", "reference_points", "scan_statistics"]
