"""The configurations that come with the source: the command reads them, and their heads say what they make."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import pytest

import pnet_jax
from pnet_jax.checkpoint import load_model
from pnet_jax.cli import main
from pnet_jax.config import PretrainConfig
from pnet_jax.encoder import perceiver

CONFIGS = Path(__file__).parents[2] / "configs"
SIZES = ("tiny", "small", "base", "large")
MOST_SHIPPED = 10e6  # bytes


def read(file: Path) -> PretrainConfig:
    """As `pnet pretrain --config FILE` does."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pnet_jax.commands.training._pretrain_linear", lambda source, out, config, selection: found.append(config))
        patch.setattr("pnet_jax.commands.training._pretrain_neural", lambda source, out, config: found.append(config))
        assert main(["pretrain", "STORE", "RUN", "--config", str(file)]) == 0
    return found[0]


def head(file: Path) -> str:
    return "".join(line for line in file.read_text("utf-8").splitlines(keepends=True) if line.startswith("#"))


def parameters(config: PretrainConfig) -> int:
    linear = load_model(config.start).encoder
    shapes = jax.eval_shape(lambda: perceiver.init(linear, config.perceiver, jax.random.key(0)).params)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("pretrain_*.toml")), ids=lambda file: file.stem)
def test_every_file_is_read_by_the_command_it_names(file):
    config = read(file)
    assert config.encoder == ("linear" if file.stem == "pretrain_linear" else "perceiver")
    assert f"--config configs/{file.name}" in head(file)


@pytest.mark.parametrize("size", SIZES)
def test_the_head_says_hardware_time_and_the_number_of_parameters(size):
    file = CONFIGS / f"pretrain_{size}.toml"
    said = dict(re.findall(r"^# (Hardware|Time|Parameters): +(.+)\.$", head(file), re.MULTILINE))
    assert said.keys() == {"Hardware", "Time", "Parameters"}
    assert int(said["Parameters"].replace(",", "")) == parameters(read(file))


def test_sizes_are_what_was_asked_for():
    found = {size: parameters(read(CONFIGS / f"pretrain_{size}.toml")) for size in SIZES}
    shipped = sum(file.stat().st_size for file in Path(pnet_jax.__file__).parent.glob("checkpoints/pnet-linear/**/*") if file.is_file())
    assert 4 * found["small"] + shipped < MOST_SHIPPED  # a neural checkpoint holds the linear encoder and its priors too
    assert 18e6 < found["base"] < 22e6 and found["large"] > 100e6


@pytest.mark.parametrize("size", ["base", "large"])
def test_large_models_save_memory_where_they_can(size):
    config = read(CONFIGS / f"pretrain_{size}.toml")
    assert config.perceiver.dtype == "bfloat16" and config.perceiver.remat
    assert size == "base" or (config.sharding == "fsdp" and config.optimiser.accumulate > 1)
