"""Sharding of the training step over a mesh: placement of weights and batches. Independent of stores, files and time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pnet_jax import parallel
from pnet_jax.config import InputConfig, PretrainConfig
from pnet_jax.encoder import objectives, perceiver
from pnet_jax.encoder.linear import LinearEncoder
from pnet_jax.encoder.perceiver import PerceiverEncoder
from pnet_jax.encoder.tokens import Segments
from pnet_jax.pretraining.step import Loss, TrainState, initial_state, make_optimiser, make_step, make_validation

# Sharding of the weights. "data": replicated on every device. "fsdp": large arrays sharded along the axis that splits the scans.
SHARDINGS: dict[str, tuple[tuple[str, tuple[str | None, ...]], ...]] = {
    "data": (),
    "fsdp": ((r"(kernel|latents|turn|damp)$", ("subject", None)),),
}
# Mesh axis that shards each dimension of a batch, by field of `Segments`.
BATCH: dict[str, tuple[str | None, ...]] = dict(
    y=("subject", None, "location", None),
    kept=("subject", None, None),
    frames=("subject", None, None),
    references=("subject", None, None, None),
    xyz=("subject", "location", None),
    hemisphere=("subject", "location"),
    counted=("subject", "location"),
    log_tsnr=("subject", None, "location"),
    tr=("subject", None),
    record=("subject",),
)


class ShardedStep(NamedTuple):
    """A sharded training step and its initial state.

    Attributes:
      initial: Function that makes the initial state; not yet on a device.
      layout: Sharding of each array of a state.
      step: Training step, compiled by its first call or by `lower(state, batch).compile()`; the input state is donated.
      validate: Function that returns the objectives of given weights on a batch with a given number.
    """

    initial: Callable[[], TrainState]
    layout: Any
    step: Any
    validate: Any


def spread(base: LinearEncoder | PerceiverEncoder, config: PretrainConfig, mesh: Mesh) -> ShardedStep:
    """Build the training step of a configuration on a mesh.

    Args:
      base: Linear encoder that a new Perceiver corrects, or a Perceiver to continue training.
      config: Settings; see `PretrainConfig`.
      mesh: Mesh from `parallel.make_mesh`.

    Raises:
      ValueError: If the sizes of the configuration differ from those of `base`.
    """
    linear = base if isinstance(base, LinearEncoder) else base.linear
    optimiser = make_optimiser(config.optimiser)
    initial = functools.partial(_initial, base, config, optimiser)
    layout = parallel.layout(jax.eval_shape(initial), SHARDINGS[config.sharding], mesh)
    batch = by_field(lambda name: parallel.sharding(mesh, *BATCH[name]))
    step = jax.jit(
        make_step(_loss(linear, config), optimiser, config.optimiser, config.seed),
        in_shardings=(layout, batch),
        out_shardings=(layout, None),
        donate_argnums=0,
    )
    validate = jax.jit(make_validation(_loss(linear, config), config.optimiser, config.seed), in_shardings=(layout.average, batch, None))
    return ShardedStep(initial, layout, step, validate)


def by_field(make: Callable[[str], Any]) -> Segments:
    """Build a batch from a function of the field name."""
    return Segments(**{name: make(name) for name in Segments._fields})


def batch_shapes(config: InputConfig, references: int) -> Segments:
    """Return shapes and types of a batch; they are independent of the store, so one compiled step serves cohorts of any size."""
    many, locations, frames = config.batch, config.locations, config.frames
    shapes: dict[str, tuple[tuple[int, ...], Any]] = dict(
        y=((many, 2, locations, frames), jnp.float16),
        kept=((many, 2, frames), jnp.bool_),
        frames=((many, 2, frames), jnp.int32),
        references=((many, 2, references, frames), jnp.float32),
        xyz=((many, locations, 3), jnp.float32),
        hemisphere=((many, locations), jnp.int32),
        counted=((many, locations), jnp.bool_),
        log_tsnr=((many, 2, locations), jnp.float32),
        tr=((many, 2), jnp.float32),
        record=((many,), jnp.int32),
    )
    return by_field(lambda name: jax.ShapeDtypeStruct(*shapes[name]))


def check_divides(config: PretrainConfig, mesh: Mesh, processes: int = 1) -> None:
    """Raise ValueError if the mesh or the processes cannot divide a batch evenly."""
    parts = math.lcm(mesh.shape["subject"], processes) * config.optimiser.accumulate
    if config.input.batch % parts:
        raise ValueError(
            f"input.batch is {config.input.batch}: expected a multiple of {parts}, for {mesh.shape['subject']} shards of the mesh, "
            f"{processes} processes and {config.optimiser.accumulate} accumulation steps (optimiser.accumulate)"
        )
    if config.input.locations % mesh.shape["location"]:
        raise ValueError(
            f"input.locations is {config.input.locations}: expected a multiple of the {mesh.shape['location']} location shards of the mesh"
        )


def _initial(base: LinearEncoder | PerceiverEncoder, config: PretrainConfig, optimiser: Any) -> TrainState:
    """Return new weights on a linear encoder, or the weights of a neural encoder to continue training."""
    if isinstance(base, LinearEncoder):
        return initial_state(perceiver.init(base, config.perceiver, jax.random.key(config.seed)).params, optimiser)
    if base.config != config.perceiver:
        raise ValueError(f"checkpoint {config.start} has sizes {base.config}, expected {config.perceiver} as in the configuration")
    return initial_state(jax.tree.map(jnp.asarray, base.params), optimiser)


def _loss(linear: LinearEncoder, config: PretrainConfig) -> Loss:
    def loss(params: Any, batch: Segments, key: Any) -> Any:
        return objectives.total(PerceiverEncoder(linear, params, config.perceiver), batch, key, config.objectives)

    return loss
