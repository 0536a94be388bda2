"""`PersonalizedConnectome`: edges as features, from images or region series."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.utils.validation import check_is_fitted

from pnet_jax.cohort import Cohort, cohort_of
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.estimators import features
from pnet_jax.estimators.construction import Construction, check_features, learned
from pnet_jax.estimators.inputs import Inputs, inputs_of
from pnet_jax.estimators.series import network_of, parcels_of, with_layers
from pnet_jax.group.pairs import LEAST_FOR_LAYERS
from pnet_jax.network import Network


class PersonalizedConnectome(Construction, auto_wrap_output_keys=("transform",)):  # type: ignore[call-arg]
    """Compute edges between the individual parcels of each participant, as features for scikit-learn.

    `fit` learns the spatial prior of the parcels, the variation of edges (`shrunk`, `guided`) and the reference of the tangent space from
    the training recordings. `transform` learns nothing, so that test recordings do not leak into training under `cross_validate` or
    `GridSearchCV`. For the kinds `shrunk` and `guided`, the group model includes the training recordings but not the test recordings,
    whose features are therefore closer to the group mean.

    Recordings are images, as for `PersonalizedParcellation`, or signals of existing parcels (region series or a `Cohort`), which need no
    construction and take milliseconds each. Layers of a Cohort that depend on several participants are re-estimated in `fit`. The degrees
    of freedom of region series are the number of frames, unless the table of the Cohort has the column `n_eff`.

    Args:
      kind: Edge measure `"pearson"`, `"partial"` or any other symmetric one (`pnet_jax.edges.names()`), the layers `"shrunk"` and
        `"guided"`, which need 4 training participants, or `"tangent"`.
      vectorize: Whether to return the lower triangle of each matrix, row by row (see `nilearn.connectome.vec_to_sym_matrix`).
      discard_diagonal: Whether to omit the diagonal; used with `vectorize`. If kept, it is divided by √2, as in nilearn.
      atlas: Initial atlas, see `PersonalizedParcellation`; this and the following parameters apply to images unless stated otherwise.
      n_parcels: Number of parcels K of the atlas of the model; ignored if `atlas` is given.
      labels: Labels to return: `"personalised"`, `"atlas"` or `"auto"`, see `PersonalizedParcellation`.
      model: Pre-trained model: a `Model`, the name of a shipped one, or a checkpoint folder.
      learn_group: Whether to learn the spatial prior of the parcels in `fit`; required for `"shrunk"` and `"guided"`, also for region
        series.
      kappa: Concentration κ; estimated for each image if None.
      beta: Weight β of the spatial smoothness; estimated for each image if None.
      mask_img: Brain mask of all images.
      t_r: Repetition time in seconds, also for region series; by default that of the files.
      strategy: Denoising strategies of `nilearn.interfaces.fmriprep.load_confounds`; empty for none.
      low_pass: Upper cut-off frequency in Hz, or None.
      high_pass: Lower cut-off frequency in Hz, or None.
      detrend: Whether to remove the linear trend.
      clean_args: Further fields of `CleaningConfig`, by name.
      random_state: Seed for the sampled pairs of locations and the bootstrap.
      verbose: Verbosity; above 0, a line is printed for each image.

    Attributes:
      networks_: `Network` of each training recording.
      group_: `Group` learned from the training recordings, or None.
      mean_: Reference of the tangent space, `[K, K]`; None for other kinds.
      n_features_in_: Number of parcels K.

    Raises:
      SettingsError: If a parameter is invalid or there are too few training recordings for the kind; raised by `fit`.
      InputError: If a recording cannot be used; raised by `fit` and `transform`.

    Example:
      >>> import numpy as np
      >>> from pnet_jax import PersonalizedConnectome
      >>> series = [np.random.default_rng(seed).normal(size=(120, 5)) for seed in range(6)]
      >>> connectome = PersonalizedConnectome("tangent").fit(series[:4])
      >>> connectome.transform(series[4:]).shape
      (2, 10)
    """

    def __init__(
        self,
        kind: str = "pearson",
        vectorize: bool = True,
        discard_diagonal: bool = True,
        *,
        atlas: Any = None,
        n_parcels: int | None = 200,
        labels: str = "auto",
        model: Any = "pnet-linear",
        learn_group: bool = True,
        kappa: float | None = None,
        beta: float | None = None,
        mask_img: Any = None,
        t_r: float | None = None,
        strategy: Sequence[str] = ("motion", "wm_csf"),
        low_pass: float | None = 0.1,
        high_pass: float | None = 0.009,
        detrend: bool = True,
        clean_args: dict[str, Any] | None = None,
        random_state: int = 0,
        verbose: int = 0,
    ):
        self.kind = kind
        self.vectorize = vectorize
        self.discard_diagonal = discard_diagonal
        self.atlas = atlas
        self.n_parcels = n_parcels
        self.labels = labels
        self.model = model
        self.learn_group = learn_group
        self.kappa = kappa
        self.beta = beta
        self.mask_img = mask_img
        self.t_r = t_r
        self.strategy = strategy
        self.low_pass = low_pass
        self.high_pass = high_pass
        self.detrend = detrend
        self.clean_args = clean_args
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, imgs: Any, y: Any = None, *, confounds: Any = None, sample_mask: Any = None) -> PersonalizedConnectome:
        """Learn the group model and the tangent reference from training recordings.

        Args:
          imgs: Images, as for `PersonalizedParcellation`; or region series: a list of arrays `[frames, K]`, an array `[S, frames, K]`, or
            a `Cohort` with signals.
          y: Ignored.
          confounds: Confounds of the images, see `PersonalizedParcellation.fit`.
          sample_mask: Sample masks of the images, see `PersonalizedParcellation.fit`.

        Returns:
          The fitted estimator.
        """
        edges = features.edges_of_kind(self.kind)
        if self.kind in features.OF_GROUP and not self.learn_group:
            raise SettingsError(f"kind {self.kind} needs a group model: set learn_group=True")
        inputs = inputs_of(imgs, self.t_r)
        if inputs.are_series:
            self._learn_from_series(inputs)
        else:
            self._learn(inputs, confounds, sample_mask, edges, warn=self.kind not in features.OF_GROUP)
        if self.kind in features.OF_GROUP and (self.group_ is None or self.group_.shrinkage is None):
            count = len({network.subject for network in self.networks_})
            raise SettingsError(f"kind {self.kind}: expected {LEAST_FOR_LAYERS} training participants or more, found {count}")
        self.n_features_in_ = self.networks_[0].n_parcels
        self.mean_ = features.tangent_reference(self.networks_) if self.kind == features.TANGENT else None
        return self

    def transform(self, imgs: Any, confounds: Any = None, sample_mask: Any = None) -> Float[np.ndarray, "S F"] | Float[np.ndarray, "S K K"]:
        """Compute the edges of recordings.

        Args:
          imgs: Recordings, as for `fit`.
          confounds: Confounds, as for `fit`.
          sample_mask: Sample masks, as for `fit`.

        Returns:
          Edges, `[S, K(K − 1) / 2]` with `vectorize` and `discard_diagonal`, `[S, K(K + 1) / 2]` with `vectorize` and the diagonal,
          otherwise `[S, K, K]`; NaN for parcels outside the field of view of a recording.

        Raises:
          NotFittedError: If `fit` has not been called.
          ValueError: If region series have a different number of parcels than in `fit`.
        """
        check_is_fitted(self)
        inputs = inputs_of(imgs, self.t_r)
        if inputs.are_series:
            return self._features([with_layers(network, self.group_) for network in self._series(inputs)])
        if self.plan_ is None:
            raise InputError("expected region series as in fit, found images")
        return self._features(self._constructed(inputs, confounds, sample_mask))

    def fit_transform(self, imgs: Any, y: Any = None, *, confounds: Any = None, sample_mask: Any = None) -> Any:
        """Fit, and return the features of the same recordings without constructing them again."""
        return self.fit(imgs, y, confounds=confounds, sample_mask=sample_mask)._features(self.networks_)

    @property
    def cohort_(self) -> Cohort:
        """Return the training recordings as a `Cohort`.

        Raises:
          InputError: If a recording occurs more than once, as in a bootstrap sample.
        """
        check_is_fitted(self)
        return cohort_of(self.networks_)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the features, which combine the two parcels of an edge: `"area-1--area-0"`.

        Raises:
          ValueError: If `vectorize` is False, because the output is then matrices.
        """
        check_is_fitted(self)
        if not self.vectorize:
            raise ValueError("features have names with vectorize=True only: without it, transform returns matrices")
        names = self.networks_[0].names
        rows, columns = np.tril_indices(len(names), -1 if self.discard_diagonal else 0)
        return np.array([f"{names[row]}--{names[column]}" for row, column in zip(rows, columns, strict=True)], object)

    def _learn_from_series(self, inputs: Inputs) -> None:
        self.plan_, self.builder_, self.group_ = None, None, None
        self.n_features_in_ = inputs.items[0].n_parcels
        networks = self._series(inputs)
        if self.kind in features.OF_GROUP:
            self.group_ = learned(networks, parcels_of(inputs.items[0]), warn=False)
        self.networks_ = [with_layers(network, self.group_) for network in networks]

    def _series(self, inputs: Inputs) -> list[Network]:
        """Return the networks of region series, and check that they have the parcels of `fit`."""
        for one in inputs.items:
            check_features(self, one.n_parcels, self.n_features_in_)
        edges, atlas = features.edges_of_kind(self.kind), parcels_of(inputs.items[0])
        return [network_of(one, edges, atlas) for one in inputs.items]

    def _features(self, networks: Iterable[Network]) -> Any:
        from nilearn.connectome import sym_matrix_to_vec

        matrices = features.matrices_of(networks, self.kind, self.mean_)
        return sym_matrix_to_vec(matrices, discard_diagonal=self.discard_diagonal) if self.vectorize else matrices
