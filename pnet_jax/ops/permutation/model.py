"""Model of a permutation test, shared by both implementations: unit vectors, and the permutation with a given number.

If edges and regressor are residualised for the covariates and scaled to unit length, every statistic is a correlation r, and
t = r √(df / (1 − r²)) is monotone in it. One product of permuted regressors with the edges then gives all statistics, and ranks and maxima
are those of r.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


class PermutationModel(NamedTuple):
    """Model of a permutation test.

    Attributes:
      data: edges, residualised for the covariates and of unit length; 0 for an edge that cannot be tested, `[S, E]`.
      rows: regressor, followed by an orthonormal basis of the covariates, `[1 + Q, S]`.
      strata: stratum of each subject, within which subjects are permuted, `[S]`; None if signs are flipped instead.
      df: degrees of freedom.
      tested: whether each edge can be tested, `[E]`.
    """

    data: Float[Array, "S E"]
    rows: Float[Array, "Q S"]
    strata: Int[Array, " S"] | None
    df: Float[Array, ""]
    tested: Bool[Array, " E"]


def two_sample(
    edges: Float[Array, "S E"], effect: Float[Array, " S"], covariates: Float[Array, "S Q"], strata: Int[Array, " S"], levels: int = 1
) -> PermutationModel:
    """Make the model of a regressor with covariates and a mean (Freedman and Lane); with several levels of strata, a mean per stratum.

    Data are permuted within strata only, so the means of the strata stay 0 and need no rows of their own.
    """
    basis, rank = _basis(_centred(covariates, strata, levels))
    regressor = _free(_centred(effect[:, None], strata, levels), basis)
    data, tested = _unit(_free(_centred(edges, strata, levels), basis), edges)
    df = len(edges) - 1 - levels - rank
    return PermutationModel(
        data, jnp.concatenate([_unit(regressor, effect[:, None])[0], basis], 1).T, strata, df.astype(edges.dtype), tested
    )


def _centred(x: Float[Array, "S E"], strata: Int[Array, " S"], levels: int) -> Float[Array, "S E"]:
    if levels == 1:
        return x - x.mean(0, keepdims=True)
    member = (strata[:, None] == jnp.arange(levels, dtype=strata.dtype)[None, :]).astype(x.dtype)
    means = jnp.matmul(member.T, x, precision="highest") / member.sum(0)[:, None]
    return x - means[strata]


def one_sample(edges: Float[Array, "S E"], covariates: Float[Array, "S Q"]) -> PermutationModel:
    """Make the model that tests the mean at covariates of 0 against 0."""
    basis, rank = _basis(covariates)
    data, tested = _unit(_free(edges, basis), edges)
    ones = jnp.ones((len(edges), 1), edges.dtype)
    df = len(edges) - 1 - rank
    return PermutationModel(data, jnp.concatenate([_unit(_free(ones, basis), ones)[0], basis], 1).T, None, df.astype(edges.dtype), tested)


def _basis(columns: Float[Array, "S Q"]) -> tuple[Float[Array, "S Q"], Int[Array, ""]]:
    """Return an orthonormal basis of the columns, with zeros beyond their rank, and the rank; collinear covariates count once."""
    basis, size, _ = jnp.linalg.svd(columns / _positive(jnp.linalg.norm(columns, axis=0, keepdims=True)), full_matrices=False)
    return jnp.where((size > 1e-5)[None, :], basis, 0), (size > 1e-5).sum()


def _free(x: Float[Array, "S E"], basis: Float[Array, "S Q"]) -> Float[Array, "S E"]:
    return x - jnp.matmul(basis, jnp.matmul(basis.T, x, precision="highest"), precision="highest")


def _unit(x: Float[Array, "S E"], raw: Float[Array, "S E"]) -> tuple[Float[Array, "S E"], Bool[Array, " E"]]:
    """Scale columns to unit length, and return which of them differ from 0 by more than the rounding error of the raw values."""
    length = jnp.linalg.norm(x, axis=0, keepdims=True)
    good = length > 32 * jnp.finfo(x.dtype).eps * jnp.linalg.norm(raw, axis=0, keepdims=True)  # False where NaN
    return jnp.where(good, x / jnp.where(good, length, 1), 0), good[0]


def _positive(x: Float[Array, "1 Q"]) -> Float[Array, "1 Q"]:
    return jnp.where(x > 0, x, 1)


def rearranged(model: PermutationModel, key: PRNGKeyArray, number: Int[Array, ""]) -> Float[Array, "Q S"]:
    """Return the rows of permutation `number`, which depends only on `key` and `number`."""
    key, subjects = jax.random.fold_in(key, number), model.rows.shape[1]
    if model.strata is None:
        return model.rows * jax.random.rademacher(key, (1, subjects), model.rows.dtype)
    order = jnp.lexsort((jax.random.bits(key, (subjects,)), model.strata))
    return model.rows[:, jnp.zeros(subjects, order.dtype).at[jnp.argsort(model.strata)].set(order)]


def correlations(model: PermutationModel, rows: Float[Array, "B Q S"]) -> Float[Array, "B E"]:
    """Return the correlations of regressor and edges after each permutation, partialling out the permuted covariates."""
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
    """Return the tolerance up to which permutations with the same groups give the same r."""
    return 32 * float(jnp.finfo(dtype).eps)
