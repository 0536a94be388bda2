"""Additions to a network that require a group model: fine-tuning, dynamics, and shrunk and guided edges."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from pnet_jax.config import PersonalizeConfig
from pnet_jax.construction.assemble import assemble, second_view
from pnet_jax.construction.step import Outputs
from pnet_jax.construction.wave import Builder, Ready
from pnet_jax.dynamics.spectra import TooShortError
from pnet_jax.edges.layers import add_layers, layers
from pnet_jax.finetune.objective import FinetuneSubject
from pnet_jax.finetune.person import DirectedCoupling, IndividualDynamics, Personal, dynamics_of, dynamics_prior, effective_of, judge, tune
from pnet_jax.finetune.subject import make_subject, parts_of
from pnet_jax.group.fit import Group
from pnet_jax.network import Network
from pnet_jax.scan import Scan, some_frames

FEW_PARTICIPANTS = 20  # fewer give poor estimates of between-subject variance


def inform(network: Network, ready: Ready, found: Outputs, builder: Builder, personal: Personal | None) -> Network:
    """Add the results that use a group model; if the scan is too short for dynamics, omit them and add a warning."""
    plan = builder.plan
    group = plan.group
    assert group is not None
    if plan.config.dynamics:
        try:
            network = _with_dynamics(network, ready, found, builder, personal, group)
        except TooShortError as error:
            network = _warn(network, f"no dynamics were fitted: {error}")
    return _with_layers(network, group, ready.scan)


def tunable(ready: Ready, builder: Builder, config: PersonalizeConfig) -> tuple[Outputs, FinetuneSubject]:
    """Prepare a recording for fine-tuning: initial settings and parcels are computed from the fitted part of the scan alone.

    Raises:
      TooShortError: If one of the parts has too few frames for the band.
    """
    scan = ready.scan
    fitted = some_frames(scan, np.flatnonzero(parts_of(scan, config).fitted))
    start = builder.run([builder.ready(dataclasses.replace(fitted, valid=scan.valid))])[0]
    settings = {"kappa": float(start.choice.kappa), "beta": float(start.choice.beta)}
    return start, make_subject(scan, ready.placed, builder.plan.model, start.probabilities, start.candidates, config=config, **settings)


def _with_dynamics(network: Network, ready: Ready, found: Outputs, builder: Builder, personal: Personal | None, group: Group) -> Network:
    plan, scan = builder.plan, ready.scan
    tuning = plan.config.personalize
    hierarchy = group.hierarchy
    assert hierarchy is not None
    own = dynamics_prior(hierarchy, plan.atlas, tuning)
    report: dict[str, Any] = {"participants": len(group.subjects), "atlas": group.atlas}
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
        why = (
            "the parcels of the atlas were requested"
            if plan.settings.labels == "atlas"
            else "the scan does not support personalised parcels"
        )
        report["parcels"] = {"kept": False, "reason": f"{why}, so none are fine-tuned"}
    dynamics = dynamics_of(scan, network.signals, own, tuning, np.asarray(hierarchy.error))
    fitted = {name: getattr(dynamics.fit, name).item() for name in ("seen", "held_out", "prior_held_out", "step", "ok", "regularised")}
    report |= {"fit": fitted}
    effective = None
    if "effective" in plan.edges:
        effective = effective_of(scan, network.signals, own, dynamics, tuning)
        report |= {"effective": {"ok": effective.ok, "sd": list(effective.sd)}}
    return _add_dynamics(network, dynamics, effective, report)


def _add_dynamics(network: Network, dynamics: IndividualDynamics, effective: DirectedCoupling | None, report: dict[str, Any]) -> Network:
    """Add the coupling J and its standard errors to the edges, and record the results of fine-tuning."""
    network = dataclasses.replace(network, qc=dataclasses.replace(network.qc, dynamics=report))
    network.edges["coupling"] = spread_present(dynamics.coupling, network.signals)
    network.uncertainty["coupling"] = spread_present(dynamics.error, network.signals)
    if effective is not None:
        network.edges["effective"] = spread_present(effective.coupling, network.signals)
        network.uncertainty["effective"] = spread_present(effective.error, network.signals)
        if not effective.ok:
            network = _warn(
                network,
                "the directed coupling could not be estimated (not finite, not stable, or no better than the symmetric one); the symmetric "
                "coupling, which has no direction, is returned instead",
            )
    if not report["fit"]["ok"]:
        network = _warn(network, "the scan's dynamics do not differ detectably from the group's; the group coupling is returned")
    if report["fit"]["regularised"]:
        network = _warn(network, "the scan has fewer independent values than parcels: the coupling depends largely on the group prior")
    return network


def _with_layers(network: Network, group: Group, scan: Scan) -> Network:
    """Add the shrunk and guided edges next to the raw ones if Pearson edges were requested."""
    if network.subject in {label.rpartition("/")[2] for label in group.subjects}:
        network = _warn(
            network,
            f"the group model was also learned from a participant sub-{network.subject}; if this is the same participant, "
            "use another group model for results that are to be compared",
        )
    if "pearson" not in network.edges:
        return network
    if group.shrinkage is None:
        return _warn(network, f"no shrunk and guided edges: {len(group.subjects)} participants are too few to estimate them")
    if len(group.subjects) < FEW_PARTICIPANTS:
        network = _warn(
            network,
            f"shrunk and guided edges were learned from {len(group.subjects)} participants, fewer than {FEW_PARTICIPANTS}; their standard "
            "deviations are underestimated",
        )
    known = 1 if group.guide is None else len(group.guide.mean)
    second = second_view(scan, network.labels, network.n_parcels) if known > 1 else None
    views = [] if second is None else [second]
    if len(views) < known - 1:
        network = _warn(
            network,
            "guided edges are based on Pearson edges alone, although the group model also has a second view; keep the signals before "
            "low-pass filtering (cleaning.wide)",
        )
    if views:
        network = _warn(network, _of_motion(group.motion))
    n_eff = network.qc.n_eff
    assert n_eff is not None
    return add_layers(network, layers(network.edges["pearson"], n_eff, group.shrinkage, group.guide, views))


def _of_motion(motion: dict[str, float]) -> str:
    """Return the warning about the cost of the second view."""
    raw, guided = motion.get("raw", float("nan")), motion.get("guided, second view", float("nan"))
    measured = f" (mean |QC-FC| in the group: raw {raw:.3f}, guided {guided:.3f})" if raw == raw and guided == guided else ""
    return (
        f"guided edges use a second view, which is more strongly related to head motion than raw edges are{measured}; use them to describe "
        "a participant, not to compare groups or to predict"
    )


def _warn(network: Network, said: str) -> Network:
    return dataclasses.replace(network, qc=network.qc.warn(said))


def spread_present(values: Float[np.ndarray, "k k"], signals: Float[np.ndarray, "K T"]) -> Float[np.ndarray, "K K"]:
    """Expand values between the parcels that have a signal to all K parcels, with NaN for the others."""
    present = np.isfinite(signals).all(1)
    out = np.full((len(signals),) * 2, np.nan, np.float32)
    out[np.ix_(present, present)] = values
    return out
