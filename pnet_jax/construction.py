"""Construction: from a Scan to a Network."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

import pnet_jax
from pnet_jax import edges as measures
from pnet_jax.config import ConstructConfig
from pnet_jax.encoder.model import Model, embed
from pnet_jax.encoder.tokens import bucketed, observe
from pnet_jax.network import Network
from pnet_jax.ops.potts.chunked import match_table
from pnet_jax.parcellation.harden import Hardened, harden, unchanged
from pnet_jax.parcellation.mixture import Mixture, Problem, begin, group_prototypes, mixture
from pnet_jax.parcellation.prior import PADDING, LocalPrior, Prior, on_space
from pnet_jax.parcellation.select import BETAS, KAPPAS, Selection, select
from pnet_jax.scan import Scan, split
from pnet_jax.space import LEFT, RIGHT, take

if TYPE_CHECKING:
    from pathlib import Path

LOCATION_BUCKET = 4096
FRAME_BUCKET = 64
FINAL_STEPS = 6
MUCH_MOTION_MM = 0.25  # mean framewise displacement beyond which connectivity is commonly taken to be affected
RESOLUTION_TOLERANCE = 0.1  # voxel sizes of prior and scan that differ by less are the same
WHOLE_SIDE = 0.1  # share of the locations from which on a hemisphere is one that was scanned

_group_prototypes = jax.jit(group_prototypes, static_argnames="n_parcels")


def construct(
    scan: Scan,
    *,
    prior: Prior | str | Path | None = None,
    parcels: int | None = None,
    model: Model | str | Path | None = None,
    edges: Sequence[str] | None = None,
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
      config: everything else; the arguments above win over it.

    Raises:
      ValueError: no overlap of scan and prior, an unknown measure, a K that prior or model do not have.
    """
    config = config or ConstructConfig()
    model, group, names = resolve(config, prior=prior, parcels=parcels, model=model, edges=edges)
    clock = _Clock()
    local = on_space(group, scan.space, scan.valid)
    here = np.flatnonzero(local.labels >= 0)
    space, local_here = take(scan.space, here), _take(local, here)
    clock.lap("prior")
    parcellation = _parcellate(scan, here, space, local_here, group, model, config, clock)
    network = _network(scan, here, local, local_here, group, parcellation, names, config)
    clock.lap("edges")
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
    return chosen, _prior(prior if prior is not None else config.prior, parcels or config.parcels, chosen), names


@jax.jit
def _fit(problem: Problem, q, kappa, beta) -> Mixture:
    """The whole scan's mixture, begun where its halves ended: their mean is nearer to the solution than the prior."""
    return mixture(problem, kappa, beta, steps=FINAL_STEPS, start=begin(problem, jnp.log(q + 1e-6)))


@dataclasses.dataclass(frozen=True, eq=False)
class _Parcellation:
    q: Float[np.ndarray, "V C"]
    hardened: Hardened
    selection: Selection


def _parcellate(scan, here, space, local, group, model, config, clock) -> _Parcellation:
    """Soft and hard parcels of the locations `here`, with κ, β and the decision measured on the scan's halves."""
    seen = observe(scan, model.encoder.references, here=here)
    y = np.asarray(seen.y)
    candidates = _pad_rows(local.candidates, -1)
    table = match_table(candidates, _pad_rows(space.neighbours, -1), n_parcels=group.n_parcels)
    shared = (jnp.asarray(candidates), jnp.asarray(_pad_rows(local.log_prior, PADDING)), table)
    prior_labels = jnp.asarray(_pad_rows(local.labels, -1))
    clock.lap("neighbourhood")

    def problem(signals) -> Problem:
        part = seen._replace(y=signals, kept=np.ones(signals.shape[1], bool))
        z = embed(model.encoder, bucketed(part, LOCATION_BUCKET, FRAME_BUCKET))
        return Problem(z, *shared, _group_prototypes(z, prior_labels, n_parcels=group.n_parcels))

    first, second = (np.ascontiguousarray(y[:, columns]) for columns in split(scan))
    seed = _seed(scan, config.seed)
    selection, q = select(
        (problem(first), problem(second)),
        (first, second),
        space,
        local.labels,
        n_parcels=group.n_parcels,
        tr=scan.tr,
        seed=seed,
        kappas=KAPPAS if config.kappa is None else (config.kappa,),
        betas=BETAS if config.beta is None else (config.beta,),
    )
    clock.lap("selection")
    forced = config.force_personalised and selection.decision == "prior"
    if forced:
        selection = dataclasses.replace(
            selection, decision="personalised", reason=f"forced by the configuration, although {selection.reason}"
        )
    if selection.decision == "personalised":
        fitted = _fit(problem(y), _pad_rows(q, 0.0), jnp.float32(selection.kappa_scan), jnp.float32(selection.beta))
        q = np.asarray(fitted.q)[: len(here)]
        hardened = harden(q, local.candidates, space.neighbours, local.labels, group.n_parcels)
    else:
        q = np.exp(local.log_prior) * (local.candidates >= 0)
        hardened = unchanged(local.labels, space.neighbours, group.n_parcels)
    clock.lap("parcellation")
    return _Parcellation(q.astype(np.float32), hardened, selection)


def _network(scan, here, local, local_here, group, parcellation, names, config) -> Network:
    labels = _spread(parcellation.hardened.labels, here, len(scan.space), -1)
    signals = parcel_signals(scan.y, labels, group.n_parcels)
    qc = _quality(scan, here, local, group, parcellation, labels, names, config)
    known = {"tr": scan.tr, "frames": scan.frames, "y": scan.y, "labels": labels}
    return Network(
        space=scan.space,
        labels=labels,
        candidates=_spread(local_here.candidates, here, len(scan.space), -1),
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


def parcel_signals(y: Float[np.ndarray, "V T"], labels: Int[np.ndarray, " V"], n_parcels: int) -> Float[np.ndarray, "K T"]:
    """Mean signal of each parcel, NaN where it has no location, `[K, T]`."""
    from scipy.sparse import csr_matrix

    inside = np.flatnonzero(labels >= 0)
    size = np.bincount(labels[inside], minlength=n_parcels).astype(np.float32)
    share = csr_matrix((np.ones(len(inside), np.float32), (labels[inside], inside)), shape=(n_parcels, len(labels)))
    with np.errstate(invalid="ignore"):
        return (share @ y) / np.where(size > 0, size, np.nan)[:, None]


def _quality(scan, here, local, group, parcellation, labels, names, config) -> dict[str, Any]:
    size = np.bincount(labels[labels >= 0], minlength=group.n_parcels)
    low, high = scan.cleaning.get("high_pass") or 0.0, scan.cleaning.get("low_pass") or 0.5 / scan.tr
    n_eff = 2 * (float(high) - float(low)) * scan.duration
    name = np.array(group.names, object)
    warnings = [*scan.warnings, *_misfits(scan, local, group)]
    if {"partial", "precision"} & set(names) and n_eff <= 5 * group.n_parcels:
        warnings.append(
            f"partial correlation and precision are ill-posed here: about {n_eff:.0f} effective frames for {group.n_parcels} parcels, "
            f"expected more than {5 * group.n_parcels}"
        )
    selection = dataclasses.asdict(parcellation.selection)
    selection["difference"] = {"dcbc": selection["difference"]}
    if selection["decision"] == "prior":
        warnings.append(f"the prior's parcels are returned: {selection['reason']}")
    if scan.displacement is not None and np.nanmean(scan.displacement[scan.frames]) > MUCH_MOTION_MM:
        warnings.append(
            f"the head moved {np.nanmean(scan.displacement[scan.frames]):.2f} mm a frame on average in the frames that were kept, "
            f'more than {MUCH_MOTION_MM} mm: add "scrub" to cleaning.strategy, or treat this network with care'
        )
    if (size == 0).any():
        warnings.append(f"{int((size == 0).sum())} of {group.n_parcels} parcels have no location; their rows are NaN")
    return {
        "selection": selection,
        "absent": name[size == 0].tolist(),
        "restored": name[parcellation.hardened.restored].tolist(),
        "fragments_joined": parcellation.hardened.moved_fragments,
        "components": {str(name[k]): int(c) for k, c in enumerate(parcellation.hardened.components) if c > 1},
        "sizes": size.tolist(),
        "moved": float((labels[here] != local.labels[here]).mean()),
        "n_locations": len(here),
        "n_outside": int(len(labels) - len(here)),
        "n_frames": int(scan.y.shape[1]),
        "recorded_frames": int(scan.recorded),
        "minutes": scan.duration / 60,
        "low_coverage": name[local.coverage < config.min_coverage].tolist(),
        "n_eff": n_eff,
        "mean_displacement": None if scan.displacement is None else float(np.nanmean(scan.displacement)),
        "tsnr": float(np.median(scan.mean[here] / np.maximum(scan.std[here], 1e-12))),
        "warnings": warnings,
    }


def _misfits(scan: Scan, local: LocalPrior, group: Prior) -> list[str]:
    """What a reader should know of how the prior lies on the scan."""
    warnings, here = [], scan.space.resolution
    # The shipped priors are geometric: they have no borders that a voxel size could blur.
    drawn = not group.source.startswith("geometric")
    if drawn and scan.space.kind == "grid" and abs(here - group.resolution) > RESOLUTION_TOLERANCE * group.resolution:
        warnings.append(
            f"the prior's {group.resolution:.3g} mm were taken to the scan's {here:.3g} mm by nearest point: a prior at the scan's own "
            "resolution has sharper borders"
        )
    for side, name in ((LEFT, "left"), (RIGHT, "right")):
        own = scan.valid & (scan.space.hemisphere == side)
        if own.sum() > WHOLE_SIDE * scan.valid.sum() and not (local.labels[own] >= 0).any():
            warnings.append(
                f"the prior has no parcel in the {name} hemisphere, where {int(own.sum())} of the scan's {int(scan.valid.sum())} "
                "locations lie: check that prior and scan belong together"
            )
    return warnings


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


def _take(local: LocalPrior, here) -> LocalPrior:
    return dataclasses.replace(local, candidates=local.candidates[here], log_prior=local.log_prior[here], labels=local.labels[here])


def _pad_rows(table, value):
    rows = -(-len(table) // LOCATION_BUCKET) * LOCATION_BUCKET - len(table)
    return np.pad(table, ((0, rows),) + ((0, 0),) * (table.ndim - 1), constant_values=value)


def _spread(values, here, size, fill):
    out = np.full((size, *values.shape[1:]), fill, values.dtype)
    out[here] = values
    return out
