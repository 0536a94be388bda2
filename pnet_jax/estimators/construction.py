"""What both estimators share: their settings, the networks of recordings under them, and what is learned from the training recordings."""

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
    """Construction of networks under the parameters of an estimator; not an estimator by itself."""

    # What is fitted and transformed is called `imgs`, as in nilearn, and is no metadata to be routed.
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
        tags.transformer_tags.preserves_dtype = []  # float32, whatever the recordings are stored as
        tags.requires_fit = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the builder, which holds devices and is made again from the plan."""
        state = dict(super().__getstate__())
        state.pop("builder_", None)
        return state

    def _plan(self, edges: Sequence[str], group: Group | None = None) -> Plan:
        """The settings, checked.

        Raises:
          SettingsError: If one of them does not exist, or they are not compatible.
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
            labels=self.labels,  # type: ignore[arg-type]  # checked by the class
            kappa=self.kappa,
            beta=self.beta,
            seed=int(self.random_state),
            cleaning=cleaning,
        )
        parcels = self.n_parcels if self.atlas is None else None
        return resolve(config, atlas=self.atlas, parcels=parcels, model=self.model, edges=edges, group=group)

    def _builder(self) -> Builder:
        """The builder of the plan, kept from one call to the next."""
        assert self.plan_ is not None
        builder = getattr(self, "builder_", None)
        if builder is None:
            builder = self.builder_ = Builder(self.plan_)
        return builder

    def _constructed(self, inputs: Inputs, confounds: Any, sample_mask: Any) -> Iterator[Network]:
        """Networks of recordings under the plan, one after another; one recording is held at a time."""
        builder = self._builder()
        settings = {"mask": self.mask_img, "tr": self.t_r, "cleaning": builder.plan.config.cleaning}
        given = (per_recording(name, own, inputs) for name, own in (("confounds", confounds), ("sample_mask", sample_mask)))
        for at, (item, noise, kept) in enumerate(zip(inputs.items, *given, strict=True), 1):
            scan = load(item, noise, kept, **settings)
            if self.verbose:
                print(f"[{type(self).__name__}] {scan.label}, {at} of {len(inputs.items)}")
            yield build([builder.ready(scan)], builder)[0]

    def _learn(self, inputs: Inputs, confounds: Any, sample_mask: Any, edges: Sequence[str], *, warn: bool = True) -> None:
        """Set `plan_`, `group_` and `networks_` from the training recordings; with a group, each is constructed twice."""
        self.plan_, self.builder_, self.group_ = self._plan(edges), None, None
        self.networks_ = list(self._constructed(inputs, confounds, sample_mask))
        if self.learn_group:
            self.group_ = learned(self.networks_, self.plan_.atlas, warn=warn)
        if self.group_ is not None:
            self.plan_, self.builder_ = self._plan(edges, self.group_), None
            self.networks_ = list(self._constructed(inputs, confounds, sample_mask))


def learned(networks: Sequence[Network], atlas: Atlas, *, warn: bool = True) -> Group | None:
    """Group model of networks, of at most two sessions of each participant; None of fewer than three participants.

    Further runs and sessions of a participant, and repetitions of a recording by a resampling, teach nothing more.

    Args:
      networks: Of the training recordings.
      atlas: Their parcels.
      warn: Warn where nothing can be learned.
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
    """Refuse data of another number of parcels than the estimator was fitted with.

    Raises:
      ValueError: If in the words of scikit-learn.
    """
    if found != expected:
        raise ValueError(f"X has {found} features, but {type(estimator).__name__} is expecting {expected} features as input.")
