"""What both implementations share: a test as unit vectors, and the rearrangement with a given number.

With edges and regressor of length 1 and free of what is held constant, every statistic is a correlation r, and t = r √(df / (1 − r²)) grows
with it. So one product of rearranged regressors with the edges gives all statistics, and ranks and maxima are taken of r.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


class Model(NamedTuple):
    """A test.

    Attributes:
      data: edges, each of length 1 and free of the covariates; 0 for an edge that cannot be tested, `[S, E]`.
      rows: the regressor, then an orthonormal basis of the covariates, `[1 + Q, S]`.
      strata: subjects of one stratum change places with each other only, `[S]`; None: signs flip in place of it.
      df: degrees of freedom.
      tested: which edges can be tested, `[E]`.
    """

    data: Float[Array, "S E"]
    rows: Float[Array, "Q S"]
    strata: Int[Array, " S"] | None
    df: Float[Array, ""]
    tested: Bool[Array, " E"]


def two_sample(
    edges: Float[Array, "S E"], effect: Float[Array, " S"], covariates: Float[Array, "S Q"], strata: Int[Array, " S"], levels: int = 1
) -> Model:
    """A regressor beside covariates and a mean, by Freedman and Lane; with several levels, 0…levels − 1, a mean of each stratum.

    Data are permuted within strata only, so that means of strata stay 0 and need no rows of their own.
    """
    basis, rank = _basis(_centred(covariates, strata, levels))
    regressor = _free(_centred(effect[:, None], strata, levels), basis)
    data, tested = _unit(_free(_centred(edges, strata, levels), basis), edges)
    df = len(edges) - 1 - levels - rank
    return Model(data, jnp.concatenate([_unit(regressor, effect[:, None])[0], basis], 1).T, strata, df.astype(edges.dtype), tested)


def _centred(x: Float[Array, "S E"], strata: Int[Array, " S"], levels: int) -> Float[Array, "S E"]:
    if levels == 1:
        return x - x.mean(0, keepdims=True)
    member = (strata[:, None] == jnp.arange(levels, dtype=strata.dtype)[None, :]).astype(x.dtype)
    means = jnp.matmul(member.T, x, precision="highest") / member.sum(0)[:, None]
    return x - means[strata]


def one_sample(edges: Float[Array, "S E"], covariates: Float[Array, "S Q"]) -> Model:
    """The mean against 0 where every covariate is 0."""
    basis, rank = _basis(covariates)
    data, tested = _unit(_free(edges, basis), edges)
    ones = jnp.ones((len(edges), 1), edges.dtype)
    df = len(edges) - 1 - rank
    return Model(data, jnp.concatenate([_unit(_free(ones, basis), ones)[0], basis], 1).T, None, df.astype(edges.dtype), tested)


def _basis(columns: Float[Array, "S Q"]) -> tuple[Float[Array, "S Q"], Int[Array, ""]]:
    """Orthonormal basis of the columns, 0 from their rank on, and the rank: a covariate that others explain counts once."""
    basis, size, _ = jnp.linalg.svd(columns / _positive(jnp.linalg.norm(columns, axis=0, keepdims=True)), full_matrices=False)
    return jnp.where((size > 1e-5)[None, :], basis, 0), (size > 1e-5).sum()


def _free(x: Float[Array, "S E"], basis: Float[Array, "S Q"]) -> Float[Array, "S E"]:
    return x - jnp.matmul(basis, jnp.matmul(basis.T, x, precision="highest"), precision="highest")


def _unit(x: Float[Array, "S E"], raw: Float[Array, "S E"]) -> tuple[Float[Array, "S E"], Bool[Array, " E"]]:
    """Columns of length 1, and which of them differ from 0 by more than the rounding of the values they came from."""
    length = jnp.linalg.norm(x, axis=0, keepdims=True)
    good = length > 32 * jnp.finfo(x.dtype).eps * jnp.linalg.norm(raw, axis=0, keepdims=True)  # False where NaN
    return jnp.where(good, x / jnp.where(good, length, 1), 0), good[0]


def _positive(x: Float[Array, "1 Q"]) -> Float[Array, "1 Q"]:
    return jnp.where(x > 0, x, 1)


def rearranged(model: Model, key: PRNGKeyArray, number: Int[Array, ""]) -> Float[Array, "Q S"]:
    """The rows of rearrangement `number`: the same whatever else is drawn."""
    key, subjects = jax.random.fold_in(key, number), model.rows.shape[1]
    if model.strata is None:
        return model.rows * jax.random.rademacher(key, (1, subjects), model.rows.dtype)
    order = jnp.lexsort((jax.random.bits(key, (subjects,)), model.strata))
    return model.rows[:, jnp.zeros(subjects, order.dtype).at[jnp.argsort(model.strata)].set(order)]


def correlations(model: Model, rows: Float[Array, "B Q S"]) -> Float[Array, "B E"]:
    """Correlation of regressor and edges after each rearrangement; what the covariates explain anew is taken off the edges' length."""
    found = jnp.matmul(rows.reshape(-1, rows.shape[-1]), model.data, precision="highest")
    found = found.reshape(*rows.shape[:2], -1)  # [B, Q, E]
    if rows.shape[1] == 1:
        return found[:, 0]
    left = 1 - jnp.square(found[:, 1:]).sum(1)
    return found[:, 0] / jnp.sqrt(jnp.maximum(left, jnp.finfo(rows.dtype).eps))


def to_t(r: Float[Array, "*B"], df: Float[Array, ""]) -> Float[Array, "*B"]:
    return r * jnp.sqrt(df / jnp.maximum(1 - jnp.square(r), jnp.finfo(r.dtype).eps ** 2))


def to_r(t: Float[Array, ""], df: Float[Array, ""]) -> Float[Array, ""]:
    return t / jnp.sqrt(df + jnp.square(t))


def sided(r: Float[Array, "*B"], tail: str) -> Float[Array, "*B"]:
    return jnp.abs(r) if tail == "both" else r if tail == "greater" else -r


def slack(dtype: jnp.dtype) -> float:
    """Rearrangements that give the same groups give the same r up to this."""
    return 32 * float(jnp.finfo(dtype).eps)
