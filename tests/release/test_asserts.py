"""Shapes and types at the entry of kernels and of the core: users' arguments raise ValueErrors, arrays of the core AssertionErrors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pnet_jax.ops.fingerprint import fingerprint
from pnet_jax.ops.portrait import portrait_divergence
from pnet_jax.ops.potts import potts
from pnet_jax.ops.soft_assign import soft_assign
from pnet_jax.parcellation.harden import harden
from pnet_jax.parcellation.held_out import held_out
from pnet_jax.parcellation.mixture import Problem, mixture
from pnet_jax.parcellation.signals import parcel_signals

V, C, D, K = 6, 2, 3, 4
Q, CANDIDATES = jnp.full((V, C), 0.5), jnp.zeros((V, C), jnp.int32)
PROBLEM = Problem(jnp.ones((V, D)), CANDIDATES, jnp.zeros((V, C)), jnp.zeros((0, V, C), jnp.int32), jnp.ones((K, D)))
NEIGHBOURS = np.zeros((V, 1), np.int32)


def run(**changed):
    return jax.jit(mixture)(PROBLEM._replace(**changed), jnp.float32(1), jnp.float32(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fingerprint(jnp.ones((V, 5), jnp.int32), jnp.ones((2, 5))), "y and references must be floating point"),
        (lambda: soft_assign(PROBLEM.z, PROBLEM.prototypes, Q, Q, 1.0), "candidates integers"),
        (lambda: potts(Q, np.zeros((V, C)), NEIGHBOURS, n_parcels=K), "candidates and neighbours integers"),
        (lambda: portrait_divergence(jnp.ones((2, 3, 3)), pairs=jnp.zeros((1, 2))), "pairs must be integers"),
    ],
)
def test_kernels_refuse_types_as_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: run(candidates=CANDIDATES[1:]),
        lambda: run(candidates=Q),
        lambda: run(log_prior=jnp.zeros((V, C + 1))),
        lambda: run(table=jnp.zeros((2, V, C + 1), jnp.int32)),
        lambda: run(prototypes=jnp.ones((K, D + 1))),
        lambda: held_out(Q, CANDIDATES, jnp.ones((V + 1, D)), K),
        lambda: harden(Q, CANDIDATES, PROBLEM.table, NEIGHBOURS, jnp.zeros(V + 1, jnp.int32), K),
        lambda: parcel_signals(jnp.ones((V, 5)), jnp.zeros(V - 1, jnp.int32), K),
        lambda: parcel_signals(jnp.ones((V, 5)), jnp.zeros(V), K),
    ],
)
def test_the_core_asserts_what_belongs_together(call):
    with pytest.raises(AssertionError, match="Chex"):
        call()


def test_what_belongs_together_passes():
    assert run().q.shape == (V, C)
