"""Base class of the estimators: settings, construction of networks, and learning of the group model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.metadata_routing import UNUSED

from pnet_jax.config import CleaningConfig, ConstructConfig
from pnet_jax.construction import Builder, build, resolve
from pnet_jax.construction.resolve import Plan
from pnet_jax.errors import SettingsError
from pnet_jax.estimators.inputs import Inputs, load, per_recording
from pnet_jax.group.fit import LEAST, Group, fit_group
from pnet_jax.network import Network
from pnet_jax.parcellation.atlas import Atlas

NAMED = ("strategy", "low_pass", "high_pass", "detrend")


class Construction(TransformerMixin, BaseEstimator, auto_wrap_output_keys=None):  # type: ignore[call-arg]
    """Base class that constructs networks with the parameters of an estimator."""

    # The data argument is called `imgs`, as in nilearn, and must not be routed as metadata.
    __metadata_request__fit: ClassVar[dict[str, Any]] = {"imgs": UNUSED}
    __metadata_request__transform: ClassVar[dict[str, Any]] = {"imgs": UNUSED}
    __metadata_request__inverse_transform: ClassVar[dict[str, Any]] = {"signals": UNUSED}

    atlas: Any
    n_parcels: int | None
    labels: str
    model: Any
    learn_group: bool
    kappa: float | None
    beta: float | None
    mask_img: Any
    t_r: float | None
    strategy: Sequence[str]
    low_pass: float | None
    high_pass: float | None
    detrend: bool
    clean_args: dict[str, Any] | None
    random_state: int
    verbose: int

    group_: Group | None
    networks_: list[Network]
    plan_: Plan | None
    builder_: Builder | None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = []  # always float32, regardless of the data type of the recordings
        tags.requires_fit = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the builder, which holds devices and can be recreated from the plan."""
        state = dict(super().__getstate__())
        state.pop("builder_", None)
        return state

    def _plan(self, edges: Sequence[str], group: Group | None = None) -> Plan:
        """Return the validated settings.

        Raises:
          SettingsError: If a setting does not exist, or settings are incompatible.
        """
        named = {name: getattr(self, name) for name in NAMED} | {"strategy": tuple(self.strategy)}
        more = dict(self.clean_args or {})
        if twice := sorted(set(named) & set(more)):
            raise SettingsError(f"clean_args: {twice[0]} is a parameter of {type(self).__name__}: set it there")
        try:
            cleaning = CleaningConfig(**named, **more)
        except TypeError as error:
            raise SettingsError(f"clean_args: expected fields of CleaningConfig ({error})") from error
        config = ConstructConfig(
            labels=self.labels,  # type: ignore[arg-type]  # validated by the class
            kappa=self.kappa,
            beta=self.beta,
            seed=int(self.random_state),
            cleaning=cleaning,
        )
        parcels = self.n_parcels if self.atlas is None else None
        return resolve(config, atlas=self.atlas, parcels=parcels, model=self.model, edges=edges, group=group)

    def _builder(self) -> Builder:
        """Return the builder of the plan, which is kept between calls."""
        assert self.plan_ is not None
        builder = getattr(self, "builder_", None)
        if builder is None:
            builder = self.builder_ = Builder(self.plan_)
        return builder

    def _constructed(self, inputs: Inputs, confounds: Any, sample_mask: Any) -> Iterator[Network]:
        """Construct the networks of recordings one after another, with one recording in memory at a time."""
        builder = self._builder()
        settings = {"mask": self.mask_img, "tr": self.t_r, "cleaning": builder.plan.config.cleaning}
        given = (per_recording(name, own, inputs) for name, own in (("confounds", confounds), ("sample_mask", sample_mask)))
        for at, (item, noise, kept) in enumerate(zip(inputs.items, *given, strict=True), 1):
            scan = load(item, noise, kept, **settings)
            if self.verbose:
                print(f"[{type(self).__name__}] {scan.label}, {at} of {len(inputs.items)}")
            yield build([builder.ready(scan)], builder)[0]

    def _learn(self, inputs: Inputs, confounds: Any, sample_mask: Any, edges: Sequence[str], *, warn: bool = True) -> None:
        """Set `plan_`, `group_` and `networks_` from the training recordings; with a group model, each is constructed twice."""
        self.plan_, self.builder_, self.group_ = self._plan(edges), None, None
        self.networks_ = list(self._constructed(inputs, confounds, sample_mask))
        if self.learn_group:
            self.group_ = learned(self.networks_, self.plan_.atlas, warn=warn)
        if self.group_ is not None:
            self.plan_, self.builder_ = self._plan(edges, self.group_), None
            self.networks_ = list(self._constructed(inputs, confounds, sample_mask))


def learned(networks: Sequence[Network], atlas: Atlas, *, warn: bool = True) -> Group | None:
    """Learn the group model of networks from at most two sessions of each participant.

    Further runs and sessions of a participant, and recordings repeated by resampling, are ignored.

    Args:
      networks: Networks of the training recordings.
      atlas: Atlas of the networks.
      warn: Whether to warn if no group model can be learned.

    Returns:
      The group model, or None for fewer than three participants.
    """
    own: dict[str, list[Network]] = {}
    for network in networks:
        kept = own.setdefault(network.subject, [])
        if not kept or (len(kept) == 1 and _is_other_session(network, kept[0])):
            kept.append(network)
    if len(own) < LEAST:
        return None
    try:
        return fit_group([network for kept in own.values() for network in kept], atlas)
    except SettingsError as error:
        if warn:
            warnings.warn(f"no group model was learned: {error}", UserWarning, stacklevel=4)
        return None


def _is_other_session(network: Network, first: Network) -> bool:
    session, other = (str(one.entities.get("ses", "")) for one in (network, first))
    return session != other and network.entities.get("task", "") == first.entities.get("task", "")


def check_features(estimator: object, found: int, expected: int) -> None:
    """Raise if data have a different number of parcels than in `fit`.

    Raises:
      ValueError: If the numbers differ; the message is worded as in scikit-learn.
    """
    if found != expected:
        raise ValueError(f"X has {found} features, but {type(estimator).__name__} is expecting {expected} features as input.")
