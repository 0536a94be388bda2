"""What a group adds to a network: fine-tuning, dynamics, and the shrunk and guided layers of its edges."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pnet_jax import edges as measures
from pnet_jax.config import PersonalizeConfig
from pnet_jax.construction.assemble import assemble
from pnet_jax.construction.step import Outputs
from pnet_jax.construction.wave import Builder, Ready
from pnet_jax.dynamics.spectra import TooShortError
from pnet_jax.edges.layers import add_layers, layers
from pnet_jax.finetune.person import Dynamics, Effective, Personal, dynamics_of, dynamics_prior, effective_of, judge, tune
from pnet_jax.finetune.subject import Subject, make_subject, parts_of
from pnet_jax.network import Network
from pnet_jax.parcellation.signals import parcel_signals
from pnet_jax.people import People
from pnet_jax.scan import Scan, halves_of, some_frames

FEW_PEOPLE = 20  # from which on variances between participants are known well enough


def inform(network: Network, ready: Ready, found: Outputs, builder: Builder, personal: Personal | None) -> Network:
    """A network with what a group adds to it; where the scan is too short for dynamics, without them and with a warning."""
    plan = builder.plan
    people = plan.people
    assert people is not None
    if plan.config.dynamics:
        try:
            network = _with_dynamics(network, ready, found, builder, personal, people)
        except TooShortError as error:
            network = _warn(network, f"no dynamics were fitted: {error}")
    return _with_layers(network, people, ready.scan)


def tunable(ready: Ready, builder: Builder, config: PersonalizeConfig) -> tuple[Outputs, Subject]:
    """A recording ready to be fine-tuned: the settings and the parcels it begins with come from the part that is fitted alone.

    Raises:
      TooShortError: too few frames for the band in one of the parts.
    """
    scan = ready.scan
    fitted = some_frames(scan, np.flatnonzero(parts_of(scan, config).fitted))
    start = builder.run([builder.ready(dataclasses.replace(fitted, valid=scan.valid))])[0]
    settings = {"kappa": float(start.choice.kappa), "beta": float(start.choice.beta)}
    return start, make_subject(scan, ready.placed, builder.plan.model, start.probabilities, start.candidates, config=config, **settings)


def _with_dynamics(network: Network, ready: Ready, found: Outputs, builder: Builder, personal: Personal | None, people: People) -> Network:
    plan, scan = builder.plan, ready.scan
    tuning = plan.config.personalize
    own = dynamics_prior(people.hierarchy, plan.atlas, tuning)
    report: dict[str, Any] = {"people": len(people.subjects), "prior": people.prior}
    if found.personalised:
        if personal is None:
            _, subject = tunable(ready, builder, tuning)
            tuned = tune(own, subject, tuning)
            personal = Personal(tuned.own, int(tuned.round), judge(scan, ready.placed, plan.model, subject, own, tuned, tuning))
        report |= {"round": personal.round, "parcels": personal.verdict._asdict()}
        if personal.verdict.kept:
            again = builder.ready(scan, personal.own.adapter)
            network = assemble(scan, again.placed, plan, again.subject, builder.run([again])[0])
    else:
        report["parcels"] = {"kept": False, "reason": "the atlas's parcels are returned, and none are fine-tuned"}
    dynamics = dynamics_of(scan, network.signals, own, tuning, np.asarray(people.hierarchy.error))
    fitted = {name: getattr(dynamics.fit, name).item() for name in ("seen", "held_out", "prior_held_out", "step", "ok", "regularised")}
    report |= {"fit": fitted}
    effective = None
    if "effective" in plan.edges:
        effective = effective_of(scan, network.signals, own, dynamics, tuning)
        report |= {"effective": {"ok": effective.ok, "sd": list(effective.sd)}}
    return _add_dynamics(network, dynamics, effective, report)


def _add_dynamics(network: Network, dynamics: Dynamics, effective: Effective | None, report: dict[str, Any]) -> Network:
    """The coupling J and its standard errors beside the other edges, and what fine-tuning did."""
    network = dataclasses.replace(network, qc=dataclasses.replace(network.qc, dynamics=report))
    network.edges["coupling"] = spread_present(dynamics.coupling, network.signals)
    network.uncertainty["coupling"] = spread_present(dynamics.error, network.signals)
    if effective is not None:
        network.edges["effective"] = spread_present(effective.coupling, network.signals)
        network.uncertainty["effective"] = spread_present(effective.error, network.signals)
        if not effective.ok:
            network = _warn(
                network,
                "the directed coupling could not be fitted (not finite, not stable, or no better than the symmetric one): the symmetric "
                "coupling stands in its place, which has no direction",
            )
    if not report["fit"]["ok"]:
        network = _warn(
            network, "the scan could not show that its dynamics differ from the group's: the coupling is the group's, of the same atlas"
        )
    if report["fit"]["regularised"]:
        network = _warn(network, "the scan has fewer independent values than parcels: the coupling is for a good part the group's")
    return network


def _with_layers(network: Network, people: People, scan: Scan) -> Network:
    """The shrunk and the guided layer of the edges beside the raw one, where Pearson edges were asked for."""
    if network.subject in {label.rpartition("/")[2] for label in people.subjects}:
        network = _warn(
            network,
            f"a participant that coupling and layers were learned from is called sub-{network.subject} too: if it is the same one, "
            "give another group for numbers that are to be compared",
        )
    if "pearson" not in network.edges:
        return network
    if people.shrinkage is None:
        return _warn(network, f"no shrunk and guided edges: {len(people.subjects)} participants are too few to learn them from")
    if len(people.subjects) < FEW_PEOPLE:
        network = _warn(
            network,
            f"shrunk and guided edges were learned from {len(people.subjects)} participants, fewer than {FEW_PEOPLE}: their standard "
            "deviations are too small",
        )
    known = 1 if people.guide is None else len(people.guide.mean)
    views = further_views(scan, network.signals, network.labels) if known > 1 else []
    if len(views) < known - 1:
        network = _warn(
            network,
            "guided edges are made of Pearson's alone, although those of the group had a second view: keep the signals before the "
            "low-pass (cleaning.wide)",
        )
    n_eff = network.qc.n_eff
    assert n_eff is not None
    return add_layers(network, layers(network.edges["pearson"], n_eff, people.shrinkage, people.guide, views))


def _warn(network: Network, said: str) -> Network:
    return dataclasses.replace(network, qc=network.qc.warn(said))


def spread_present(values: Float[np.ndarray, "k k"], signals: Float[np.ndarray, "K T"]) -> Float[np.ndarray, "K K"]:
    """Values of the parcels that have a signal among all K, NaN for the others."""
    present = np.isfinite(signals).all(1)
    out = np.full((len(signals),) * 2, np.nan, np.float32)
    out[np.ix_(present, present)] = values
    return out


def edge_views(
    scan: Scan, signals: Float[np.ndarray, "K T"], labels: Int[np.ndarray, " V"], columns: Int[np.ndarray, " t"] | slice = slice(None)
) -> list[Float[np.ndarray, "K K"]]:
    """What a guide reads of some frames of a scan: Pearson's r, and what else there is."""
    return [measures.compute("pearson", signals[:, columns]), *further_views(scan, signals, labels, columns)]


def half_views(scan: Scan, labels: Int[np.ndarray, " V"], n_parcels: int) -> list[list[Float[np.ndarray, "K K"]]]:
    """`edge_views` of both halves, each cleaned on its own where the scan says how."""
    out = []
    for half in halves_of(scan):
        columns = np.searchsorted(scan.frames, half.frames)
        own = np.asarray(parcel_signals(half.y, labels, n_parcels))
        whole = np.full((n_parcels, len(scan.frames)), np.nan, np.float32)
        whole[:, columns] = own
        out.append([measures.compute("pearson", own), *further_views(scan, whole, labels, columns)])
    return out


def further_views(
    scan: Scan, signals: Float[np.ndarray, "K T"], labels: Int[np.ndarray, " V"], columns: Int[np.ndarray, " t"] | slice = slice(None)
) -> list[Float[np.ndarray, "K K"]]:
    """`whitened`, where signals without a low-pass are known."""
    if scan.wide is not None:
        return [measures.compute("whitened", np.asarray(parcel_signals(np.float32(scan.wide), labels, len(signals)))[:, columns])]
    if "low_pass" in scan.cleaning and scan.band[1] is None:  # and not: nobody knows what was done to them
        return [measures.compute("whitened", signals[:, columns])]
    return []
