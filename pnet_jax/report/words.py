"""What a report says in words and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pnet_jax.network import Network

DEFAULT_COVERAGE = 0.5
MOST_NAMED = 3  # parcels that moved


def minutes_kept(network: Network) -> float:
    """Minutes of signal that the result rests on."""
    return len(network.frames) * network.tr / 60


def recorded_frames(network: Network) -> int | None:
    """Frames of the recording before scrubbing; None where nobody said."""
    recorded = network.qc.get("recorded_frames") if network.displacement is None else len(network.displacement)
    return int(recorded) if recorded else None


def moved_share(network: Network) -> float | None:
    """Share of locations whose parcel is not the prior's; None where the prior has no location here."""
    if network.qc.get("moved") is not None:
        return float(network.qc["moved"])
    inside = network.prior_labels >= 0
    return float((network.labels != network.prior_labels)[inside].mean()) if inside.any() else None


def absent_parcels(network: Network) -> list[str]:
    """Names of the parcels without any location."""
    sizes = np.bincount(network.labels[network.labels >= 0], minlength=network.n_parcels)
    return [network.names[k] for k in np.flatnonzero(sizes == 0)]


def min_coverage(network: Network) -> float:
    """Share of a prior parcel below which the page warns of it: the configuration's, else a half."""
    config = network.provenance.get("config")
    given = config.get("min_coverage") if isinstance(config, Mapping) else None
    return DEFAULT_COVERAGE if given is None else float(given)


def sentence(text: Any) -> str:
    """The text with a capital and a full stop; what begins with a name of a file or scan keeps its first letter."""
    text = str(text).strip()
    first = text.split(" ", 1)[0]
    text = text[:1].upper() + text[1:] if first.isalpha() and first.islower() else text
    return text if text.endswith((".", "!", "?")) or not text else f"{text}."


def sentences(network: Network) -> dict[str, str]:
    """The three sentences a page opens with: what it is, whether the scan supports the change, what to beware of."""
    return {"what": _what(network), "change": _change(network), "beware": _beware(network)}


def explain(network: Network) -> str:
    """What a network rests on, a line each: which prior, what moved and where, what the dynamics changed, what the data left open.

    Args:
      network: from `construct`, or read back by `load_network`.

    >>> print(explain(network))  # doctest: +SKIP
    Prior: 200 parcels of geometric 200, on sub-01's 22829 locations; pnet-linear made the embedding.
    """
    return "\n".join(filter(None, (_origin(network), _moves(network), _dynamics(network), _open(network))))


def _origin(network: Network) -> str:
    prior, checkpoint = (network.provenance.get(key) or {} for key in ("prior", "checkpoint"))
    named = f" of {prior['source']}" if prior.get("source") else ""
    made = f"; {checkpoint['name']} made the embedding" if checkpoint.get("name") else ""
    return f"Prior: {network.n_parcels} parcels{named}, on sub-{network.subject}'s {int((network.labels >= 0).sum())} locations{made}."


def _moves(network: Network) -> str:
    inside = (network.prior_labels >= 0) & (network.labels >= 0)
    changed = network.labels != network.prior_labels
    share = np.bincount(network.prior_labels[inside], weights=changed[inside], minlength=network.n_parcels)
    size = np.maximum(np.bincount(network.prior_labels[inside], minlength=network.n_parcels), 1)
    most = [
        f"{network.names[k]} ({_percent(share[k] / size[k])})" for k in np.argsort(-share / size, kind="stable")[:MOST_NAMED] if share[k]
    ]
    if not most:
        return "Parcels: those of the prior, none moved. " + _change(network)
    moved = int((share > 0).sum())
    return f"Parcels: {moved} of {network.n_parcels} gave up locations, most of all {', '.join(most)}. " + _change(network)


def _dynamics(network: Network) -> str:
    found = network.qc.get("dynamics")
    if not found:
        return ""
    fitted, parcels = found["fit"], found["parcels"]
    gain = fitted["prior_held_out"] - fitted["held_out"]
    told = (
        f"this person's own dynamics foretold the held-out part better than those of {found['people']} other people "
        f"(log-likelihood +{gain:.4f} a parcel and a bin)"
        if fitted["ok"]
        else f"the held-out part was foretold best by the dynamics of {found['people']} other people, which are given"
    )
    kept = "the fine-tuned parcels are kept" if parcels["kept"] else "the parcels are those without fine-tuning"
    directed = "; directed coupling was fitted beside the symmetric one" if (found.get("effective") or {}).get("ok") else ""
    return f"Dynamics: {told}; {kept} ({parcels['reason']}){directed}."


def _open(network: Network) -> str:
    absent, restored = absent_parcels(network), network.qc.get("restored") or []
    said = [f"{len(absent)} parcels have no location"] * bool(absent)
    said += [f"{len(restored)} were too small and are the prior's"] * bool(restored)
    if (network.qc.get("selection") or {}).get("decision") == "prior":
        said.append("whether any border should move")
    if (network.qc.get("dynamics") or {}).get("fit", {}).get("regularised"):
        said.append("how much of the coupling is this person's own")
    if (network.qc.get("dynamics") or {}).get("effective", {}).get("ok") is False:
        said.append("in which direction the parcels act on each other")
    return f"Left open by the data: {'; '.join(said)}." if said else "Left open by the data: nothing that was asked of it."


def verdict(network: Network) -> tuple[str, str]:
    """A few words and their tone (`good`, `plain` or `warn`) on whether the map is the person's own."""
    selection = network.qc.get("selection") or {}
    if selection.get("decision") == "prior":
        return "group prior kept", "warn"
    interval = gain_interval(selection)
    if interval is None:
        return "not tested", "plain"
    low, _, high = interval
    if high < 0:
        return "worse than the prior", "warn"
    return ("supported by the scan", "good") if low > 0 else ("no clear gain over the prior", "plain")


def key_numbers(network: Network) -> list[dict[str, str]]:
    """The figures at the top of the page; those that are not known are left out."""
    qc, selection = network.qc, network.qc.get("selection") or {}
    absent, interval = len(absent_parcels(network)), gain_interval(selection)
    share = moved_share(network)
    cards = [
        ("Signal kept", f"{minutes_kept(network):.1f} min", f"{len(network.frames)} frames, TR {network.tr:g} s"),
        ("Parcels", str(network.n_parcels), f"{absent} absent" if absent else "none absent"),
        ("Moved", _percent(share), "of the locations left their prior parcel") if share is not None else None,
        ("DCBC gain", f"{interval[1]:+.4f}", "over the prior, across halves; above 0 is better") if interval else None,
        ("Mean motion", f"{qc['mean_displacement']:.2f} mm", "framewise displacement") if _known(qc, "mean_displacement") else None,
        ("tSNR", f"{qc['tsnr']:.0f}", "median of mean ÷ SD after cleaning") if _known(qc, "tsnr") else None,
        ("n_eff", f"{qc['n_eff']:.0f}", "independent time points in the band that was kept") if _known(qc, "n_eff") else None,
    ]
    return [dict(zip(("title", "value", "note"), card, strict=True)) for card in cards if card]


def gain_interval(selection: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """Low, middle and high of the gain in DCBC over the prior across halves; None where it was not measured."""
    given = (selection.get("difference") or {}).get("dcbc")
    if given is None or len(given) != 3 or not np.isfinite(np.asarray(given, float)).all():
        return None
    return float(given[0]), float(given[1]), float(given[2])


def flatten(tree: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested mappings as rows `("config.seed", "0")` in their own order."""
    if isinstance(tree, Mapping):
        return [row for key, value in tree.items() for row in flatten(value, f"{name}.{key}" if name else str(key))]
    if isinstance(tree, list | tuple) and len(tree) <= 12 and not any(isinstance(item, Mapping | list | tuple) for item in tree):
        return [(name, ", ".join(map(str, tree)))]
    return [(name, str(tree))]


def _what(network: Network) -> str:
    task = str(network.entities.get("task", "rest"))
    state = "resting-state fMRI" if task.lower().startswith("rest") else f"fMRI during the task “{task}”"
    return (
        f"This page shows the brain of sub-{network.subject} divided into {network.n_parcels} areas (parcels) and how strongly the "
        f"activity of these areas goes together, estimated from {minutes_kept(network):.1f} minutes of {state}."
    )


def _change(network: Network) -> str:
    selection = network.qc.get("selection") or {}
    reason = str(selection.get("reason") or "").rstrip(".").removesuffix(", so the prior is kept")
    if selection.get("decision") == "prior":
        because = f": {reason}" if reason else ""
        return f"The borders shown are those of the group prior, since the scan does not show that moving them helps{because}."
    share = moved_share(network)
    moved = f"{_percent(share)} of the locations left the parcel that the group prior gives them" if share is not None else "Borders moved"
    interval = gain_interval(selection)
    if interval is None:
        return f"{moved}; no half of the scan was tried on the other, so nothing here says whether the scan supports this."
    low, middle, high = interval
    gain = f"DCBC {middle:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}"
    halves = "drawn from one half of it and scored on the other, the map separates areas"
    if low > 0:
        return f"{moved}, and the scan supports this: {halves} better than the prior ({gain})."
    if high < 0:
        return f"{moved}, but the scan speaks against it: {halves} worse than the prior ({gain}). Do not rely on its borders."
    return f"{moved}; across the two halves of the scan, the map cannot be told from the prior ({gain}), so read its borders with care."


def _beware(network: Network) -> str:
    # The sentence before this one gives the reason for the choice already.
    reason = str((network.qc.get("selection") or {}).get("reason") or "\0")
    warnings = [str(text).rstrip(".") for text in network.qc.get("warnings") or [] if reason not in str(text)]
    if warnings:
        more = f" (and {len(warnings) - 1} more below)" if len(warnings) > 1 else ""
        return f"Keep in mind: {warnings[0]}{more}."
    absent, low = len(absent_parcels(network)), len(network.qc.get("low_coverage") or [])
    notes = [f"{absent} absent parcels"] * bool(absent) + [f"{low} parcels with low coverage"] * bool(low)
    return f"Nothing raised a warning; {' and '.join(notes)} are listed below." if notes else "Nothing raised a warning."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.1f} %"


def _known(qc: Mapping[str, Any], key: str) -> bool:
    return qc.get(key) is not None and bool(np.isfinite(qc[key]))
