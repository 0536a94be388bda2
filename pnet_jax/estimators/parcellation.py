"""`PersonalizedParcellation`: individual parcels of each participant, and their signals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from sklearn.utils.validation import check_is_fitted

from pnet_jax.errors import InputError
from pnet_jax.estimators.construction import Construction, check_features
from pnet_jax.estimators.inputs import Inputs, inputs_of
from pnet_jax.network import Network
from pnet_jax.outputs import labels_image, location_image, parcel_rows, probabilities_image
from pnet_jax.outputs.images import scalars_image, signals_image

if TYPE_CHECKING:
    import nibabel
    import pandas

    from pnet_jax.estimators.page import NetworkReport

EDGES = ("pearson",)


class PersonalizedParcellation(Construction, auto_wrap_output_keys=None):  # type: ignore[call-arg]
    """Estimate the parcels of each participant and extract their signals, in the style of nilearn maskers.

    `fit` estimates the parcels of every image. With three or more participants it also learns a group model, which is the spatial prior of
    the parcels of these and of later images. `transform` estimates the parcels of the given images, whether or not they were used in
    `fit`, and returns their signals; it learns nothing, and images are processed independently. To extract the signals of another
    recording with existing parcels, pass `labels_img_` to `nilearn.maskers.NiftiLabelsMasker`.

    Attributes with one value per image hold that value if a single image was given, and a list in the order of the images if a list,
    folder or Cohort was given.

    Args:
      atlas: Initial atlas: an `Atlas`, or a dseg or dlabel file; that of the model if None.
      n_parcels: Number of parcels K of the atlas of the model; ignored if `atlas` is given.
      labels: Parcels to return: `"personalised"`, those of the `"atlas"`, or `"auto"` for personalised parcels in scans that support
        them.
      model: Pre-trained model: a `Model`, the name of a shipped one, or a checkpoint folder.
      learn_group: Whether to learn the group model in `fit`; each image is then constructed twice.
      kappa: Concentration κ of the parcels; estimated for each image if None.
      beta: Weight β of the spatial smoothness; estimated for each image if None.
      mask_img: Brain mask of all images. If None, the mask beside each BIDS file is used, and a mask is computed for other images.
      t_r: Repetition time in seconds; by default that of the files.
      strategy: Denoising strategies of `nilearn.interfaces.fmriprep.load_confounds` for fMRIPrep tables; empty for none.
      low_pass: Upper cut-off frequency in Hz, or None.
      high_pass: Lower cut-off frequency in Hz, or None.
      detrend: Whether to remove the linear trend.
      clean_args: Further fields of `CleaningConfig`, by name, e.g. `{"fd_threshold": 0.4}`.
      random_state: Seed for the sampled pairs of locations and the bootstrap.
      verbose: Verbosity; above 0, a line is printed for each image.

    Attributes:
      networks_: `Network` of each image, always a list.
      group_: `Group` that was learned; None for fewer than three participants or without `learn_group`.
      n_features_in_: Number of parcels K.

    Raises:
      SettingsError: If a parameter is invalid; raised by `fit`.
      InputError: If an image cannot be used; raised by `fit` and `transform`.

    Example:
      >>> from pnet_jax import PersonalizedParcellation
      >>> parcellation = PersonalizedParcellation(n_parcels=100, t_r=2.0)
      >>> signals = parcellation.fit_transform("sub-01_task-rest_bold.nii.gz")  # doctest: +SKIP
      >>> signals.shape, parcellation.labels_img_.shape  # doctest: +SKIP
      ((300, 100), (49, 58, 47))
    """

    def __init__(
        self,
        atlas: Any = None,
        n_parcels: int | None = 200,
        labels: str = "auto",
        model: Any = "pnet-linear",
        learn_group: bool = True,
        *,
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

    def fit(self, imgs: Any, y: Any = None, *, confounds: Any = None, sample_mask: Any = None) -> PersonalizedParcellation:
        """Estimate the parcels of images, and learn the group model.

        Args:
          imgs: File, nibabel image, `Scan`, `ScanSource`, folder of BIDS derivatives, or list of these.
          y: Ignored.
          confounds: File, array `[recorded, n]` or DataFrame; a list of these for a list of images. If None, the fMRIPrep table beside a
            file is used.
          sample_mask: Positions of the frames to keep, `[T]`, or True for these frames, `[recorded]`; a list for a list of images.

        Returns:
          The fitted estimator.
        """
        inputs = _images(self, imgs)
        self._learn(inputs, confounds, sample_mask, EDGES)
        self.single_, self.n_features_in_ = inputs.single, self.networks_[0].n_parcels
        return self

    def transform(self, imgs: Any, confounds: Any = None, sample_mask: Any = None) -> Any:
        """Estimate the parcels of images and return their signals.

        Args:
          imgs: Recordings, as for `fit`.
          confounds: Confounds, as for `fit`.
          sample_mask: Sample masks, as for `fit`.

        Returns:
          Mean over the z-scored signals of the locations of each parcel, `[frames, K]`, or a list of these for a list of images. Parcels
          outside the field of view are NaN, so that K is the same for all images.

        Raises:
          NotFittedError: If `fit` has not been called.
        """
        check_is_fitted(self)
        inputs = _images(self, imgs)
        return _one_or_all(inputs.single, [network.signals.T for network in self._constructed(inputs, confounds, sample_mask)])

    def fit_transform(self, imgs: Any, y: Any = None, *, confounds: Any = None, sample_mask: Any = None) -> Any:
        """Fit, and return the signals of the same images without constructing them again."""
        self.fit(imgs, y, confounds=confounds, sample_mask=sample_mask)
        return self._of_each(lambda network: network.signals.T)

    def inverse_transform(self, signals: Any) -> Any:
        """Assign the signal of each parcel to its locations.

        Args:
          signals: Parcel signals of the image of `fit`, `[frames, K]`; a list for a list of images.

        Returns:
          4-D image on the grid of the image of `fit` (a dense series for CIFTI), 0 outside the parcels; a list for a list of images.

        Raises:
          ValueError: If the number of parcels or of images differs from that in `fit`.
        """
        check_is_fitted(self)
        given = [signals] if self.single_ else list(signals)
        if len(given) != len(self.networks_):
            raise InputError(f"expected signals of each of the {len(self.networks_)} images of fit, found {len(given)}")
        for values in given:
            if np.ndim(values) != 2:
                raise InputError(f"expected signals [frames, {self.n_features_in_}], found an array of {np.ndim(values)} dimensions")
            check_features(self, np.shape(values)[1], self.n_features_in_)
        images = [signals_image(network, np.asarray(values).T) for network, values in zip(self.networks_, given, strict=True)]
        return _one_or_all(self.single_, images)

    @property
    def labels_img_(self) -> Any:
        """Return the parcels of each image of `fit` on its grid (a dlabel image for CIFTI): ids of the atlas, 0 outside."""
        return self._of_each(labels_image)

    @property
    def probs_img_(self) -> Any:
        """Compute the probability of every parcel at every location, with one volume per parcel."""
        return self._of_each(probabilities_image)

    @property
    def confidence_img_(self) -> Any:
        """Return the probability of the label of each location, 0 outside the parcels."""
        return self._of_each(_confidence_image)

    @property
    def lut_(self) -> Any:
        """Return a DataFrame with one row per parcel: index, name, colour, hemisphere, locations, coverage, centroid in MNI mm."""
        return self._of_each(_table)

    @property
    def coverage_(self) -> Float[np.ndarray, " K"] | Float[np.ndarray, "S K"]:
        """Return the share of each atlas parcel that the image covers, in 0…1, `[K]`, or `[S, K]` for a list of images."""
        return np.asarray(self._of_each(lambda network: network.coverage))

    def get_feature_names_out(self, input_features: Any = None) -> Float[np.ndarray, " K"]:
        """Return the names of the K parcels, in the order of the columns of the signals."""
        check_is_fitted(self)
        return np.array(self.networks_[0].names, object)

    def generate_report(self, image: int = 0) -> NetworkReport:
        """Generate the report of one image of `fit`.

        Args:
          image: Position of the image in the list.

        Returns:
          Report that can be displayed in a notebook, saved with `save_as_html`, or opened with `open_in_browser`.

        Raises:
          ReportExtraMissingError: If the extra `report` is not installed.
          IndexError: If `image` is out of range.
        """
        check_is_fitted(self)
        from pnet_jax.report import check_installed

        check_installed()
        from pnet_jax.estimators.page import NetworkReport

        return NetworkReport(self.networks_[image])

    def _of_each(self, function: Any) -> Any:
        check_is_fitted(self)
        return _one_or_all(self.single_, [function(network) for network in self.networks_])


def _images(estimator: object, imgs: Any) -> Inputs:
    inputs = inputs_of(imgs)
    if inputs.are_series:
        raise InputError(f"{type(estimator).__name__}: expected images, found region series, whose parcels exist already")
    return inputs


def _one_or_all(single: bool, values: list[Any]) -> Any:
    return values[0] if single else values


def _table(network: Network) -> pandas.DataFrame:
    import pandas

    return pandas.DataFrame(parcel_rows(network))


def _confidence_image(network: Network) -> nibabel.Nifti1Image | nibabel.Cifti2Image:
    if network.space.grid is not None and network.space.grid.brain_models is not None:
        return scalars_image(network, ["confidence"], network.confidence[None])
    return location_image(network, network.confidence)
