"""Construction: from a Scan to a Network."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

import pnet_jax
from pnet_jax import edges as measures
from pnet_jax.config import ConstructConfig, PersonalizeConfig
from pnet_jax.edges.layers import add_layers, layers
from pnet_jax.encoder.adapter import Adapter
from pnet_jax.encoder.model import Model, embed
from pnet_jax.encoder.tokens import Observed, at_frames, bucketed, observe
from pnet_jax.network import Network
from pnet_jax.parcellation.harden import Hardened, harden, unchanged
from pnet_jax.parcellation.mixture import Mixture, Problem, mixture
from pnet_jax.parcellation.mixture import begin as begin_mixture
from pnet_jax.parcellation.placed import Placed, pad_rows, place
from pnet_jax.parcellation.prior import Prior
from pnet_jax.parcellation.select import BETAS, KAPPAS, Selection, select
from pnet_jax.quality import quality
from pnet_jax.scan import Scan, n_eff, some_frames, split

if TYPE_CHECKING:
    from pathlib import Path

    from pnet_jax.finetune.objective import Subject
    from pnet_jax.finetune.person import Dynamics, Effective, Personal
    from pnet_jax.people import People

FINAL_STEPS = 6
FEW_PEOPLE = 20  # from which on variances between people are known well enough


def construct(
    scan: Scan,
    *,
    prior: Prior | str | Path | None = None,
    parcels: int | None = None,
    model: Model | str | Path | None = None,
    edges: Sequence[str] | None = None,
    people: People | str | Path | None = None,
    personal: Personal | None = None,
    config: ConstructConfig | None = None,
) -> Network:
    """A subject's personalised parcellation and network.

    The scan's locations are embedded by the model, softly clustered around the prior's parcels with κ and β measured on the
    scan itself, made hard, averaged into parcel signals and related by the edge measures. Where the scan is too short or too
    noisy to show that moving the borders helps, the prior's parcels are returned and `qc["selection"]` says so.

    Args:
      scan: one recording.
      prior: parcels to start from: a `Prior`, or a dseg/dlabel file; the model's own for `parcels` if not given.
      parcels: K; 200 if neither it nor a prior is given.
      model: a `Model`, a shipped model's name or a checkpoint folder.
      edges: measures, `("pearson",)` if not given.
      people: what other people's parcels of the same prior have in common, or a folder with it: for the shrunk and guided layers of
        Pearson's edges, and for `config.dynamics`.
      personal: what `personalize` found for this recording (`load_personal`); with dynamics, it is fine-tuned here if not given.
      config: everything else; the arguments above win over it.

    Raises:
      ValueError: no overlap of scan and prior, an unknown measure, a K that prior or model do not have, dynamics of no people or of
        another prior's parcels.
    """
    config = config or ConstructConfig()
    model, group, names = resolve(config, prior=prior, parcels=parcels, model=model, edges=edges)
    people = resolve_people(config, group, people)
    clock = _Clock()
    start = begin(scan, model, group, config, clock.lap)
    parcellation = _parcellate(start, model)
    clock.lap("parcellation")
    informed, refused = None, ""
    if people is not None and config.dynamics:
        try:
            informed = _inform(scan, start, parcellation, model, group, people, personal, config, directed="effective" in names)
            parcellation = informed.parcellation
        except ValueError as error:  # too short for the band: the network stands without
            refused = str(error)
        clock.lap("dynamics")
    placed = start.placed
    network = _network(scan, placed, group, parcellation, names, config)
    clock.lap("edges")
    if informed is not None:
        _add_dynamics(network, informed)
    if refused:
        network.qc["warnings"].append(f"no dynamics were fitted: {refused}")
    if people is not None:
        network = _add_layers(network, people, scan)
    network.qc["seconds"] = clock.seconds
    used = dataclasses.replace(config, parcels=group.n_parcels, prior=group.source, checkpoint=model.name, edges=names)
    network.provenance.update(_provenance(scan, model, group, used))
    return network


def resolve(
    config: ConstructConfig,
    *,
    prior: Prior | str | Path | None = None,
    parcels: int | None = None,
    model: Model | str | Path | None = None,
    edges: Sequence[str] | None = None,
) -> tuple[Model, Prior, tuple[str, ...]]:
    """The model, prior and measures that a configuration, and the arguments that win over it, name.

    Raises:
      ValueError: one of them does not exist, so that a batch fails before its first scan and not at each.
    """
    chosen = _model(model or config.checkpoint)
    names = tuple(edges if edges is not None else config.edges)
    for name in names:
        measures.measure(name)
        if name in ("coupling", "effective") and not config.dynamics:
            raise ValueError(f'edge measure "{name}" is made by fitting dynamics: ask for these too (--dynamics true)')
    group = _prior(prior if prior is not None else config.prior, parcels or config.parcels, chosen)
    if "effective" in names:
        from pnet_jax.finetune.person import refuse_directed  # with optax, which only dynamics need

        refuse_directed(group)
    return chosen, group, names


def resolve_people(config: ConstructConfig, group: Prior, people: People | str | Path | None = None) -> People | None:
    """The people whose dynamics and edges inform a construction; None where it is not to be informed.

    Raises:
      ValueError: there are none although dynamics are asked for, or their parcels are another prior's.
    """
    people = people if people is not None else config.people
    if people is None:
        if not config.dynamics:
            return None
        raise ValueError(
            "dynamics begin with those of other people's parcels: give the folder of a `pnet personalize` on this prior (--people)"
        )
    from pnet_jax.people import People  # with optax, which only dynamics need

    source = ""
    if not isinstance(people, People):
        from pnet_jax.checkpoint import load_people

        source, people = f" {people}", load_people(people)
    if people.prior != group.digest:
        raise ValueError(
            f"people{source} are of the parcels of another prior: expected {group.digest} ({group.source}), found "
            f"{people.prior}; give the prior that they were made with (--prior)"
        )
    return people


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """A scan with a prior on it, and what its halves say of how far the parcels may move.

    Attributes:
      placed: the prior on the scan.
      seen: the locations with a prior, as an encoder reads them.
      selection: κ, β and the decision.
      q: mean of the halves' probabilities there, `[n, C]`.
    """

    placed: Placed
    seen: Observed
    selection: Selection
    q: Float[np.ndarray, "n C"]


def begin(scan: Scan, model: Model, group: Prior, config: ConstructConfig, lap: Callable[[str], None] = lambda name: None) -> Start:
    """Places the prior on a scan and measures κ, β and the decision on its halves.

    Raises:
      ValueError: no overlap of scan and prior.
    """
    placed = place(scan, group)
    lap("prior")
    seen = observe(scan, model.encoder.references, here=placed.here)
    first, second = (at_frames(seen, columns) for columns in split(scan))
    selection, q = select(
        (placed.problem(_embedding(model, first)), placed.problem(_embedding(model, second))),
        (np.asarray(first.y), np.asarray(second.y)),
        placed.space,
        placed.local.labels,
        n_parcels=placed.n_parcels,
        tr=scan.tr,
        seed=_seed(scan, config.seed),
        kappas=KAPPAS if config.kappa is None else (config.kappa,),
        betas=BETAS if config.beta is None else (config.beta,),
        independent=n_eff(scan) / 2,
        regressors=_regressors(scan),
    )
    if config.force_personalised and selection.decision == "prior":
        selection = dataclasses.replace(
            selection, decision="personalised", reason=f"forced by the configuration, although {selection.reason}"
        )
    lap("selection")
    return Start(placed, seen, selection, q)


def _regressors(scan: Scan) -> int:
    """How many were taken out of the signals, as far as the scan says."""
    names = scan.cleaning.get("confounds", ())
    return len(names) if isinstance(names, list | tuple) else 0


def tunable(scan: Scan, model: Model, group: Prior, tuning: PersonalizeConfig) -> tuple[Start, Subject]:
    """A recording ready to be fine-tuned: what its parcels begin with is measured on the part that is fitted alone.

    Raises:
      ValueError: no overlap of scan and prior, or too few frames in one of the parts.
    """
    from pnet_jax.finetune.subject import make_subject, parts_of

    fitted = some_frames(scan, np.flatnonzero(parts_of(scan, tuning)[0]))
    start = begin(dataclasses.replace(fitted, valid=scan.valid), model, group, ConstructConfig())
    s = start.selection
    return start, make_subject(scan, start.placed, model, start.q, kappa=s.kappa_scan, beta=s.beta, config=tuning)


def _embedding(model: Model, seen: Observed, adapter: Adapter | None = None) -> jax.Array:
    """Embedding of the locations with a prior, from all or some of the scan's frames, as this participant's encoder gives it."""
    return embed(model.encoder, bucketed(seen), adapter)


@jax.jit
def _fit(problem: Problem, q, kappa, beta) -> Mixture:
    """The whole scan's mixture, begun where its halves ended: their mean is nearer to the solution than the prior."""
    return mixture(problem, kappa, beta, steps=FINAL_STEPS, start=begin_mixture(problem, jnp.log(q + 1e-6)))


@dataclasses.dataclass(frozen=True, eq=False)
class _Parcellation:
    q: Float[np.ndarray, "V C"]
    hardened: Hardened
    selection: Selection


def _parcellate(start, model, adapter=None) -> _Parcellation:
    """Soft and hard parcels of the locations with a prior: the person's, or the prior's if that is the decision."""
    placed, local, selection = start.placed, start.placed.local, start.selection
    if selection.decision == "personalised":
        z = _embedding(model, start.seen, adapter)
        problem = placed.problem(z, None if adapter is None else adapter.offsets)
        fitted = _fit(problem, pad_rows(start.q, 0.0), jnp.float32(selection.kappa_scan), jnp.float32(selection.beta))
        q = np.asarray(fitted.q)[: len(placed.here)]
        hardened = harden(q, local.candidates, placed.space.neighbours, local.labels, placed.n_parcels)
    else:
        q = np.exp(local.log_prior) * (local.candidates >= 0)
        hardened = unchanged(local.labels, placed.space.neighbours, placed.n_parcels)
    return _Parcellation(q.astype(np.float32), hardened, selection)


@dataclasses.dataclass(frozen=True, eq=False)
class _Informed:
    parcellation: _Parcellation
    dynamics: Dynamics
    report: dict[str, Any]
    effective: Effective | None = None


def _inform(scan, start, parcellation, model, group, people, personal, config, directed=False) -> _Informed:
    """Fine-tunes the person's parameters, keeps their parcels if these do better on what was held out, and fits the parcels' dynamics."""
    from pnet_jax.finetune.person import Personal, dynamics_of, dynamics_prior, effective_of, judge, tune

    own, tuning = dynamics_prior(people.hierarchy, group, config.personalize), config.personalize
    report: dict[str, Any] = {"people": len(people.subjects), "prior": people.prior}
    if start.selection.decision == "personalised":
        if personal is None:
            _, subject = tunable(scan, model, group, tuning)
            tuned = tune(own, subject, tuning)
            personal = Personal(tuned.own, int(tuned.round), judge(scan, start.placed, subject, own, tuned, tuning))
        report |= {"round": personal.round, "parcels": personal.verdict._asdict()}
        if personal.verdict.kept:
            parcellation = _parcellate(start, model, personal.own.adapter)
    else:
        report["parcels"] = {"kept": False, "reason": "the prior's parcels are returned, and none are fine-tuned"}
    signals = parcel_signals(np.asarray(start.seen.y), parcellation.hardened.labels, group.n_parcels)
    found = dynamics_of(scan, signals, own, tuning, people.hierarchy.error)
    fitted = {name: getattr(found.fit, name).item() for name in ("seen", "held_out", "prior_held_out", "step", "ok", "regularised")}
    report |= {"fit": fitted}
    if not directed:
        return _Informed(parcellation, found, report)
    effective = effective_of(scan, signals, own, found, tuning)
    return _Informed(parcellation, found, report | {"effective": {"ok": effective.ok, "sd": list(effective.sd)}}, effective)


def _network(scan, placed, group, parcellation, names, config) -> Network:
    here, local = placed.here, placed.whole
    labels = _spread(parcellation.hardened.labels, here, len(scan.space), -1)
    signals = parcel_signals(scan.y, labels, group.n_parcels)
    qc = quality(scan, here, local, group, parcellation, labels, names, config)
    known = {"tr": scan.tr, "frames": scan.frames, "y": scan.y, "labels": labels}
    return Network(
        space=scan.space,
        labels=labels,
        candidates=_spread(placed.local.candidates, here, len(scan.space), -1),
        probabilities=_spread(parcellation.q, here, len(scan.space), 0.0),
        signals=signals,
        edges={name: measures.compute(name, signals, **known) for name in names if measures.measure(name).function is not None},
        ids=group.ids,
        names=group.names,
        hemispheres=group.hemispheres,
        prior_labels=local.labels,
        coverage=local.coverage,
        frames=scan.frames,
        tr=scan.tr,
        subject=scan.subject,
        entities=dict(scan.entities),
        qc=qc,
        provenance={},
        mean=scan.mean,
        displacement=scan.displacement,
    )


def _add_dynamics(network: Network, informed: _Informed) -> None:
    """The coupling J and its standard errors beside the other edges, and what fine-tuning did."""
    network.qc["dynamics"] = informed.report
    network.edges["coupling"] = spread_present(informed.dynamics.coupling, network.signals)
    network.uncertainty["coupling"] = spread_present(informed.dynamics.error, network.signals)
    if (directed := informed.effective) is not None:
        network.edges["effective"] = spread_present(directed.coupling, network.signals)
        network.uncertainty["effective"] = spread_present(directed.error, network.signals)
        if not directed.ok:
            network.qc["warnings"].append(
                "the directed coupling could not be fitted (not finite, not stable, or no better than the symmetric one): the symmetric "
                "coupling stands in its place, which has no direction"
            )
    fitted = informed.report["fit"]
    if not fitted["ok"]:
        network.qc["warnings"].append(
            "the scan could not show that its dynamics differ from those of other people: the coupling is theirs, of the same prior"
        )
    if fitted["regularised"]:
        network.qc["warnings"].append(
            "the scan has fewer independent values than parcels: the coupling is for a good part that of other people"
        )


def _add_layers(network: Network, people: People, scan: Scan) -> Network:
    """The shrunk and the guided layer of the edges beside the raw one, where Pearson edges were asked for."""
    if network.subject in {label.rpartition("/")[2] for label in people.subjects}:
        network.qc["warnings"].append(
            f"one of the people that coupling and layers were learned from is called sub-{network.subject} too: if it is this person, "
            "give other people for numbers that are to be compared"
        )
    if "pearson" not in network.edges:
        return network
    if people.shrinkage is None:
        network.qc["warnings"].append(f"no shrunk and guided edges: {len(people.subjects)} people are too few to learn them from")
        return network
    if len(people.subjects) < FEW_PEOPLE:
        network.qc["warnings"].append(
            f"shrunk and guided edges were learned from {len(people.subjects)} people, fewer than {FEW_PEOPLE}: their standard deviations "
            "are too small"
        )
    known = 1 if people.guide is None else len(people.guide.mean)
    views = further_views(scan, network.signals, network.labels) if known > 1 else []
    if len(views) < known - 1:
        network.qc["warnings"].append(
            "guided edges are made of Pearson's alone, although those of the people they were learned from had a second view: keep the "
            "signals before the low-pass (cleaning.wide)"
        )
    return add_layers(network, layers(network.edges["pearson"], network.qc["n_eff"], people.shrinkage, people.guide, views))


def spread_present(values: Float[np.ndarray, "k k"], signals: Float[np.ndarray, "K T"]) -> Float[np.ndarray, "K K"]:
    """Values of the parcels that have a signal among all K, NaN for the others."""
    present = np.isfinite(signals).all(1)
    out = np.full((len(signals),) * 2, np.nan, np.float32)
    out[np.ix_(present, present)] = values
    return out


def parcel_signals(y: Float[np.ndarray, "V T"], labels: Int[np.ndarray, " V"], n_parcels: int) -> Float[np.ndarray, "K T"]:
    """Mean signal of each parcel, NaN where it has no location, `[K, T]`."""
    from scipy.sparse import csr_matrix

    inside = np.flatnonzero(labels >= 0)
    size = np.bincount(labels[inside], minlength=n_parcels).astype(np.float32)
    share = csr_matrix((np.ones(len(inside), np.float32), (labels[inside], inside)), shape=(n_parcels, len(labels)))
    with np.errstate(invalid="ignore"):
        return (share @ y) / np.where(size > 0, size, np.nan)[:, None]


def edge_views(
    scan: Scan, signals: Float[np.ndarray, "K T"], labels: Int[np.ndarray, " V"], columns: Int[np.ndarray, " t"] | slice = slice(None)
) -> list[Float[np.ndarray, "K K"]]:
    """What a guide reads of some frames of a scan: Pearson's r, and what else there is."""
    return [measures.compute("pearson", signals[:, columns]), *further_views(scan, signals, labels, columns)]


def further_views(
    scan: Scan, signals: Float[np.ndarray, "K T"], labels: Int[np.ndarray, " V"], columns: Int[np.ndarray, " t"] | slice = slice(None)
) -> list[Float[np.ndarray, "K K"]]:
    """`whitened`, where signals without a low-pass are known."""
    if scan.wide is not None:
        return [measures.compute("whitened", parcel_signals(scan.wide, labels, len(signals))[:, columns])]
    if "low_pass" in scan.cleaning and scan.band[1] is None:  # and not: nobody knows what was done to them
        return [measures.compute("whitened", signals[:, columns])]
    return []


def _provenance(scan, model, group, config) -> dict[str, Any]:
    return {
        "pnet_jax": pnet_jax.__version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "checkpoint": {"name": model.name, "digest": model.digest},
        "prior": {
            "source": group.source,
            "digest": group.digest,
            "parcels": group.n_parcels,
            "space": group.space,
            "resolution": group.resolution,
        },
        "config": dataclasses.asdict(config),
        "seed": _seed(scan, config.seed),
        "source": str(scan.source),
        "cleaning": scan.cleaning,
        "device": jax.devices()[0].device_kind,
    }


class _Clock:
    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = round(now - self._last, 3), now


def _model(model) -> Model:
    if isinstance(model, Model):
        return model
    from pnet_jax.checkpoint import load_model

    return load_model(model)


def _prior(prior, parcels, model) -> Prior:
    if prior is None:
        parcels = parcels or (200 if 200 in model.priors else min(model.priors, default=200))
        if parcels not in model.priors:
            raise ValueError(
                f"checkpoint {model.name!r} has priors with {sorted(model.priors)} parcels, asked for {parcels}: "
                "choose one, or give a prior file"
            )
        return model.priors[parcels]
    if not isinstance(prior, Prior):
        from pnet_jax.ingest import load_prior

        prior = load_prior(prior)
    if parcels is not None and parcels != prior.n_parcels:
        more = "more than it has" if parcels > prior.n_parcels else "fewer than it has"
        raise ValueError(f"prior {prior.source} has {prior.n_parcels} parcels, asked for {parcels}, {more}: K is the prior's")
    return prior


def _seed(scan: Scan, seed: int) -> int:
    """Depends on who the scan is, never on what is processed beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{scan.label}".encode()).digest()[:4], "big")


def _spread(values, here, size, fill):
    out = np.full((size, *values.shape[1:]), fill, values.dtype)
    out[here] = values
    return out
