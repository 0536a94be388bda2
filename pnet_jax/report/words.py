"""Sentences and numbers of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pnet_jax.network import Interval, Network, Selection

DEFAULT_COVERAGE = 0.5
MOST_NAMED = 3  # largest number of parcels listed by name
FORCED = "forced by the configuration"  # beginning of the reason for parcels that the scan does not support


def minutes_kept(network: Network) -> float:
    """Return the minutes of signal used for the result."""
    return len(network.frames) * network.tr / 60


def recorded_frames(network: Network) -> int | None:
    """Return the number of frames before scrubbing; None if unknown."""
    return network.qc.recorded_frames if network.displacement is None else len(network.displacement)


def state(network: Network) -> str:
    """Describe what the participant did during the scan."""
    task = str(network.entities.get("task", "rest"))
    return "resting-state fMRI" if task.lower().startswith("rest") else f"fMRI during the task “{task}”"


def moved_share(network: Network) -> float | None:
    """Return the share of locations that changed their parcel; None if the scan covers no location of the atlas."""
    if network.qc.moved is not None:
        return network.qc.moved
    inside = network.atlas_labels >= 0
    return float((network.labels != network.atlas_labels)[inside].mean()) if inside.any() else None


def absent_parcels(network: Network) -> list[str]:
    """Return the names of the parcels without any location."""
    sizes = np.bincount(network.labels[network.labels >= 0], minlength=network.n_parcels)
    return [network.names[k] for k in np.flatnonzero(sizes == 0)]


def min_coverage(network: Network) -> float:
    """Return the coverage of an atlas parcel below which the page warns: that of the configuration, or 0.5."""
    config = network.provenance.get("config")
    given = config.get("min_coverage") if isinstance(config, Mapping) else None
    return DEFAULT_COVERAGE if given is None else float(given)


def has_confidence(network: Network) -> bool:
    """Return whether probabilities are known; without a saved soft parcellation, each location has a single candidate."""
    return network.candidates.shape[1] > 1


def sentence(text: Any) -> str:
    """Return a text with an initial capital and a full stop; a leading name of a file or scan is unchanged."""
    text = str(text).strip()
    first = text.split(" ", 1)[0]
    text = text[:1].upper() + text[1:] if first.isalpha() and first.islower() else text
    return text if text.endswith((".", "!", "?")) or not text else f"{text}."


def sentences(network: Network) -> dict[str, str]:
    """Return the first three sentences of a page: content, support of the parcels by the scan, and caveats."""
    return {"what": _what(network), "change": _change(network), "beware": _beware(network)}


def explain(network: Network) -> str:
    """Summarise the basis of a network, one line each: atlas, changed parcels, replication, dynamics, and open questions.

    Args:
      network: Network from `construct` or `load_network`.

    >>> print(explain(network))  # doctest: +SKIP
    Atlas: 200 parcels of geometric 200 on the 22829 locations of sub-01; embedding by pnet-linear.
    """
    return "\n".join(filter(None, (_origin(network), _moves(network), _replication(network), _dynamics(network), _open(network))))


def verdict(network: Network) -> tuple[str, str]:
    """Return a short verdict on whether the scan supports personalised parcels, and its tone (`good`, `plain` or `warn`)."""
    selection = network.qc.selection
    if selection.decision == "atlas":
        start = network.start.removeprefix("the ")
        return (f"{start} requested", "plain") if selection.requested else (f"{start} returned", "warn")
    if selection.decision == "fixed" or not (known(selection.gain) and known(selection.dcbc_gain)):
        return "not tested", "plain"
    return ("supported by the scan", "good") if supported(selection) else ("not supported by the scan", "warn")


def supported(selection: Selection) -> bool:
    """Return whether the parcels are personalised and the intervals of both gains exclude zero."""
    personalised = selection.decision == "personalised" and not selection.reason.startswith(FORCED)
    return personalised and selection.gain[0] > 0 and selection.dcbc_gain[0] > 0


def key_numbers(network: Network) -> list[dict[str, str]]:
    """Return the figures at the top of the page; unknown ones are left out."""
    qc, selection, calibration = network.qc, network.qc.selection, network.qc.calibration
    absent, share = len(absent_parcels(network)), moved_share(network)
    cards = [
        ("Signal kept", f"{minutes_kept(network):.1f} min", f"{len(network.frames)} frames, TR {network.tr:g} s"),
        ("Parcels", str(network.n_parcels), f"{absent} absent" if absent else "none absent"),
        ("Moved", percent(share), f"of locations left their parcel in {network.start}") if share is not None else None,
    ]
    if calibration is not None:
        cards += [
            ("Moved confidently", percent(calibration.confident_moves), "replication probability of at least 50 %"),
            ("Moved doubtfully", percent(calibration.doubtful_moves), "replication probability below 50 %"),
            ("Expected agreement", percent(calibration.expected_agreement), "of labels, with a repeat of equal length"),
            ("Calibration error", f"{calibration.expected_error:.3f}", "mean difference of probability and replication (ECE)"),
        ]
    if known(selection.gain):
        cards.append(("Gain", f"{selection.gain[1]:+.3f}", "nats per location, over data-free parcels"))
    if known(selection.dcbc_gain):
        cards.append(("DCBC gain", f"{selection.dcbc_gain[1]:+.4f}", "over data-free parcels, across halves"))
    if _finite(qc.mean_displacement):
        cards.append(("Mean motion", f"{qc.mean_displacement:.2f} mm", "framewise displacement"))
    if _finite(qc.tsnr):
        cards.append(("tSNR", f"{qc.tsnr:.0f}", "median of mean ÷ SD after cleaning"))
    if _finite(qc.n_eff):
        cards.append(("Effective frames", f"{qc.n_eff:.0f}", "degrees of freedom left by cleaning"))
    return [dict(zip(("title", "value", "note"), card, strict=True)) for card in cards if card]


def choice_numbers(network: Network) -> list[tuple[str, str]]:
    """Return the chosen settings and their measured scores as rows; unknown ones are left out."""
    s, calibration = network.qc.selection, network.qc.calibration
    rows = [
        ("κ, weight of the scan's own signals", f"{s.kappa:.3g}", s.kappa),
        ("β, weight of the neighbours", f"{s.beta:.3g}", s.beta),
        ("T, temperature of the best score (above 1: over-confident mixture)", f"{s.temperature:.3g}", s.temperature),
        ("S, held-out log predictive density", f"{s.score:.3f} nats per location", s.score),
        ("S of data-free parcels (κ = 0)", f"{s.data_free_score:.3f} nats per location", s.data_free_score),
        ("Locations to which both halves give the same label", percent(s.agreement), s.agreement),
        ("Degrees of freedom left by cleaning, first and second half", f"{s.degrees[0]:.0f} and {s.degrees[1]:.0f}", sum(s.degrees)),
    ]
    if calibration is not None:
        exponents = ", ".join(f"{value:.2f}" for value in calibration.exponents)
        rows.append(("Exponents of the calibration", exponents, sum(calibration.exponents)))
    return [(name, text) for name, text, value in rows if _finite(value)]


def known(interval: Interval) -> bool:
    """Return whether a gain was measured."""
    return bool(np.isfinite(interval).all())


def gain_text(interval: Interval, form: str, unit: str) -> str:
    """Format the median and the 95 % interval: `0.0201 in DCBC (95 % CI [0.0125, 0.0277])`."""
    low, middle, high = (format(value, form) for value in interval)
    return f"{middle} {unit} (95 % CI [{low}, {high}])"


def percent(share: float) -> str:
    """Format a share as a percentage."""
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 or not np.isfinite(share) else f"{100 * share:.1f} %"


def flatten(tree: Any, name: str = "") -> list[tuple[str, str]]:
    """Flatten nested mappings to rows such as `("config.seed", "0")`, in order."""
    if isinstance(tree, Mapping):
        return [row for key, value in tree.items() for row in flatten(value, f"{name}.{key}" if name else str(key))]
    if isinstance(tree, list | tuple) and len(tree) <= 12 and not any(isinstance(item, Mapping | list | tuple) for item in tree):
        return [(name, ", ".join(map(str, tree)))]
    return [(name, str(tree))]


def _what(network: Network) -> str:
    return (
        f"This page shows the brain of sub-{network.subject} divided into {network.n_parcels} areas (parcels) and the functional "
        f"connectivity between them, estimated from {minutes_kept(network):.1f} minutes of {state(network)}."
    )


def _change(network: Network) -> str:
    selection = network.qc.selection
    reason = selection.reason.rstrip(".").removesuffix(f", so {network.start} is kept")
    if selection.requested:
        return f"The parcels shown are those of {network.start}, as requested{reason.removeprefix(f'{network.start} was requested')}."
    if selection.decision == "atlas":
        because = f": {reason}" if reason else ""
        return f"The parcels shown are those of {network.start}, because the scan does not support personalised parcels{because}."
    share = moved_share(network)
    moved = f"{percent(share)} of the locations left the parcel that {network.start} gives them" if share is not None else "Borders moved"
    if verdict(network)[0] == "not tested":
        return f"{moved}. The halves of the scan were not compared, so nothing here says whether the scan supports this."
    if not supported(selection):
        because = reason.removeprefix(FORCED).removeprefix(", although not supported").lstrip(": ") or "the gains do not exclude zero"
        return f"{moved}, but the scan does not support this, and the configuration forced it: {because}. Do not rely on these borders."
    return (
        f"{moved}, and the scan supports this: parcels made from one half of it describe the other half better than parcels made without "
        f"data, by {gain_text(selection.gain, '.3f', 'nats per location')} and by {gain_text(selection.dcbc_gain, '.4f', 'in DCBC')}."
    )


def _beware(network: Network) -> str:
    qc = network.qc
    # The previous sentence already gives the reason for the choice.
    warnings = [text.rstrip(".") for text in qc.warnings if not qc.selection.reason or qc.selection.reason not in text]
    if warnings:
        more = f" (and {len(warnings) - 1} more below)" if len(warnings) > 1 else ""
        return f"Keep in mind: {warnings[0]}{more}."
    absent, low = len(absent_parcels(network)), len(qc.low_coverage)
    notes = [_count(absent, "absent parcel")] * bool(absent) + [f"{_count(low, 'parcel')} with low coverage"] * bool(low)
    return f"There are no warnings; {' and '.join(notes)} are listed below." if notes else "There are no warnings."


def _origin(network: Network) -> str:
    atlas, checkpoint = (network.provenance.get(key) or {} for key in ("atlas", "checkpoint"))
    named = f" of {atlas['source']}" if atlas.get("source") else ""
    made = f"; embedding by {checkpoint['name']}" if checkpoint.get("name") else ""
    locations = int((network.labels >= 0).sum())
    return f"Atlas: {_count(network.n_parcels, 'parcel')}{named} on the {locations} locations of sub-{network.subject}{made}."


def _moves(network: Network) -> str:
    inside = (network.atlas_labels >= 0) & (network.labels >= 0)
    changed = network.labels != network.atlas_labels
    lost = np.bincount(network.atlas_labels[inside], weights=changed[inside], minlength=network.n_parcels)
    size = np.maximum(np.bincount(network.atlas_labels[inside], minlength=network.n_parcels), 1)
    most = [f"{network.names[k]} ({percent(lost[k] / size[k])})" for k in np.argsort(-lost / size, kind="stable")[:MOST_NAMED] if lost[k]]
    if not most:
        return f"Parcels: those of {network.start}, unchanged. {_change(network)}"
    changed_parcels = f"{int((lost > 0).sum())} of {network.n_parcels}"
    return f"Parcels: {changed_parcels} lost locations to their neighbours, most of all {', '.join(most)}. {_change(network)}"


def _replication(network: Network) -> str:
    found = network.qc.calibration
    if found is None:
        return ""
    return (
        f"Replication: an independent repeat of equal length is expected to give {percent(found.expected_agreement)} of the locations the "
        f"same label (expected calibration error {found.expected_error:.3f}). {percent(found.confident_moves)} of the locations moved with "
        f"a replication probability of at least 50 %, {percent(found.doubtful_moves)} with less."
    )


def _dynamics(network: Network) -> str:
    found = network.qc.dynamics
    if not found:
        return ""
    fitted, parcels = found["fit"], found["parcels"]
    gain = fitted["prior_held_out"] - fitted["held_out"]
    group = f"the group's, learned from {_count(found['participants'], 'participant')}"
    said = (
        f"individual dynamics predict held-out data better than {group} (log-likelihood {gain:+.4f} per parcel and frequency bin)"
        if fitted["ok"]
        else f"individual dynamics do not predict held-out data better than {group}, so the group's are returned"
    )
    kept = "the fine-tuned parcels are kept" if parcels["kept"] else "the parcels are those without fine-tuning"
    directed = "; directed coupling was fitted in addition to the symmetric one" if (found.get("effective") or {}).get("ok") else ""
    return f"Dynamics: {said}; {kept} ({parcels['reason']}){directed}."


def _open(network: Network) -> str:
    qc, absent = network.qc, len(absent_parcels(network))
    fit, effective = ((qc.dynamics or {}).get(key) or {} for key in ("fit", "effective"))
    said = [f"{_count(absent, 'parcel')} without any location"] * bool(absent)
    said += [f"{_count(len(qc.restored), 'parcel')} that nearly vanished and got locations of {network.start} back"] * bool(qc.restored)
    if qc.selection.decision == "atlas" and not qc.selection.requested:
        said.append(f"whether any border of {network.start} should move")
    if fit.get("regularised"):
        said.append("how much of the coupling is individual")
    if effective.get("ok") is False:
        said.append("the direction of the coupling")
    return f"Not determined by the scan: {'; '.join(said)}." if said else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _finite(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))
