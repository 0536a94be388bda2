"""Public function of the op."""

from collections.abc import Callable

import chex
import numpy as np
from jaxtyping import Array, Float, Int

from pnet_jax.ops._choose import choose
from pnet_jax.ops.potts import chunked, reference

_IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {"reference": reference.potts, "chunked": chunked.potts}


def potts(
    q: Float[Array, "V C"],
    candidates: Int[np.ndarray, "V C"],
    neighbours: Int[np.ndarray, "V N"],
    *,
    n_parcels: int,
    implementation: str | None = None,
) -> Float[Array, "V C"]:
    r"""Sum the probabilities of the neighbours of each location for each of its candidate parcels.

    .. math:: s_{vk} = \sum_{u \in N(v)} q_{uk}

    Args:
      q: probability of each candidate, `[V, C]`; 0 in the padding.
      candidates: candidate parcels of each location, padded with −1, without duplicates in a row, `[V, C]`.
      neighbours: adjacent locations, padded with −1, symmetric, `[V, N]`.
      n_parcels: number of parcels K.
      implementation: `"reference"` or `"chunked"` (default).

    Returns:
      Sums over the neighbours, `[V, C]`; 0 in the padding.

    Raises:
      ValueError: If shapes do not agree or the implementation is unknown.

    Memory: 4·N·V·C bytes for the table (`chunked`), or N·V·K values (`reference`). For repeated calls, make the table once with
    `match_table` and call `sum_neighbours`.

    >>> import jax.numpy as jnp
    >>> q = jnp.array([[1.0, 0.0], [0.4, 0.6]])
    >>> candidates = np.array([[0, 1], [1, 0]]); neighbours = np.array([[1], [0]])
    >>> [[f"{s:.1f}" for s in row] for row in potts(q, candidates, neighbours, n_parcels=2)]
    [['0.6', '0.4'], ['0.0', '1.0']]

    Source: mean-field update of a Potts model, e.g. Zhang, Brady & Smith 2001.
    """
    if q.shape != candidates.shape or q.ndim != 2:
        raise ValueError(f"q and candidates must have the same shape [V, C], got {q.shape} and {candidates.shape}")
    if neighbours.ndim != 2 or len(neighbours) != len(q):
        raise ValueError(f"neighbours must have shape ({len(q)}, N), got {neighbours.shape}")
    chex.assert_type(
        [q, candidates, neighbours],
        [float, int, int],
        exception_type=ValueError,
        custom_message="q must be floating point, candidates and neighbours integers",
    )
    return choose(_IMPLEMENTATIONS, implementation)(q, candidates, neighbours, n_parcels)
