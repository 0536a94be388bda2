"""Public functions of the op."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from pnet_jax.ops._choose import choose
from pnet_jax.ops.permutation import chunked, reference
from pnet_jax.ops.permutation.asked import Asked, Enhancement, Kept, make_asked
from pnet_jax.ops.permutation.correct import false_discovery_rate
from pnet_jax.ops.permutation.model import PermutationModel, correlations, one_sample, sided, slack, to_t, two_sample
from pnet_jax.ops.permutation.results import Components, EdgeSets, Enhanced, PermutationResult

_TESTS = {"reference": reference.test, "chunked": chunked.test}
_COMPONENTS = {"reference": reference.components, "chunked": chunked.components}
_ENHANCED = {"reference": reference.enhanced, "chunked": chunked.enhanced}
TAILS = ("both", "greater", "less")


def permutation_test(
    edges: Float[Array, "S E"],
    effect: Float[Array, " S"],
    covariates: Float[Array, "S Q"] | None = None,
    *,
    key: PRNGKeyArray,
    permutations: int = 5000,
    tail: str = "both",
    strata: Int[Array, " S"] | None = None,
    within_strata: bool = False,
    threshold: float | None = None,
    enhancement: Enhancement | None = None,
    sets: Mapping[str, Bool[np.ndarray, "E G"]] | None = None,
    ends: Int[np.ndarray, "E 2"] | None = None,
    implementation: str | None = None,
    mesh: Mesh | None = None,
) -> PermutationResult:
    r"""Test the association of each edge with a group or a continuous variable, by permutation of subjects.

    .. math:: t = r \sqrt{\mathrm{df} / (1 - r^2)}, \quad r = \mathrm{corr}(R_Z x, R_Z y)

    where x is the effect, y an edge and R_Z the residual after regression on the covariates and a mean. With x = 0 or 1 and no covariates,
    this is the two-sample t with pooled variance. The residuals of the edges are permuted and refitted to the full model each time
    (Freedman and Lane); permutations and edges are computed as one matrix product. With a threshold, components of the edges beyond it are
    tested too (network-based statistic); with an enhancement, each edge is tested by its components at all thresholds (threshold-free
    network-based statistic); with sets, the mean t and t² of each set of edges are tested.

    Args:
      edges: edges, `[S, E]`.
      effect: group as 0 and 1, or any continuous variable, `[S]`; t > 0 if edges increase with it.
      covariates: nuisance covariates, e.g. age, or sites as zeros and ones, `[S, Q]`; a mean is always included.
      key: `jax.random.key`; permutation i depends on the key and i only.
      permutations: number of permutations P.
      tail: `"both"`, `"greater"` or `"less"`.
      strata: stratum of each subject as an integer, e.g. its site, `[S]`; subjects are permuted within strata only.
      within_strata: whether to include a mean for each stratum, equivalent to covariates of zeros and ones but cheaper; strata must then
        be concrete values, not traced.
      threshold: threshold of t for components, > 0.
      enhancement: settings of the threshold-free network-based statistic, e.g. `Enhancement()`; default: not computed.
      sets: families of sets of edges by name, `[E, G]` each, True if an edge belongs to a set; p values are corrected within a family.
      ends: the two nodes of each edge, `[E, 2]`; default: `numpy.triu_indices(K, 1)`.
      implementation: `"reference"` or `"chunked"` (default).
      mesh: mesh whose axis "subject" splits the permutations, with edges replicated on all devices; default: no split.

    Returns:
      `PermutationResult`.

    Raises:
      ValueError: If shapes do not agree, there are too few subjects, the effect does not vary or is explained by the covariates (values are
        checked outside `jit` only), the threshold or tail is invalid, the implementation is unknown, or the mesh lacks the axis.

    Memory: two arrays like `edges`, plus about 40 MB for one block of permutations (`chunked`; 120 MB with an enhancement), or [P, E] and
    [P, K, K] (`reference`), plus two numbers per permutation and set.

    >>> edges = jnp.array([[0.0, 3], [1, 1], [2, 2], [10, 1], [11, 3], [12, 2]])
    >>> found = permutation_test(edges, jnp.array([0.0, 0, 0, 1, 1, 1]), key=jax.random.key(0), permutations=999)
    >>> f"{found.t[0]:.2f}", bool(found.p[0] < 0.15), found.p[1].item()
    ('12.25', True, 1.0)

    Source: Freedman and Lane 1983; Nichols and Holmes 2002; Zalesky, Fornito and Bullmore 2010; Phipson and Smyth 2010; threshold-free:
    Vinokur et al. 2015, Baggio et al. 2018 (Human Brain Mapping 39); sets: Noble and Scheinost 2020.
    """
    edges = _floating(edges)
    subjects = len(edges)
    covariates = jnp.zeros((subjects, 0), edges.dtype) if covariates is None else jnp.asarray(covariates, edges.dtype)
    strata = jnp.zeros(subjects, jnp.int32) if strata is None else jnp.asarray(strata)
    levels = 1
    if within_strata:
        names, places = np.unique(np.asarray(strata), return_inverse=True)
        strata, levels = jnp.asarray(places.astype(np.int32)), len(names)
    effect = jnp.asarray(effect, edges.dtype)
    for name, x, expected in (
        ("effect", effect, (subjects,)),
        ("covariates", covariates, (subjects, covariates.shape[-1])),
        ("strata", strata, (subjects,)),
    ):
        if x.shape != expected:
            raise ValueError(f"{name} must have shape {expected}, got {x.shape}")
    if subjects < (least := covariates.shape[1] + levels + 2):
        beside = f" and {levels} strata" if levels > 1 else ""
        raise ValueError(f"{covariates.shape[1]} covariates{beside} need at least {least} subjects, got {subjects}")
    model = _two_sample(edges, effect, covariates, strata, levels)
    _check_effect(model)
    asked = make_asked(edges.shape[1], edges.dtype, threshold, enhancement, sets, ends)
    return _test(model, key, permutations, tail, asked, implementation, mesh)


def sign_flip_test(
    differences: Float[Array, "S E"],
    covariates: Float[Array, "S Q"] | None = None,
    *,
    key: PRNGKeyArray,
    permutations: int = 5000,
    tail: str = "both",
    threshold: float | None = None,
    enhancement: Enhancement | None = None,
    sets: Mapping[str, Bool[np.ndarray, "E G"]] | None = None,
    ends: Int[np.ndarray, "E 2"] | None = None,
    implementation: str | None = None,
    mesh: Mesh | None = None,
) -> PermutationResult:
    r"""Test whether each edge differs from 0 on average, e.g. within-subject differences, by flipping signs.

    .. math:: t = \bar y \sqrt{S} / s_y

    With covariates, t is that of the intercept, and the signs of the residuals of the model without it are flipped (Freedman and Lane).

    Args:
      differences: second minus first measurement of each pair, or any values that are symmetric about 0 under the null, `[S, E]`.
      covariates: second minus first value of nuisance covariates, `[S, Q]`; not centred, so that the mean is tested at covariates of 0.
      key, permutations, tail, threshold, enhancement, sets, ends, implementation, mesh: as in `permutation_test`; the signs of all edges of
        a subject flip together.

    Returns:
      `PermutationResult`.

    Raises:
      ValueError: As for `permutation_test`.

    Memory: as for `permutation_test`.

    >>> found = sign_flip_test(jnp.array([[1.0], [2], [3], [2], [2]]), key=jax.random.key(0), permutations=999)
    >>> f"{found.t[0]:.2f}", bool(0.03 < found.p[0] < 0.1)
    ('6.32', True)

    Source: Nichols and Holmes 2002.
    """
    differences = _floating(differences)
    subjects = len(differences)
    covariates = jnp.zeros((subjects, 0), differences.dtype) if covariates is None else jnp.asarray(covariates, differences.dtype)
    if covariates.shape != (subjects, covariates.shape[-1]):
        raise ValueError(f"covariates must have shape {(subjects, covariates.shape[-1])}, got {covariates.shape}")
    if subjects < covariates.shape[1] + 2:
        raise ValueError(f"differences need at least {covariates.shape[1] + 2} subjects, got {subjects}")
    model = _one_sample(differences, covariates)
    _check_effect(model)
    asked = make_asked(differences.shape[1], differences.dtype, threshold, enhancement, sets, ends)
    return _test(model, key, permutations, tail, asked, implementation, mesh)


_two_sample, _one_sample = jax.jit(two_sample, static_argnums=4), jax.jit(one_sample)


def _test(
    model: PermutationModel, key: PRNGKeyArray, permutations: int, tail: str, asked: Asked, implementation: str | None, mesh: Mesh | None
) -> PermutationResult:
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, got {permutations}")
    if tail not in TAILS:
        raise ValueError(f"tail must be one of {TAILS}, got {tail!r}")
    choose(_TESTS, implementation)
    if mesh is not None and chunked.SUBJECT not in mesh.axis_names:
        raise ValueError(f"expected a mesh with an axis {chunked.SUBJECT}, got {mesh.axis_names}")
    if mesh is not None and implementation == "reference":
        raise ValueError("a mesh needs the implementation 'chunked', got 'reference'")
    return _run(model, key, asked, permutations=permutations, tail=tail, implementation=implementation, mesh=mesh)


@functools.partial(jax.jit, static_argnames=("permutations", "tail", "implementation", "mesh"))
def _run(
    model: PermutationModel, key: Array, asked: Asked, *, permutations: int, tail: str, implementation: str | None, mesh: Mesh | None
) -> PermutationResult:
    r = correlations(model, model.rows[None])[0]
    test = choose(_TESTS, implementation) if mesh is None else functools.partial(chunked.over, mesh)
    exceeded, kept = test(model, key, permutations, tail, asked)

    def blank(x: Array) -> Array:
        return jnp.where(model.tested, x, jnp.nan)

    p = blank((1 + exceeded).astype(r.dtype) / (1 + permutations))
    p_fwe = blank(_reached(kept.largest, sided(r, tail), slack(r.dtype)))
    own = reference.beyond(r[None], model, tail)
    components, enhanced = None, None
    if asked.threshold is not None:
        components = _components(reference.excess(own, model, asked.threshold), asked, kept, implementation)
    if kept.score is not None:
        score = choose(_ENHANCED, implementation)(reference.heights(own, model), asked)[0]
        # Scores of equivalent permutations differ by rounding.
        p_score = jnp.where(score > 0, _reached(kept.score, score, 1e-4 * score), 1)
        enhanced = Enhanced(blank(score), blank(p_score), kept.score)
    t = to_t(r, model.df)
    sets = {
        name: _edge_sets(reference.set_means(t[None], one, model), kept.sets[name], one, model, tail) for name, one in asked.sets.items()
    }
    max_t = to_t(kept.largest, model.df)
    return PermutationResult(blank(t), p, p_fwe, false_discovery_rate(p), max_t, model.df, components, enhanced, sets, tail)


def _components(excess: Array, asked: Asked, kept: Kept, implementation: str | None) -> Components:
    label, extent, intensity = (x[0] for x in choose(_COMPONENTS, implementation)(excess, asked.table))
    nodes = len(asked.table)
    order = jnp.lexsort((-intensity, -extent))
    place = jnp.zeros(nodes, jnp.int32).at[order].set(jnp.arange(nodes, dtype=jnp.int32))
    extent, intensity = extent[order][: nodes // 2], intensity[order][: nodes // 2]
    of_edge = jnp.where(excess[0] > 0, place[label[asked.ends[:, 0]]], -1)
    # Intensities of equivalent permutations differ by rounding; extents are integers.
    p_extent, p_intensity = (
        jnp.where(extent > 0, _reached(null, own, margin), jnp.nan)
        for null, own, margin in ((kept.extent, extent, 0.0), (kept.intensity, intensity, 1e-5 * intensity))
    )
    return Components(of_edge, extent, intensity, p_extent, p_intensity, kept.extent, kept.intensity, asked.threshold)  # type: ignore[arg-type]


def _edge_sets(own: tuple[Array, Array], null: tuple[Array, Array], members: Array, model: PermutationModel, tail: str) -> EdgeSets:
    """Return the observed means of the sets, with p values from those of the permutations."""
    size = jnp.where(model.tested[:, None], members, 0).sum(0)

    def tested(own: Array, null: Array, tail: str) -> tuple[Array, Array, Array]:
        every = jnp.concatenate([own, null])
        spread = every.std(0, keepdims=True)
        z = sided((every - every.mean(0, keepdims=True)) / jnp.where(spread > 0, spread, 1), tail)
        z = jnp.where((size > 0)[None, :], z, -jnp.inf)
        seen = (z[1:] >= z[:1] - slack(z.dtype)).sum(0)
        p, p_fwe = (1 + seen).astype(z.dtype) / len(z), _reached(z[1:].max(1), z[0], slack(z.dtype))
        return tuple(jnp.where(size > 0, x, jnp.nan) for x in (own[0], p, p_fwe))  # type: ignore[return-value]

    return EdgeSets(size, *tested(own[0], null[0], tail), *tested(own[1], null[1], "greater"))


def _reached(null: Array | None, own: Array, margin: Array | float) -> Array:
    """Return (1 + number of null values that reach each value) / (1 + number of null values)."""
    assert null is not None
    below = jnp.searchsorted(jnp.sort(null), own - margin)
    return (1 + len(null) - below).astype(own.dtype) / (1 + len(null))


def _floating(edges: Any) -> Array:
    edges = jnp.asarray(edges)
    if edges.ndim != 2 or not edges.shape[1] or not jnp.issubdtype(edges.dtype, jnp.floating):
        raise ValueError(f"edges must be floating point [subjects, edges], got {edges.dtype} of shape {edges.shape}")
    return edges if edges.dtype.itemsize >= 4 else edges.astype(jnp.float32)


def _check_effect(model: PermutationModel) -> None:
    if not isinstance(model.rows, jax.core.Tracer) and not np.asarray(model.rows[0]).any():
        raise ValueError("effect must vary among subjects beyond what the covariates explain")
