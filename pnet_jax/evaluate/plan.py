"""Pipelines compared by diagnosis and prediction: the plain connectome first, then the requested features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pnet_jax.cohort import Cohort
from pnet_jax.config import nearest
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate.adjusted import Harmonised, Net
from pnet_jax.evaluate.columns import covariate_matrix, missing
from pnet_jax.evaluate.features import Covariates, Edges, Embeddings, Feature, Permuted, Tangent, is_correlation, with_measure
from pnet_jax.evaluate.pipeline import Pipeline

KNOWN_COVARIATES = ("mean_fd", "n_frames", "age", "sex", "site")
VIEWS = ((None, 0.6), (None, 0.7), (110, 0.3), (60, 0.3))  # merged regions and shrinkage of the four views; the second is unfiltered
SHRINKAGE = 0.3  # share of the identity in tangent vectors of correlations: fMRI frames are not independent, which Ledoit-Wolf assumes
WIDE = "wide"  # layer of correlations without a low-pass filter
FEATURES = (
    *("tangent", "shrunk-tangent", "pearson", "partial", "tangent+pearson", "views", "encoder", "graph"),
    *("site-centred", "combat", "net", "covariates", "permuted"),
)
DEFAULT = ("tangent", "shrunk-tangent", "pearson", "partial", "tangent+pearson", "encoder", "net", "covariates", "permuted")


class Plan(NamedTuple):
    """Pipelines to compare, and the scans they use.

    Attributes:
      cohort: Scans with a target, in the order of all arrays.
      pipelines: Pipelines; the first, the plain connectome, is the reference.
      covariates: Columns of the row "covariates alone".
      left_out: Features that were not built, with the reason.
      partners: Pipelines of other cohorts whose features are not those of the plain connectome, each with the pipeline of this cohort that
        has the same features.
    """

    cohort: Cohort
    pipelines: list[Pipeline]
    covariates: tuple[str, ...]
    left_out: dict[str, str]
    partners: dict[str, str]


def plan(
    cohort: Cohort,
    beside: Mapping[str, Cohort],
    wanted: Sequence[str],
    models: Sequence[str],
    covariates: Sequence[str] | None,
    sites: np.ndarray | None,
    site_out: bool,
    exclude: str,
) -> Plan:
    """Return the pipelines: the plain connectome first, then the requested features for which the cohort has the data.

    Args:
      cohort: Scans with a target.
      beside: The same scans in other cohorts, by name; the plain connectome of each is compared, with the first model.
      wanted: Names from `FEATURES`, or names of edge layers.
      models: Models of the plain connectome; all other features use the first.
      covariates: Columns of the row "covariates alone"; by default, those of `KNOWN_COVARIATES` without missing values.
      sites: Site of each scan, or None.
      site_out: Whether folds hold out sites; site is then not a covariate, and ComBat cannot be fitted.
      exclude: Column of the target, which is not used as a covariate.

    Raises:
      SettingsError: If a feature is neither known nor an edge layer, or a covariate is unknown or the target.
      InputError: If a covariate has missing values or does not vary.
    """
    if unknown := [name for name in wanted if name not in FEATURES and name not in cohort.edges]:
        known = [*FEATURES, *cohort.edges]
        raise SettingsError(f"unknown features {unknown[0]!r}{nearest(unknown[0], known)}: expected some of {', '.join(known)}")
    columns = _covariates(cohort, covariates, site_out, exclude)
    left_out: dict[str, str] = {}
    main = _plain(cohort)
    out = [Pipeline((main,), model) for model in models]
    partners: dict[str, str] = {}
    for name, other in beside.items():
        feature = _plain(other, main)
        out.append(Pipeline((feature,), models[0], title=f"{name}: {feature.name} + {models[0]}"))
        if type(feature) is not type(main) and isinstance(feature, Edges):
            try:
                partner = Pipeline((Edges(with_measure(cohort, feature.layer), feature.layer),), models[0])
            except SettingsError as error:
                left_out[f"{feature.layer} of the cohort beside {name}"] = str(error)
                continue
            partners[out[-1].name] = partner.name
            out.append(partner)
    for name in (one for one in wanted if one != "graph"):  # which has no kernel and is fitted separately
        try:
            found = _built(name, cohort, main, columns, sites, site_out)
        except SettingsError as error:
            left_out[name] = str(error)
            continue
        out += [one if isinstance(one, Pipeline) else Pipeline((one,), models[0]) for one in found]
    names = [one.name for one in out]
    return Plan(cohort, [one for at, one in enumerate(out) if one.name not in names[:at]], columns, left_out, partners)


def _plain(cohort: Cohort, like: Feature | None = None) -> Feature:
    """Return the plain connectome: tangent vectors if the cohort has signals, Pearson correlations otherwise.

    Args:
      like: Plain connectome of another cohort; edges are returned if it consists of edges.
    """
    if cohort.signals is not None and not isinstance(like, Edges):
        return Tangent(cohort)
    layer = like.layer if isinstance(like, Edges) and (like.layer in cohort.edges or not cohort.edges) else main_layer(cohort)
    return Edges(with_measure(cohort, layer), layer)


def main_layer(cohort: Cohort) -> str:
    if not cohort.edges:
        raise InputError("the cohort has neither signals nor edges: run pnet collect with edges")
    return "pearson" if "pearson" in cohort.edges else next(iter(cohort.edges))


def _built(
    name: str, cohort: Cohort, main: Feature, columns: tuple[str, ...], sites: np.ndarray | None, site_out: bool
) -> Sequence[Feature | Pipeline]:
    """Return the features of a name in `FEATURES`; raise SettingsError with the reason if the cohort lacks the data."""
    if name == "tangent":
        return [Tangent(cohort)] if cohort.signals is not None else []
    if name == "shrunk-tangent":
        return [_fixed_tangent(with_measure(cohort, "pearson") if cohort.signals is not None else cohort)]
    if name in ("pearson", "partial"):
        return [Edges(with_measure(cohort, name), name)]
    if name == "tangent+pearson":
        tangent = main if isinstance(main, Tangent) else _fixed_tangent(cohort)
        return [Pipeline((tangent, Edges(with_measure(cohort, "pearson"), "pearson")), title="tangent + pearson + ridge")]
    if name == "views":
        return [Pipeline(_views(cohort), title="four views + ridge"), *_views_by_site(cohort, sites)]
    if name == "encoder":
        return [Embeddings(with_measure(cohort, "pearson"))]
    if name == "site-centred":
        if sites is None:
            raise SettingsError("the cohort has no site column with two or more sites")
        return [Pipeline((main,), sites=sites)]
    if name == "combat":
        if sites is None or site_out:
            raise SettingsError("ComBat needs scans of every site in the training part: use folds by subject")
        return [Harmonised(main, cohort)]
    if name == "net":
        moved = tuple(one for one in columns if one == "mean_fd")
        if not moved:
            raise SettingsError("the cohort has no mean_fd, or it is unknown for some scans")
        return [Net(main, cohort, moved)]
    if name == "covariates":
        if not columns:
            raise SettingsError("the cohort has no covariates without missing values")
        return [Covariates(cohort, columns)]
    if name == "permuted":
        return [Permuted(cohort, main_layer(cohort))]
    return [Edges(cohort, name)]


def _fixed_tangent(cohort: Cohort) -> Tangent:
    layer = main_layer(cohort)
    if not is_correlation(cohort, layer):
        raise SettingsError(f"tangent vectors need signals or correlations; the edges {layer!r} are neither")
    return Tangent(cohort, SHRINKAGE, layer)


def _views(cohort: Cohort) -> tuple[Feature, ...]:
    if WIDE not in cohort.edges:
        raise SettingsError(f"four views need correlations without a low-pass filter as edges {WIDE!r}")
    layers = ("pearson", WIDE, "pearson", "pearson")
    most = cohort.n_parcels
    merges = [regions if regions and regions < most else None for regions, _ in VIEWS]
    return tuple(Tangent(cohort, share, layer, merge) for (_, share), layer, merge in zip(VIEWS, layers, merges, strict=True))


def _views_by_site(cohort: Cohort, sites: np.ndarray | None) -> list[Pipeline]:
    return [] if sites is None else [Pipeline(_views(cohort), sites=sites, title="four views, site-centred + ridge")]


def _covariates(cohort: Cohort, given: Sequence[str] | None, site_out: bool, exclude: str) -> tuple[str, ...]:
    """Return the columns for "covariates alone": those given, or the known ones that vary and have a value for every scan."""
    if given is not None:
        if exclude in given:
            raise SettingsError(f"covariates: expected columns other than the target, got {exclude!r}")
        covariate_matrix(cohort, given, np.arange(len(cohort)))  # raises an error for unknown columns and missing values
        return tuple(given)
    out = []
    for name in KNOWN_COVARIATES:
        if name in cohort.table and name != exclude and not (name == "site" and site_out):
            values = np.asarray(cohort.table[name])
            if not missing(values).any() and len(np.unique(values)) > 1:
                out.append(name)
    return tuple(out)
