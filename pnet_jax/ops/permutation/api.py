"""The face of the op."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from pnet_jax.ops._choose import choose
from pnet_jax.ops.permutation import chunked, reference
from pnet_jax.ops.permutation.correct import false_discovery_rate
from pnet_jax.ops.permutation.model import Model, correlations, one_sample, sided, slack, to_t, two_sample

_TESTS = {"reference": reference.test, "chunked": chunked.test}
_COMPONENTS = {"reference": reference.components, "chunked": chunked.components}
TAILS = ("both", "greater", "less")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Components:
    """Connected components of the edges above a threshold, largest first; K // 2 places, 0 and NaN where there are fewer.

    Attributes:
      label: the component of each edge, −1 for none, `[E]`.
      extent: number of edges, `[C]`.
      intensity: sum of t − threshold over the edges, `[C]`.
      p_extent: family-wise p of the extent, `[C]`.
      p_intensity: family-wise p of the intensity, `[C]`.
      max_extent: largest extent of each rearrangement, `[P]`.
      max_intensity: largest intensity of each rearrangement, `[P]`.
      threshold: of t.
    """

    label: Int[Array, " E"]
    extent: Float[Array, " C"]
    intensity: Float[Array, " C"]
    p_extent: Float[Array, " C"]
    p_intensity: Float[Array, " C"]
    max_extent: Float[Array, " P"]
    max_intensity: Float[Array, " P"]
    threshold: Float[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PermutationResult:
    """What a test found; NaN for edges that cannot be tested: a NaN in any subject, or no variation.

    Attributes:
      t: statistic, `[E]`.
      p: (1 + rearrangements that reach the edge's own t) / (1 + P), uncorrected, `[E]`.
      p_fwe: the same with the largest t of each rearrangement: family-wise, `[E]`.
      q: false discovery rate (Benjamini and Hochberg) of p, `[E]`.
      max_t: largest t of each rearrangement, by size where both tails count, `[P]`.
      df: degrees of freedom.
      components: of the edges above a threshold, if one was given.
      tail: which values count as extreme.
    """

    t: Float[Array, " E"]
    p: Float[Array, " E"]
    p_fwe: Float[Array, " E"]
    q: Float[Array, " E"]
    max_t: Float[Array, " P"]
    df: Float[Array, ""]
    components: Components | None
    tail: str = dataclasses.field(metadata={"static": True})


def permutation_test(
    edges: Float[Array, "S E"],
    effect: Float[Array, " S"],
    covariates: Float[Array, "S Q"] | None = None,
    *,
    key: PRNGKeyArray,
    permutations: int = 5000,
    tail: str = "both",
    strata: Int[Array, " S"] | None = None,
    threshold: float | None = None,
    ends: Int[np.ndarray, "E 2"] | None = None,
    implementation: str | None = None,
    mesh: Mesh | None = None,
) -> PermutationResult:
    r"""Which edges go with a group or a measure, with p values from permuted subjects.

    .. math:: t = r \sqrt{\mathrm{df} / (1 - r^2)}, \quad r = \mathrm{corr}(R_Z x, R_Z y)

    with x the effect, y an edge and R_Z what covariates and a mean leave. With x = 0 or 1 and no covariates this is the two-sample t with
    pooled variance. The edges' residuals are permuted and fitted anew to the whole model each time (Freedman and Lane), rearrangements and
    edges as one product of matrices. With a threshold, components of the edges beyond it are tested too (network-based statistic).

    Args:
      edges: `[S, E]`.
      effect: group as 0 and 1, or any measure, `[S]`; t > 0 where edges grow with it.
      covariates: held constant, such as age, or sites as zeros and ones, `[S, Q]`; a mean is always held.
      key: `jax.random.key`; rearrangement i depends on key and i only.
      permutations: P.
      tail: `"both"`, `"greater"` or `"less"`.
      strata: whole numbers such as sites, `[S]`; subjects change places within a stratum only.
      threshold: of t, > 0; for components.
      ends: the two nodes of each edge, `[E, 2]`; `numpy.triu_indices(K, 1)` in its order if not given.
      implementation: `"reference"` or `"chunked"`; `"chunked"` if not given.
      mesh: whose axis "subject" splits the rearrangements, each device with all edges; not given, they are not split.

    Returns:
      `PermutationResult`.

    Raises:
      ValueError: shapes that do not agree, too few subjects, an effect that does not vary or that the covariates explain (values are looked
        at outside `jit` only), a threshold or tail that does not exist, an unknown implementation, or a mesh without the axis.

    Memory: two arrays like `edges`, plus about 40 MB of one block of rearrangements (`chunked`), or [P, E] and [P, K, K] (`reference`).

    >>> edges = jnp.array([[0.0, 3], [1, 1], [2, 2], [10, 1], [11, 3], [12, 2]])
    >>> found = permutation_test(edges, jnp.array([0.0, 0, 0, 1, 1, 1]), key=jax.random.key(0), permutations=999)
    >>> f"{found.t[0]:.2f}", bool(found.p[0] < 0.15), found.p[1].item()
    ('12.25', True, 1.0)

    Source: Freedman and Lane 1983; Nichols and Holmes 2002; Zalesky, Fornito and Bullmore 2010; Phipson and Smyth 2010.
    """
    edges = _floating(edges)
    subjects = len(edges)
    covariates = jnp.zeros((subjects, 0), edges.dtype) if covariates is None else jnp.asarray(covariates, edges.dtype)
    strata = jnp.zeros(subjects, jnp.int32) if strata is None else jnp.asarray(strata)
    effect = jnp.asarray(effect, edges.dtype)
    for name, x, expected in (
        ("effect", effect, (subjects,)),
        ("covariates", covariates, (subjects, covariates.shape[-1])),
        ("strata", strata, (subjects,)),
    ):
        if x.shape != expected:
            raise ValueError(f"{name} must have shape {expected}, got {x.shape}")
    if subjects < covariates.shape[1] + 3:
        raise ValueError(f"{covariates.shape[1]} covariates need {covariates.shape[1] + 3} subjects or more, got {subjects}")
    model = _two_sample(edges, effect, covariates, strata)
    _check_effect(model)
    return _test(model, key, permutations, tail, threshold, ends, implementation, mesh)


def sign_flip_test(
    differences: Float[Array, "S E"],
    *,
    key: PRNGKeyArray,
    permutations: int = 5000,
    tail: str = "both",
    threshold: float | None = None,
    ends: Int[np.ndarray, "E 2"] | None = None,
    implementation: str | None = None,
    mesh: Mesh | None = None,
) -> PermutationResult:
    r"""Which edges differ from 0 on average, such as those of pairs, with p values from flipped signs.

    .. math:: t = \bar y \sqrt{S} / s_y

    Args:
      differences: second minus first of each pair, or any values that are symmetric about 0 under the null, `[S, E]`.
      key, permutations, tail, threshold, ends, implementation, mesh: as in `permutation_test`; a subject's edges flip together.

    Returns:
      `PermutationResult`.

    Raises:
      ValueError: as `permutation_test`.

    Memory: as `permutation_test`.

    >>> found = sign_flip_test(jnp.array([[1.0], [2], [3], [2], [2]]), key=jax.random.key(0), permutations=999)
    >>> f"{found.t[0]:.2f}", bool(0.03 < found.p[0] < 0.1)
    ('6.32', True)

    Source: Nichols and Holmes 2002.
    """
    differences = _floating(differences)
    if len(differences) < 2:
        raise ValueError(f"differences need 2 subjects or more, got {len(differences)}")
    return _test(_one_sample(differences), key, permutations, tail, threshold, ends, implementation, mesh)


_two_sample, _one_sample = jax.jit(two_sample), jax.jit(one_sample)


def _test(
    model: Model,
    key: PRNGKeyArray,
    permutations: int,
    tail: str,
    threshold: float | None,
    ends: Int[np.ndarray, "E 2"] | None,
    implementation: str | None,
    mesh: Mesh | None,
) -> PermutationResult:
    if permutations < 1:
        raise ValueError(f"permutations must be 1 or more, got {permutations}")
    if tail not in TAILS:
        raise ValueError(f"tail must be one of {TAILS}, got {tail!r}")
    if threshold is not None and not threshold > 0:
        raise ValueError(f"threshold must be above 0, got {threshold}")
    choose(_TESTS, implementation)
    if mesh is not None and chunked.SUBJECT not in mesh.axis_names:
        raise ValueError(f"expected a mesh with an axis {chunked.SUBJECT}, got {mesh.axis_names}")
    if mesh is not None and implementation == "reference":
        raise ValueError("a mesh needs the implementation 'chunked', got 'reference'")
    table = np.zeros((1, 1), np.int32) if threshold is None else edge_table(model.data.shape[1], ends)
    cut = None if threshold is None else np.asarray(threshold, model.data.dtype)
    return _run(model, key, table, cut, permutations=permutations, tail=tail, implementation=implementation, mesh=mesh)


@functools.partial(jax.jit, static_argnames=("permutations", "tail", "implementation", "mesh"))
def _run(
    model: Model,
    key: Array,
    table: Array,
    threshold: Array | None,
    *,
    permutations: int,
    tail: str,
    implementation: str | None,
    mesh: Mesh | None,
) -> PermutationResult:
    r = correlations(model, model.rows[None])[0]
    test = choose(_TESTS, implementation) if mesh is None else functools.partial(chunked.over, mesh)
    exceeded, largest, *maxima = test(model, key, permutations, tail, threshold, table)

    def blank(x: Array) -> Array:
        return jnp.where(model.tested, x, jnp.nan)

    p = blank((1 + exceeded).astype(r.dtype) / (1 + permutations))
    p_fwe = blank(_reached(largest, sided(r, tail), slack(r.dtype)))
    components = None
    if threshold is not None:
        own = jnp.where(model.tested, sided(r, tail), -jnp.inf)[None]
        components = _components(reference.excess(own, model, threshold), table, maxima, threshold, implementation)
    max_t = to_t(largest, model.df)
    return PermutationResult(blank(to_t(r, model.df)), p, p_fwe, false_discovery_rate(p), max_t, model.df, components, tail)


def _components(excess: Array, table: Array, maxima: list[Array], threshold: Array, implementation: str | None) -> Components:
    label, extent, intensity = (x[0] for x in choose(_COMPONENTS, implementation)(excess, table))
    nodes = len(table)
    order = jnp.lexsort((-intensity, -extent))
    place = jnp.zeros(nodes, jnp.int32).at[order].set(jnp.arange(nodes, dtype=jnp.int32))
    extent, intensity = extent[order][: nodes // 2], intensity[order][: nodes // 2]
    row = jnp.zeros(excess.shape[1] + 1, jnp.int32).at[table].set(jnp.arange(nodes, dtype=jnp.int32)[:, None])[:-1]
    of_edge = jnp.where(excess[0] > 0, place[label[row]], -1)
    # Sums of many rearrangements differ by rounding; extents are whole numbers.
    p_extent, p_intensity = (
        jnp.where(extent > 0, _reached(null, own, margin), jnp.nan)
        for null, own, margin in ((maxima[0], extent, 0.0), (maxima[1], intensity, 1e-5 * intensity))
    )
    return Components(of_edge, extent, intensity, p_extent, p_intensity, maxima[0], maxima[1], threshold)


def _reached(null: Array, own: Array, margin: Array | float) -> Array:
    """(1 + how many of the null reach each value) / (1 + how many there are)."""
    below = jnp.searchsorted(jnp.sort(null), own - margin)
    return (1 + len(null) - below).astype(own.dtype) / (1 + len(null))


def edge_table(n_edges: int, ends: Int[np.ndarray, "E 2"] | None) -> Int[np.ndarray, "K K"]:
    """The number of the edge between two nodes, −1 where there is none."""
    if ends is None:
        nodes = int((1 + np.sqrt(1 + 8 * n_edges)) / 2)
        if nodes * (nodes - 1) // 2 != n_edges:
            raise ValueError(f"edges must be all K (K - 1) / 2 pairs of K nodes where ends are not given, got {n_edges}")
        ends = np.stack(np.triu_indices(nodes, 1), 1)
    ends = np.asarray(ends)
    if ends.shape != (n_edges, 2) or ends.min() < 0 or (ends[:, 0] == ends[:, 1]).any():
        raise ValueError(f"ends must be two different nodes, 0 or more, of each of {n_edges} edges, got shape {ends.shape}")
    table = np.full((ends.max() + 1,) * 2, -1, np.int32)
    table[ends[:, 0], ends[:, 1]] = table[ends[:, 1], ends[:, 0]] = np.arange(n_edges)
    if (table >= 0).sum() != 2 * n_edges:
        raise ValueError("ends name an edge twice")
    return table


def _floating(edges: Any) -> Array:
    edges = jnp.asarray(edges)
    if edges.ndim != 2 or not edges.shape[1] or not jnp.issubdtype(edges.dtype, jnp.floating):
        raise ValueError(f"edges must be floating point [subjects, edges], got {edges.dtype} of shape {edges.shape}")
    return edges if edges.dtype.itemsize >= 4 else edges.astype(jnp.float32)


def _check_effect(model: Model) -> None:
    if not isinstance(model.rows, jax.core.Tracer) and not np.asarray(model.rows[0]).any():
        raise ValueError("effect must vary among subjects beyond what the covariates explain")
