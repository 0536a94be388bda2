"""What a step costs, read off the compiled program: work with the sizes of a batch, memory and collectives over devices."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import numpy as np
import pytest

from pnet_jax import parallel
from pnet_jax.bench import hlo
from pnet_jax.bench.measure import memory_of
from pnet_jax.bench.scaling import exponent
from pnet_jax.config import InputConfig, ObjectiveConfig, ParallelConfig, PerceiverConfig, PretrainConfig
from pnet_jax.encoder.linear import LinearEncoder
from pnet_jax.pretraining.spread import ShardedStep, batch_shapes, spread
from pnet_jax.records import batches, open_store, prepare

pytestmark = pytest.mark.usefixtures("float16")  # of which batches are

REFERENCES, DIMENSIONS = 24, 10
# Machine code is not run here, so it need not be fast; the program it is made from is the same.
HURRY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if jax.__version__.startswith("0.10."):  # an option that is gone is an error
    HURRY["xla_cpu_use_fusion_emitters"] = False


def settings(
    locations: int = 256, frames: int = 64, batch: int = 1, sharding: str = "data", references: int = REFERENCES
) -> PretrainConfig:
    return PretrainConfig(
        encoder="perceiver",
        sharding=sharding,
        perceiver=PerceiverConfig(16, 4, 1, 2, 2, DIMENSIONS, references, dtype="float32"),
        input=InputConfig(batch=batch, locations=locations, frames=frames, min_seconds=60, max_seconds=80),
        objectives=ObjectiveConfig(anchors=16, negatives=16),
    )


def linear(references: int) -> LinearEncoder:
    rng = np.random.default_rng(0)
    shapes = ((references, 3), (references,), (references, DIMENSIONS), (DIMENSIONS,), (DIMENSIONS, references))
    return LinearEncoder(*(rng.normal(size=shape).astype(np.float32) for shape in shapes))


def over(config: PretrainConfig, devices: int = 1) -> ShardedStep:
    mesh = parallel.make_mesh(ParallelConfig(subject=devices, location=1), jax.devices()[:devices])
    return spread(linear(config.perceiver.references), config, mesh)


@functools.cache
def compiled(config: PretrainConfig, devices: int = 1) -> Any:
    made = over(config, devices)
    arguments = jax.eval_shape(made.initial), batch_shapes(config.input, config.perceiver.references)
    return made.step.lower(*arguments).compile(compiler_options=HURRY)


def matmul(config: PretrainConfig) -> int:
    counts = hlo.read(compiled(config))
    assert counts.unknown_loops == 0  # else work would be missing
    return counts.matmul


def test_products_grow_as_the_number_of_locations():
    """What does not: latents among themselves and the roots of metrics, `[D, D]`, both per segment."""
    sizes = (256, 1024)
    assert exponent(sizes, [matmul(settings(locations=v)) for v in sizes]) == pytest.approx(1, abs=0.1)


def test_products_grow_as_the_number_of_frames_where_these_dominate():
    """The network reads no frames: fingerprints, spectra and windows do, and have most of the work where T is large."""
    sizes = (1024, 4096)
    assert exponent(sizes, [matmul(settings(frames=t, references=100)) for t in sizes]) == pytest.approx(1, abs=0.1)


def test_the_step_knows_nothing_of_the_size_of_a_cohort(toy, tmp_path):
    config = settings(locations=64, frames=40, batch=2).input
    found = []
    for people in (2, 6):
        prepare([toy.scan(person, subject=f"{person:02d}") for person in range(people)], folder := tmp_path / str(people))
        with batches(open_store(folder), config, linear(REFERENCES).references) as data:
            found.append(jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), next(data)))
    expected = jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), batch_shapes(config, REFERENCES))
    assert found[0] == found[1] == expected


def test_copies_of_the_weights_exchange_gradients_and_nothing_else():
    config, devices = settings(batch=8), 8
    counts = hlo.read(compiled(config, devices))
    assert counts.collectives.keys() == {"all-reduce"} and counts.collectives["all-reduce"] <= 3
    weights = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(over(config).initial).params))
    assert weights <= exchanged(compiled(config, devices)) < 2 * weights  # views and hidden balls have a gradient each
    assert counts.matmul * devices == pytest.approx(8 * matmul(settings()), rel=0.02)


def test_weights_in_parts_take_their_share_of_memory():
    """Matrices are gathered where they are used; what lies on a device between two steps is its share."""
    whole, parts = (compiled(settings(batch=8, sharding=sharding), 8) for sharding in ("data", "fsdp"))
    counts = hlo.read(parts)
    assert counts.collectives["all-gather"] > 0 and not hlo.read(whole).collectives.get("all-gather")
    made = over(settings(batch=8, sharding="fsdp"), 8)
    lying = sum(
        int(np.prod(place.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf, place in zip(jax.tree.leaves(jax.eval_shape(made.initial)), jax.tree.leaves(made.layout), strict=True)
    )
    saved = memory_of(whole)["outputs"] - memory_of(parts)["outputs"]
    assert memory_of(whole)["arguments"] - memory_of(parts)["arguments"] == saved > lying  # more than half is saved


def exchanged(program: Any) -> int:
    """Numbers that all-reduces carry."""
    lines = [line for line in program.as_text().splitlines() if re.search(r" all-reduce(-start)?\(", line)]
    shapes = [shape for line in lines for shape in re.findall(r"f32\[([\d,]*)\]", line.split(" all-reduce")[0])]
    return sum(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)
