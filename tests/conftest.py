"""Strict JAX for every test, eight fake CPU devices, and a compile cache that lives with pytest's own."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # a run on an accelerator says so by this variable

import jax


def pytest_configure(config):
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_num_cpu_devices", 8)
    if hasattr(config, "cache"):  # absent under `-p no:cacheprovider`
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
