"""Features of scans for diagnosis and prediction. All parameters are fitted to the training rows only.

A feature is called with the training rows and returns the values of all rows of its cohort, `[S, F]`: `feature(train)`. Held-out rows are
transformed with the parameters fitted to the training rows; no fitted parameter depends on a held-out row. (The site mean in
`models.site_centred`, which uses unlabelled scans of the held-out site, is separate and named.)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from pnet_jax import edges as measures
from pnet_jax.cohort import Cohort
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.evaluate.columns import covariate_matrix, fisher_z, layer_of, shared_parcels, upper
from pnet_jax.ops import tangent as op

Rows = Int[np.ndarray, " n"]


BLOCK = 64  # number of scans whose logarithms are computed at once

_block_logarithms = jax.jit(lambda covariances, mean: op.tangent(covariances, mean)[0])


class Feature(Protocol):
    """Values of all scans, with parameters fitted to the training scans."""

    @property
    def name(self) -> str:
        """Name in tables."""
        ...

    def __call__(self, train: Rows) -> Float[np.ndarray, "S F"]:
        """Fit to the training rows and return the values of all rows."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """Values computed without the target, e.g. edges averaged over the scans of each participant. Nothing is fitted."""

    name: str
    values: Float[np.ndarray, "S F"]

    def __call__(self, train: Rows) -> Float[np.ndarray, "S F"]:
        return self.values


@dataclasses.dataclass(frozen=True, eq=False)
class Edges:
    """Edges of a layer above the diagonal, in Fisher z if they are correlations. Nothing is fitted.

    Raises:
      SettingsError: If the cohort has no such layer.
      InputError: If fewer than three parcels are in every scan.
    """

    cohort: Cohort
    layer: str = "pearson"

    @property
    def name(self) -> str:
        return self.layer

    def __call__(self, train: Rows) -> Float[np.ndarray, "S F"]:
        return self._values

    @functools.cached_property
    def _values(self) -> Float[np.ndarray, "S F"]:
        matrices, shared = layer_of(self.cohort, self.layer), shared_parcels(self.cohort, self.layer)
        if self.cohort.views[self.layer]["directed"]:
            places = np.flatnonzero(shared)
            i, j = np.nonzero(~np.eye(len(places), dtype=bool))
            values = matrices[:, places[i], places[j]]
        else:
            values = upper(matrices, shared)
        return (fisher_z(values) if is_correlation(self.cohort, self.layer) else values).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Tangent:
    """Tangent vectors of covariances at the log-Euclidean mean of the training scans.

    The log-Euclidean mean approximates the geometric mean and needs no iteration over scans in each fold.

    Attributes:
      cohort: Scans with parcel signals, or with correlations if `shrinkage` is a number.
      shrinkage: `"ledoit_wolf"`, whose amount is estimated from each scan's signals, or a fixed share of the identity, which also corrects
        for frames that are not independent.
      layer: Correlations that are shrunk by a fixed share.
      regions: Number of regions after merging parcels by Ward's linkage of the training scans' mean; all if None.

    Raises:
      InputError: If signals are needed and the cohort has none.

    Source: Varoquaux et al. 2010, MICCAI; Arsigny et al. 2006, Magnetic Resonance in Medicine 56.
    """

    cohort: Cohort
    shrinkage: str | float = "ledoit_wolf"
    layer: str = "pearson"
    regions: int | None = None

    @property
    def name(self) -> str:
        if (self.shrinkage, self.regions, self.layer) == ("ledoit_wolf", None, "pearson"):
            return "tangent"
        amount = "Ledoit-Wolf" if self.shrinkage == "ledoit_wolf" else f"shrinkage {self.shrinkage:g}"
        return f"tangent ({self.layer}, {amount}{'' if self.regions is None else f', {self.regions} regions'})"

    def __call__(self, train: Rows) -> Float[np.ndarray, "S F"]:
        if self.regions is None:
            c, plain = self._covariances, self._logarithms
        else:
            c = self._shrunk(merged(self._covariances, train, self.regions))
            plain = _logarithms(c, np.eye(c.shape[-1], dtype=np.float32))
        value, vector = np.linalg.eigh(plain[train].mean(0, dtype=np.float64))
        mean = ((vector * np.exp(value)) @ vector.T).astype(np.float32)
        i, j = np.tril_indices(c.shape[-1])
        weight = np.where(i == j, np.sqrt(0.5), 1).astype(np.float32)  # preserves the Frobenius norm up to a factor
        return _logarithms(c, mean)[:, i, j] * weight

    def _shrunk(self, c: Float[np.ndarray, "S R R"]) -> Float[np.ndarray, "S R R"]:
        if isinstance(self.shrinkage, str):
            return c
        return (1 - self.shrinkage) * c + self.shrinkage * np.eye(c.shape[-1], dtype=np.float32)

    @functools.cached_property
    def _logarithms(self) -> Float[np.ndarray, "S K K"]:
        return _logarithms(self._covariances, np.eye(self._covariances.shape[-1], dtype=np.float32))

    @functools.cached_property
    def _covariances(self) -> Float[np.ndarray, "S K K"]:
        if self.shrinkage == "ledoit_wolf":
            return ledoit_wolf_covariances(self.cohort)
        places = np.flatnonzero(shared_parcels(self.cohort, self.layer))
        matrices = layer_of(self.cohort, self.layer)[:, places[:, None], places].astype(np.float32)
        matrices[:, range(len(places)), range(len(places))] = 1
        return self._shrunk(matrices) if self.regions is None else matrices


@dataclasses.dataclass(frozen=True, eq=False)
class Covariates:
    """Covariates alone, e.g. motion, age and sex, standardised by the training rows.

    Raises:
      SettingsError: If the cohort has no such column.
      InputError: If a value is missing, or a column is constant.
    """

    cohort: Cohort
    columns: tuple[str, ...]

    @property
    def name(self) -> str:
        return "covariates alone: " + ", ".join(self.columns)

    def __call__(self, train: Rows) -> Float[np.ndarray, "S F"]:
        values, _ = covariate_matrix(self.cohort, self.columns, np.arange(len(self.cohort)))
        spread = values[train].std(0)
        return ((values - values[train].mean(0)) / np.where(spread > 0, spread, 1)).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Permuted:
    """Edges of a layer with the parcels of each scan in a different random order, as a control without correspondence of parcels."""

    cohort: Cohort
    layer: str = "pearson"
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.layer}, parcels permuted"

    def __call__(self, train: Rows) -> Float[np.ndarray, "S F"]:
        rng = np.random.default_rng(self.seed)
        places = np.flatnonzero(shared_parcels(self.cohort, self.layer))
        matrices = layer_of(self.cohort, self.layer)
        orders = [rng.permutation(places) for _ in matrices]
        mixed = np.stack([matrix[np.ix_(order, order)] for matrix, order in zip(matrices, orders, strict=True)])
        values = upper(mixed, np.ones(len(places), bool))
        return (fisher_z(values) if is_correlation(self.cohort, self.layer) else values).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Embeddings:
    """Parcel embeddings of a linear encoder fitted to the training scans, with their second-order products.

    The encoder is the principal subspace of the parcels' connectivity profiles (rows of the correlation matrix) over training scans; the
    features are the embeddings Z of all parcels and the products Zᵀ Z.

    Attributes:
      dimensions: D, length of an embedding.
    """

    cohort: Cohort
    dimensions: int = 16
    layer: str = "pearson"

    @property
    def name(self) -> str:
        return f"linear encoder, {self.dimensions} dimensions"

    def __call__(self, train: Rows) -> Float[np.ndarray, "S F"]:
        places = np.flatnonzero(shared_parcels(self.cohort, self.layer))
        z = fisher_z(layer_of(self.cohort, self.layer)[:, places[:, None], places].astype(np.float32))
        z[:, range(len(places)), range(len(places))] = 0
        z = z - z[train].mean(0)
        rows = z[train].reshape(-1, len(places))
        second = rows.T @ rows
        basis = np.linalg.eigh(second)[1][:, -self.dimensions :]
        embedded = z @ basis
        products = np.swapaxes(embedded, 1, 2) @ embedded / len(places)
        i, j = np.triu_indices(basis.shape[1])
        parts = embedded.reshape(len(z), -1), products[:, i, j]
        # Both parts have equal weight, independent of their numbers of values.
        return np.concatenate([part / np.sqrt(part[train].var(0).sum()) for part in parts], 1).astype(np.float32)


def _logarithms(c: Float[np.ndarray, "S K K"], mean: Float[np.ndarray, "K K"]) -> Float[np.ndarray, "S K K"]:
    """Return the logarithms of covariances at a mean, in blocks of fixed size, so that the program is compiled once."""
    out = np.empty_like(c)
    for start in range(0, len(c), BLOCK):
        rows = np.minimum(np.arange(start, start + BLOCK), len(c) - 1)
        out[rows] = np.asarray(_block_logarithms(jnp.asarray(c[rows]), jnp.asarray(mean)))
    return out


def is_correlation(cohort: Cohort, layer: str) -> bool:
    """Return whether a layer's values are correlations, from its units."""
    return str(cohort.views[layer]["units"]).startswith("correlation")


def with_measure(cohort: Cohort, name: str) -> Cohort:
    """Return the cohort with Pearson or partial correlations of its parcel signals as a layer, unless it has them already.

    They are computed on the host, because the device kernel would be compiled for each scan length.

    Raises:
      SettingsError: If the measure is not `pearson` or `partial`, or the cohort has no signals.
    """
    if name in cohort.edges:
        return cohort
    if cohort.signals is None or name not in _MADE:
        why = "the cohort has no signals" if cohort.signals is None else f"only {' and '.join(_MADE)} can be computed from signals"
        raise SettingsError(f"the cohort has no edges {name!r}, and they cannot be computed: {why}")
    found = np.full((len(cohort), cohort.n_parcels, cohort.n_parcels), np.nan, np.float32)
    for s, y in enumerate(standardised_signals(cohort)):
        there = np.flatnonzero(np.isfinite(y).all(1))
        found[s][np.ix_(there, there)] = _MADE[name](y[there])
    about = measures.measure(name)
    view = {"units": about.units, "meant_for": measures.meant_for("raw"), "directed": about.directed}
    return dataclasses.replace(cohort, edges=cohort.edges | {name: found}, views=cohort.views | {name: view})


def partial_correlations(y: Float[np.ndarray, "K T"]) -> Float[np.ndarray, "K K"]:
    """Return partial correlations from the Ledoit-Wolf covariance, with diagonal 1."""
    from sklearn.covariance import ledoit_wolf

    precision = np.linalg.inv(ledoit_wolf(y.T, assume_centered=True)[0])
    scale = np.sqrt(np.diag(precision))
    out = -precision / scale / scale[:, None]
    np.fill_diagonal(out, 1)
    return out


_MADE: dict[str, Callable[[np.ndarray], np.ndarray]] = {"pearson": np.corrcoef, "partial": partial_correlations}


def standardised_signals(cohort: Cohort) -> list[Float[np.ndarray, "K T"]]:
    """Return the signals of each scan without padding, with mean 0 and variance 1; absent parcels are NaN.

    Raises:
      InputError: If the cohort has no signals.
    """
    if cohort.signals is None or cohort.kept is None:
        raise InputError("the cohort has no parcel signals: run pnet collect with signals, or choose features that use edges")
    out = []
    for y, kept in zip(cohort.signals, cohort.kept, strict=True):
        own = y[:, kept].astype(np.float64)
        spread = own.std(1, keepdims=True)
        out.append((own - own.mean(1, keepdims=True)) / np.where(spread > 0, spread, np.nan))
    return out


def ledoit_wolf_covariances(cohort: Cohort) -> Float[np.ndarray, "S K K"]:
    """Return Ledoit-Wolf covariances of the standardised signals of the parcels present in every scan.

    Raises:
      InputError: If the cohort has no signals, or fewer than three parcels are in every scan.
    """
    from sklearn.covariance import ledoit_wolf

    signals = standardised_signals(cohort)
    shared = np.all([np.isfinite(y).all(1) for y in signals], 0)
    if shared.sum() < 3:
        raise InputError(f"only {int(shared.sum())} of {len(shared)} parcels have a signal in every scan: exclude incomplete scans")
    return np.stack([ledoit_wolf(y[shared].T, assume_centered=True)[0] for y in signals]).astype(np.float32)


def merged(c: Float[np.ndarray, "S K K"], train: Rows, regions: int) -> Float[np.ndarray, "S R R"]:
    """Return correlations of regions merged from parcels by Ward's linkage of the training scans' mean.

    Raises:
      SettingsError: If the number of regions is not smaller than the number of parcels.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    if regions >= c.shape[-1]:
        raise SettingsError(f"regions: expected fewer than the {c.shape[-1]} parcels, got {regions}")
    member = fcluster(linkage(c[train].mean(0), "ward"), regions, "maxclust") - 1
    share = np.eye(member.max() + 1, dtype=np.float32)[member]
    share /= share.sum(0)
    out = share.T @ c @ share
    spread = np.sqrt(np.einsum("nii->ni", out))
    return out / spread[:, :, None] / spread[:, None]
