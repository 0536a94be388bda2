"""Text for the methods section of a paper, with the figures of one scan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pnet_jax
from pnet_jax.network import Network
from pnet_jax.outputs.atlas import network_atlas
from pnet_jax.report import words

REFERENCE = (
    "Jiang, Tang & Wang (2026), Neural Dynamics-Informed Pre-trained Framework for Personalized Brain Functional Network Construction, "
    "arXiv:2603.07524"
)


def methods(network: Network) -> list[str]:
    """Return the text as sentences: software, data, cleaning, parcels, edges.

    Figures that a result does not record are left out.
    """
    return [text for text in (_software(network), _data(network), _cleaning(network), _parcels(network), _edges(network)) if text]


def _software(network: Network) -> str:
    version = network.provenance.get("pnet_jax") or pnet_jax.__version__
    checkpoint = _mapping(network, "checkpoint").get("name")
    with_model = f" with the encoder {checkpoint}" if checkpoint else ""
    return f"Individual functional parcels and functional connectivity were estimated with pnet_jax {version}{with_model}."


def _data(network: Network) -> str:
    recorded, frames = words.recorded_frames(network), len(network.frames)
    of = f" of {recorded}" if recorded else ""
    motion = network.qc.mean_displacement
    moved = f"; mean framewise displacement {motion:.2f} mm" if motion is not None and words.known((motion,) * 3) else ""
    said = f"The estimates rest on {words.minutes_kept(network):.1f} min of {words.state(network)}"
    return f"{said} (n = {frames}{of} frames, TR = {network.tr:g} s{moved})."


def _cleaning(network: Network) -> str:
    done = _mapping(network, "cleaning")
    asked = _mapping(network, "config").get("cleaning")
    asked = asked if isinstance(asked, Mapping) else {}
    steps = []
    if isinstance(regressors := done.get("confounds"), list | tuple) and regressors:
        strategy = ", ".join(map(str, done.get("strategy") or ())) or "given by the user"
        steps.append(f"regression of {len(regressors)} confounds ({strategy})")
    if done.get("detrend"):
        steps.append("linear detrending")
    high, low = done.get("high_pass"), done.get("low_pass")
    if high and low:
        steps.append(f"a band-pass filter of {high:g} to {low:g} Hz")
    elif high or low:
        steps.append(f"a high-pass filter of {high:g} Hz" if high else f"a low-pass filter of {low:g} Hz")
    if network.displacement is not None and asked.get("fd_threshold"):
        steps.append(f"scrubbing of frames with a framewise displacement above {asked['fd_threshold']:g} mm")
    listed = " and ".join(filter(None, [", ".join(steps[:-1]), steps[-1] if steps else ""]))
    return f"Signals were cleaned by {listed}." if steps else ""


def _parcels(network: Network) -> str:
    s = network.qc.selection
    atlas = network_atlas(network).label
    said = f"Parcels started from {network.start}{f' ({atlas}' if atlas else ''}{', ' if atlas else ' ('}K = {network.n_parcels})"
    if s.requested:
        return f"{said} and were not changed, as requested."
    if s.decision == "atlas":
        return f"{said} and were not personalised, because the halves of the scan did not support it."
    if words.verdict(network)[0] == "not tested":
        return f"{said} and were personalised; the halves of the scan were not compared."
    gains = f"{words.gain_text(s.gain, '.3f', 'nats per location')} and {words.gain_text(s.dcbc_gain, '.4f', 'in DCBC')}"
    return (
        f"{said} and were personalised (κ = {s.kappa:.3g}, β = {s.beta:.3g}); across halves, the gain over data-free parcels was {gains}."
    )


def _edges(network: Network) -> str:
    if not network.edges:
        return ""
    return (
        f"Edges: {', '.join(network.edges)}, from the mean signal of each parcel."
        if _of_means(network)
        else f"Edges: {', '.join(network.edges)}."
    )


def _of_means(network: Network) -> bool:
    return set(network.edges) <= {"pearson", "covariance", "partial", "precision", "distance_correlation", "gaussian_copula"}


def _mapping(network: Network, key: str) -> Mapping[str, Any]:
    found = network.provenance.get(key)
    return found if isinstance(found, Mapping) else {}
