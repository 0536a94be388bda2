"""Benchmark cases. To add an op, add one decorated function that makes the inputs and defines what is run on them.

Formulas count the work required by the definition, independent of the implementation: products dense in the parcels, each input read once
and each output written once. `b` is the size of a floating-point input in bytes; indices take 4 bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from pnet_jax.bench.inputs import Inputs, candidates, neighbours
from pnet_jax.ops.shapes import COHORTS, SCANS, Shape

STEPS = 12  # iterations of the mixture


class CasePartition(NamedTuple):
    """Distribution of a case over several devices.

    Attributes:
      axis: Mesh axis whose number of parts is varied, `"subject"` or `"location"`.
      inputs: PartitionSpec of each argument.
      outputs: PartitionSpecs of the outputs; `local` then runs inside `shard_map`. If None, the compiler distributes everything.
      local: Function that one device runs on its part, with the implementation's name first; `Work.run` if None.
      over: For ops that distribute their work over a mesh themselves: `over(implementation, mesh, *arguments)`, instead of the others.
    """

    axis: str
    inputs: tuple[Any, ...]
    outputs: Any = None
    local: Callable[..., Any] | None = None
    over: Callable[..., Any] | None = None


class Work(NamedTuple):
    """Work to be timed.

    Attributes:
      run: Function to compile, `run(implementation, *arguments)`.
      arguments: NumPy arrays.
      spread: Distribution over devices, or None if it is not measured.
    """

    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    spread: CasePartition | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """Benchmark of one op.

    Attributes:
      op: Name of the op.
      shapes: Names of the shapes to measure.
      implementations: Names of the implementations.
      dtypes: Types of the floating-point inputs.
      flop: Function from a shape to its number of floating-point operations.
      bytes: Function from a shape and the size of a floating-point input to the least number of bytes to move.
      grows: Letters of the sizes whose effect is measured.
      base: Shape from which sizes are varied.
      build: Function that makes the `Work` of a shape.
    """

    op: str
    shapes: tuple[str, ...]
    implementations: tuple[str, ...]
    dtypes: tuple[str, ...]
    flop: Callable[[Shape], float]
    bytes: Callable[[Shape, int], float]
    grows: str
    base: Shape
    build: Callable[[Shape, Inputs], Work]


CASES: dict[str, Case] = {}
SCAN_BASE = Shape("scan", V=8192, T=128, R=128, D=32, K=64, C=8, N=26)
COHORT_BASE = Shape("cohort", S=32, T=128, K=64, P=256)


def case(
    op: str,
    *,
    shapes: tuple[str, ...],
    flop: Callable[[Shape], float],
    bytes: Callable[[Shape, int], float],
    grows: str,
    implementations: tuple[str, ...] = ("reference", "chunked"),
    dtypes: tuple[str, ...] = ("float32",),
) -> Callable[[Callable[[Shape, Inputs], Work]], Callable[[Shape, Inputs], Work]]:
    """Decorator that turns a function from a shape and `Inputs` to the `Work` into a case."""

    def add(build: Callable[[Shape, Inputs], Work]) -> Callable[[Shape, Inputs], Work]:
        base = COHORT_BASE if set(shapes) <= set(COHORTS) else SCAN_BASE
        CASES[op] = Case(op, shapes, implementations, dtypes, flop, bytes, grows, base, build)
        return build

    return add


@case(
    "correlation",
    shapes=COHORTS,
    flop=lambda s: 2 * s.S * s.K**2 * s.T,
    bytes=lambda s, b: s.S * s.K * (b * s.T + 4 * s.K),
    grows="STK",
)
def _correlation(shape: Shape, make: Inputs) -> Work:
    from pnet_jax.ops.correlation import correlation

    def run(implementation: str, signals: jax.Array) -> jax.Array:
        return correlation(signals, implementation=implementation)

    return Work(run, (make.signals(shape.S, shape.K, shape.T),), CasePartition("subject", (P("subject"),), P("subject")))


@case(
    "fingerprint",
    shapes=SCANS,
    flop=lambda s: 2 * s.V * s.R * (s.T + s.D),
    bytes=lambda s, b: b * (s.V * s.T + s.R * (s.T + s.D)) + 4 * s.V * s.D,
    grows="VTRD",
)
def _fingerprint(shape: Shape, make: Inputs) -> Work:
    from pnet_jax.ops.fingerprint import fingerprint

    def run(implementation: str, y: jax.Array, references: jax.Array, projection: jax.Array) -> jax.Array:
        return fingerprint(y, references, projection=projection, implementation=implementation)

    arguments = (make.signals(shape.V, shape.T), make.signals(shape.R, shape.T), make.normal(shape.R, shape.D))
    return Work(run, arguments, CasePartition("location", (P("location"), P(), P()), P("location")))


@case(
    "soft_assign",
    shapes=SCANS,
    flop=lambda s: 4 * s.V * s.K * s.D,
    bytes=lambda s, b: b * (s.V * s.D + s.K * s.D + s.V * s.C) + 4 * (2 * s.V * s.C + s.K * s.D),
    grows="VKD",
)
def _soft_assign(shape: Shape, make: Inputs) -> Work:
    from pnet_jax.ops.soft_assign import soft_assign

    def run(implementation: str, z: jax.Array, prototypes: jax.Array, candidates: jax.Array, bias: jax.Array) -> Any:
        return soft_assign(z, prototypes, candidates, bias, 20.0, implementation=implementation)

    def local(implementation: str, *arguments: jax.Array) -> Any:
        q, sums, masses = run(implementation, *arguments)
        return q, *jax.lax.psum((sums, masses), "location")

    arguments = (make.unit(shape.V, shape.D), make.unit(shape.K, shape.D), candidates(shape), make.normal(shape.V, shape.C))
    inputs = (P("location"), P(), P("location"), P("location"))
    return Work(run, arguments, CasePartition("location", inputs, (P("location"), P(), P()), local))


@case(
    "potts",
    shapes=SCANS,
    flop=lambda s: s.N * s.V * s.C,
    bytes=lambda s, b: 2 * b * s.V * s.C + 4 * s.V * (s.C + s.N),
    grows="VC",
)
def _potts(shape: Shape, make: Inputs) -> Work:
    from pnet_jax.ops.potts import reference
    from pnet_jax.ops.potts.chunked import match_table, sum_neighbours

    def run(implementation: str, q: jax.Array, candidates: jax.Array, neighbours: jax.Array, table: jax.Array) -> jax.Array:
        if implementation == "reference":
            return reference.potts(q, candidates, neighbours, shape.K)
        return sum_neighbours(q, table)

    where, beside = candidates(shape), neighbours(shape)
    arguments = (make.shares(where), where, beside, np.asarray(match_table(where, beside, n_parcels=shape.K)))
    return Work(run, arguments)


@case(
    "mixture",
    shapes=SCANS,
    flop=lambda s: (STEPS + 1) * CASES["soft_assign"].flop(s) + STEPS * CASES["potts"].flop(s),
    bytes=lambda s, b: (STEPS + 1) * CASES["soft_assign"].bytes(s, b) + STEPS * CASES["potts"].bytes(s, b),
    grows="VKD",
    implementations=("chunked",),
)
def _mixture(shape: Shape, make: Inputs) -> Work:
    from pnet_jax.ops.potts.chunked import match_table
    from pnet_jax.parcellation.mixture import Problem, mixture

    def run(implementation: str, *problem: Any) -> Any:
        return mixture(Problem(*problem), jnp.float32(20), jnp.float32(0.3), steps=STEPS)

    where, beside = candidates(shape), neighbours(shape)
    log_prior = np.where(where < 0, 0, np.log(make.shares(where).astype(np.float32) + 1e-3)).astype(make.dtype)
    table = np.asarray(match_table(where, beside, n_parcels=shape.K))
    return Work(run, (make.unit(shape.V, shape.D), where, log_prior, table, make.unit(shape.K, shape.D)))


@case(
    "location_correlation",
    shapes=SCANS,
    flop=lambda s: s.V**2 * s.T,  # the table is symmetric, so half of it suffices
    bytes=lambda s, b: b * s.V * s.T + 4 * s.V,
    grows="VT",
    implementations=("chunked",),
)
def _location_correlation(shape: Shape, make: Inputs) -> Work:
    from pnet_jax.ops.location_correlation import location_correlation, ring

    def run(implementation: str, y: jax.Array) -> jax.Array:
        return location_correlation(y, implementation=implementation)

    def local(implementation: str, y: jax.Array) -> jax.Array:
        return ring.total(y, jnp.ones(y.shape[1], y.dtype), jnp.ones(len(y), bool), jnp.arctanh, "location")[0]

    return Work(run, (make.signals(shape.V, shape.T),), CasePartition("location", (P("location"),), P("location"), local))


@case(
    "partial",
    shapes=COHORTS,
    flop=lambda s: s.S * (2 * s.K**2 * s.T + 2 * s.K**3),  # one covariance and one inverse
    bytes=lambda s, b: CASES["correlation"].bytes(s, b),
    grows="STK",
)
def _partial(shape: Shape, make: Inputs) -> Work:
    from pnet_jax.ops.partial import partial

    def run(implementation: str, signals: jax.Array) -> jax.Array:
        return partial(signals, implementation=implementation)

    return Work(run, (make.signals(shape.S, shape.K, shape.T),), CasePartition("subject", (P("subject"),), P("subject")))


@case(
    "tangent",
    shapes=COHORTS,
    flop=lambda s: s.S * 6 * s.K**3,  # logarithms at a given mean: two products for whitening, one for the reconstruction
    bytes=lambda s, b: 4 * s.K**2 * (2 * s.S + 1),
    grows="SK",
)
def _tangent(shape: Shape, make: Inputs) -> Work:
    from pnet_jax.ops.tangent import tangent

    def run(implementation: str, covariances: jax.Array) -> Any:
        return tangent(covariances, implementation=implementation)

    return Work(run, (make.covariances(shape.S, shape.K),))


@case(
    "distance_correlation",
    shapes=COHORTS,
    flop=lambda s: s.S * s.K**2 * s.T**2,  # distances between frames are symmetric
    bytes=lambda s, b: CASES["correlation"].bytes(s, b),
    grows="STK",
)
def _distance_correlation(shape: Shape, make: Inputs) -> Work:
    from pnet_jax.ops.distance_correlation import distance_correlation

    def run(implementation: str, signals: jax.Array) -> jax.Array:
        return distance_correlation(signals, implementation=implementation)

    return Work(run, (make.signals(shape.S, shape.K, shape.T),), CasePartition("subject", (P("subject"),), P("subject")))


def _portrait_case(op: str, lengths: str, bins: int, flop: Callable[[Shape], float]) -> None:
    """Compare all pairs of S networks with K nodes; paths and counts are not products, so the roofline is of little relevance."""

    def build(shape: Shape, make: Inputs) -> Work:
        from pnet_jax.ops.portrait import PortraitSettings, portrait_divergence

        settings = PortraitSettings(lengths=lengths, bins=bins)

        def run(implementation: str, weights: jax.Array) -> jax.Array:
            return over(implementation, None, weights)

        def over(implementation: str, mesh: Mesh | None, weights: jax.Array) -> jax.Array:
            return portrait_divergence(weights, settings, implementation=implementation, mesh=mesh).divergence

        return Work(run, (make.networks(shape.S, shape.K),), CasePartition("subject", (P("subject"),), over=over))

    case(op, shapes=COHORTS, flop=flop, bytes=lambda s, b: 4 * s.S * (s.K**2 + s.S), grows="SK", implementations=("chunked",))(build)


# Hops: one product per level, five levels, then the cells of S (S − 1) / 2 pairs of portraits.
_portrait_case("portrait_hops", "hops", 100, lambda s: s.S * 10 * s.K**3 + s.S**2 / 2 * 5 * s.K)
# Lengths: one min-plus product, then 100 bins per pair.
_portrait_case("portrait_lengths", "1/w", 100, lambda s: s.S * 2 * s.K**3 + s.S**2 / 2 * 100 * s.K)


def _permutation_case(op: str, threshold: float | None, implementations: tuple[str, ...]) -> None:
    def build(shape: Shape, make: Inputs) -> Work:
        from pnet_jax.ops.permutation import permutation_test

        def run(implementation: str, edges: jax.Array, effect: jax.Array) -> Any:
            return over(implementation, None, edges, effect)

        def over(implementation: str, mesh: Mesh | None, edges: jax.Array, effect: jax.Array) -> Any:
            options: dict[str, Any] = {"permutations": shape.P, "threshold": threshold, "implementation": implementation}
            return permutation_test(edges, effect, key=jax.random.key(0), mesh=mesh, **options)

        arguments = make.normal(shape.S, shape.E), np.arange(shape.S, dtype=np.float32) % 2
        return Work(run, arguments, CasePartition("subject", (P(), P()), over=over))

    case(
        op,
        shapes=COHORTS,
        flop=lambda s: 2 * s.P * s.S * s.E,
        bytes=lambda s, b: b * s.S * s.E + 4 * (4 * s.E + s.P),
        grows="SPK",
        implementations=implementations,
    )(build)


_permutation_case("permutation", None, ("chunked",))
_permutation_case("permutation_nbs", 3.0, ("chunked",))
