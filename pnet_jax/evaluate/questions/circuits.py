"""Abnormal circuits: which edges, connected components, networks and nodes are associated with a group, condition or measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy import stats

from pnet_jax.cohort import Cohort
from pnet_jax.edges.layers import MEANT_FOR, case_control_layer
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate.answer import Answer, with_p
from pnet_jax.evaluate.circuit_tables import LEVEL, Found, describe
from pnet_jax.evaluate.columns import fisher_z, layer_of, numbers, shared_parcels, upper
from pnet_jax.evaluate.design import Design, make_design
from pnet_jax.evaluate.modules import Modules, block_sets, clustered_modules, node_sets
from pnet_jax.ops.permutation import Enhancement, PermutationResult, permutation_test, sign_flip_test
from pnet_jax.parcellation.modules import modules_of

SITE = "site"  # the column that blocks are made of where none is named


def circuits(
    cohort: Cohort,
    effect: str,
    *,
    covariates: Sequence[str] = (),
    layer: str = "pearson",
    site: str | None = SITE,
    positive: str | None = None,
    modules: Modules = None,
    tail: str = "both",
    permutations: int = 5000,
    primary_p: float = 0.001,
    enhancement: Enhancement | None = None,
    seed: int = 0,
) -> Answer:
    r"""Test every edge for an effect, with family-wise error control for edges, components, networks and nodes by permutation.

    .. math:: z_{se} = \beta_e x_s + \gamma_e^\top c_s + \mu_{e, \mathrm{site}(s)} + \varepsilon_{se}, \qquad
      t_e = \beta_e / \mathrm{se}(\beta_e)

    Edges are tested by the false discovery rate (p of the t distribution). The other results come from one set of permutations (Freedman
    and Lane; within sites): edges by the largest t (max-T); connected components of the edges beyond a threshold (network-based
    statistic: extent and intensity); edges by the threshold-free network-based statistic; means over all edges between two networks;
    means over all edges of a node. If every participant has scans of both classes, differences within participants are tested by sign
    flips instead (`evaluate.design`).

    Args:
      cohort: Cohort of S scans.
      effect: Column of the table with two classes, e.g. the diagnosis, or with numbers.
      covariates: Columns used as covariates, e.g. age and mean_fd.
      layer: Edge layer; correlations are tested as Fisher z, others untransformed. Shrunk, guided and dynamic edges are not accepted.
      site: Column whose levels are exchangeability blocks, each with its own mean; by default `site`, if it exists. None: no blocks.
      positive: Class coded as 1; the last in sorted order by default.
      modules: Networks for the tests between networks: the network of each parcel, by name or in the order of the parcels, or a number of
        clusters of the mean network of all scans (Ward's linkage; classes are not used). By default, the networks in the names of Schaefer
        parcels.
      tail: `"both"`, `"greater"` or `"less"` (of the second class).
      permutations: Number of permutations or sign flips.
      primary_p: Uncorrected p value below which an edge can belong to a component.
      enhancement: Settings of the threshold-free statistic.
      seed: Seed of the permutations.

    Returns:
      Rows `edges`, `components`, `blocks` and `nodes`; tables of all edges, components, blocks and nodes; matrices of t.

    Raises:
      SettingsError: The layer is directed or not suitable for tests between groups, or a column, class or setting does not exist.
      InputError: As in `make_design`, too few parcels are present in every scan, or `modules` has fewer than two networks.

    Memory: two arrays `[n, E]` and about 200 MB; 660 participants, 200 parcels and 5,000 permutations take about a minute on one core.

    Source: Zalesky et al. 2010; Baggio et al. 2018; Noble and Scheinost 2020; Winkler et al. 2014, 2015.
    """
    _check_settings(cohort, layer, primary_p, tail, permutations)
    site = None if site == SITE and SITE not in cohort.table else site
    design = make_design(cohort, effect, covariates=covariates, site=site, positive=positive)
    shared = shared_parcels(cohort, layer, design.rows)
    units = str(cohort.views[layer]["units"])
    is_correlation = units.startswith("correlation")
    z = upper(layer_of(cohort, layer)[design.rows], shared)
    z = fisher_z(z) if is_correlation else z
    values = (design.weights @ z).astype(np.float32)
    names = tuple(name for name, one in zip(cohort.names, shared, strict=True) if one)
    if isinstance(modules, int):
        of_parcel = clustered_modules(z.mean(0), modules)
    else:
        of_parcel = tuple(name for name, one in zip(modules_of(cohort.names, modules), shared, strict=True) if one)
    if modules is not None and len(networks := set(filter(None, of_parcel))) < 2:
        said = f"only {networks.pop()!r}" if networks else "none"
        raise InputError(f"modules: expected two networks or more among the {len(names)} parcels of all scans, found {said}")
    pairs, blocks = block_sets(of_parcel)
    sets = {"nodes": node_sets(len(names))} | ({"blocks": blocks} if pairs else {})
    threshold = float(stats.t.isf(primary_p / 2 if tail == "both" else primary_p, design.df))
    enhancement = enhancement or Enhancement()
    options: dict[str, Any] = {"permutations": permutations, "tail": tail, "threshold": threshold, "enhancement": enhancement, "sets": sets}
    result = run(design, values, seed=seed, **options)
    if np.isnan(result.t).all():
        raise InputError(f"edges {layer!r}: no edge varies between participants, so no test is possible")
    difference, error = estimates(design, values)
    shown_units = "Fisher z" if is_correlation else units or "units of the edges"
    found = Found(design, result, difference, error, names, of_parcel, pairs, shared, shown_units, threshold)
    settings = {
        "effect": effect, "classes": list(design.classes), "covariates": list(covariates), "covariate_columns": list(design.names),
        "layer": layer, "units": shown_units, "design": design.kind, "site": site if design.sites else None, "sites": len(design.sites),
        "participants": len(design.x), "scans": len(design.rows), "df": design.df, "parcels": len(names), "tail": tail,
        "permutations": permutations, "primary_p": primary_p, "threshold": threshold, "extent_power": enhancement.extent,
        "height_power": enhancement.height, "height_step": enhancement.step, "height_top": enhancement.top,
        "modules": _origin(modules, bool(pairs)), "networks": list(dict.fromkeys(filter(None, of_parcel))), "level": LEVEL, "seed": seed,
    }  # fmt: skip
    return describe(found, settings, (*design.notes, *_motion(cohort, design, covariates)))


def _origin(modules: Modules, any_pairs: bool) -> str | None:
    """Return where the networks come from."""
    if isinstance(modules, int):
        return "clusters of the mean network"
    return "given" if modules is not None else "names of the parcels" if any_pairs else None


def _check_settings(cohort: Cohort, layer: str, primary_p: float, tail: str, permutations: int) -> None:
    """Check the settings before any data are read.

    Raises:
      SettingsError: A setting is invalid; the message names it.
    """
    try:
        case_control_layer(layer if layer in MEANT_FOR else "raw")
    except ValueError as error:
        raise SettingsError(str(error)) from None
    layer_of(cohort, layer)
    if cohort.views[layer]["directed"]:
        raise SettingsError(f"edges {layer!r} are directed: expected a layer of undirected edges")
    if not 0 < primary_p < 0.5:
        raise SettingsError(f"primary_p: expected a number between 0 and 0.5, got {primary_p}")
    if tail not in ("both", "greater", "less"):
        raise SettingsError(f"tail: expected 'both', 'greater' or 'less', got {tail!r}")
    if permutations < 1:
        raise SettingsError(f"permutations: expected 1 or more, got {permutations}")


def run(design: Design, values: Float[np.ndarray, "n E"], *, seed: int, **options: Any) -> PermutationResult:
    """Test values of participants by the rearrangements permitted by the design; return numpy arrays.

    Args:
      values: One value per participant and edge, float32.
      seed: Seed of the permutations.
      **options: Options of `ops.permutation.permutation_test`.
    """
    key = jax.random.key(seed)
    held = design.covariates - (design.covariates.mean(0) if design.kind == "between" else 0)
    held = held / np.maximum(np.abs(held).max(0, initial=0), 1e-12)
    y, z = jnp.asarray(values, jnp.float32), jnp.asarray(held, jnp.float32)
    if design.kind == "within":
        return jax.tree.map(np.asarray, sign_flip_test(y, z, key=key, **options))
    x = design.x - design.x.mean()
    options |= {"strata": jnp.asarray(design.strata), "within_strata": bool(design.sites)}
    found = permutation_test(y, jnp.asarray(x / np.abs(x).max(), jnp.float32), z, key=key, **options)
    return jax.tree.map(np.asarray, found)


def estimates(design: Design, values: Float[np.ndarray, "n E"]) -> tuple[Float[np.ndarray, " E"], Float[np.ndarray, " E"]]:
    """Return the least-squares effect on each edge and its standard error."""
    means = np.eye(max(len(design.sites), 1))[design.strata] if design.kind == "between" else np.zeros((len(design.x), 0))
    beside = np.concatenate([means, design.covariates], 1)
    basis, size, _ = np.linalg.svd(beside / np.maximum(np.linalg.norm(beside, axis=0), 1e-12), full_matrices=False)
    basis = basis[:, size > 1e-5]
    x, y = design.x, values.astype(float)
    x, y = x - basis @ (basis.T @ x), y - basis @ (basis.T @ y)
    slope = x @ y / (x @ x)
    left = np.maximum(np.square(y).sum(0) - np.square(slope) * (x @ x), 0)
    return slope, np.sqrt(left / design.df / (x @ x))


def _motion(cohort: Cohort, design: Design, covariates: Sequence[str]) -> list[str]:
    """Return a warning if head motion is associated with the effect and is not a covariate."""
    if "mean_fd" not in cohort.table or "mean_fd" in covariates:
        return []
    fd = design.weights @ numbers(cohort, "mean_fd")[design.rows]
    if not np.isfinite(fd).all() or np.ptp(fd) == 0:
        return []
    p = stats.ttest_1samp(fd, 0).pvalue if design.kind == "within" else stats.pearsonr(fd, design.x).pvalue
    if p >= LEVEL:
        return []
    return [f"Head motion (mean_fd) is associated with {design.effect} ({with_p(p)}) and is not a covariate: add it to the covariates."]
