"""Writing of a simulated cohort as an fMRIPrep-like folder, with the ground truth of each subject."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from pnet_jax.config import SimulateConfig
from pnet_jax.outputs.atomic import atomic_path, check_writable, write_text
from pnet_jax.outputs.images import write_image
from pnet_jax.outputs.sidecars import dataset_description
from pnet_jax.outputs.tables import write_json, write_rows
from pnet_jax.simulate import SimulatedSession, SimulatedSubject, check, group_truth, simulate_cohort
from pnet_jax.space import Grid, Space

COSINE_CUTOFF_SECONDS = 128.0  # cut-off of fMRIPrep's high-pass regressors
_MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
_TISSUE = ("csf", "white_matter", "global_signal")
IGNORED = ("*_desc-confounds_timeseries.*", "group_dseg.*", "truth.npz")  # not part of BIDS 1
_COLUMNS = {
    "age": {"Description": "Age of the participant", "Units": "year"},
    "site": {"Description": "Simulated scanner"},
    "group": {"Description": "Whether the coupling has a simulated lesion", "Levels": {"control": "no", "patient": "yes"}},
}
_INT16 = 32000  # largest stored value, slightly below 32767


def write_cohort(folder: str | os.PathLike[str], config: SimulateConfig, progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """Write a simulated cohort as BIDS derivatives and return its preprocessed images, in order.

    Files are renamed to their final names when they are complete. Files of an earlier cohort with the same names are replaced. The folder
    contains `dataset_description.json`, `participants.tsv` + `.json`, `group_dseg.nii.gz` + `.tsv` (group parcels, ids 1…K); for every
    subject `truth.npz`, and for every session preprocessed BOLD, brain mask and confounds with fMRIPrep's names.

    `truth.npz` contains, for V locations in the order of the mask and K parcels: `labels[V]`, `group_labels[V]` (0…K−1), `ijk[V, 3]`,
    `modules[K]`, `coupling[K, K]`, `true_fc[K, K]`, `planted[K, K]`, `affected[K, K]`, `fc_change[K, K]`, `nodes[n]`, the numbers
    `patient`, `severity`, `age`, `hrf_delay`, `index`, `seed`, and the texts `subject`, `site`, `disease`.

    Args:
      folder: Output folder, created if needed.
      config: Settings of the cohort.
      progress: Called with the number of completed subjects and the total.

    Raises:
      ValueError: If a setting is invalid (`pnet_jax.simulate.check`), or `folder` is a file.
      OSError: If the folder cannot be written; names it.
    """
    check(config)
    root = check_writable(folder)
    write_json(
        root / "dataset_description.json", dataset_description() | {"Name": "Simulated resting-state cohort with known ground truth"}
    )
    write_text(root / ".bidsignore", "\n".join(IGNORED) + "\n")
    _write_group(root, config)
    images, participants = [], []
    for done, subject in enumerate(simulate_cohort(config), 1):
        images += [_write_session(root, subject, session) for session in subject.sessions]
        _write_truth(root / f"sub-{subject.subject}" / "truth.npz", subject, config.seed)
        group = "patient" if subject.patient else "control"
        participants.append(
            {"participant_id": f"sub-{subject.subject}", "age": round(subject.age, 1), "site": subject.site, "group": group}
        )
        if progress is not None:
            progress(done, config.subjects)
    write_rows(root / "participants.tsv", ("participant_id", "age", "site", "group"), participants)
    write_json(root / "participants.json", _COLUMNS)
    return images


def confounds_table(session: SimulatedSession) -> dict[str, Float[np.ndarray, " T"]]:
    """Return fMRIPrep's confound columns of a session, `[T]` each; NaN for first frames without a value.

    The columns are motion and tissue signals with derivatives and squares, displacement, DVARS, and the cosines of a 128 s high-pass.
    """
    columns: dict[str, Float[np.ndarray, " T"]] = {}
    for name in (*_TISSUE, *_MOTION):
        values = session.confounds[name]
        change = np.concatenate([[np.nan], np.diff(values)])
        columns |= {name: values, f"{name}_derivative1": change, f"{name}_power2": values**2, f"{name}_derivative1_power2": change**2}
    for name in ("framewise_displacement", "std_dvars"):
        columns[name] = np.concatenate([[np.nan], session.confounds[name][1:]])
    frames = session.y.shape[1]
    phase = np.pi * (np.arange(frames) + 0.5) / frames
    for order in range(int(2 * frames * session.tr / COSINE_CUTOFF_SECONDS)):
        columns[f"cosine{order:02d}"] = np.sqrt(2 / frames) * np.cos((order + 1) * phase)
    return columns


def _write_session(root: Path, subject: SimulatedSubject, session: SimulatedSession) -> Path:
    folder = root / f"sub-{subject.subject}" / f"ses-{session.session}" / "func"
    run = f"sub-{subject.subject}_ses-{session.session}_task-rest"
    stem = f"{run}_space-{session.space.name}_res-{session.space.resolution:.0f}"
    columns = confounds_table(session)
    table = folder / f"{run}_desc-confounds_timeseries.tsv"
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    write_rows(table, tuple(columns), (dict(zip(columns, row, strict=True)) for row in rows))
    write_json(table.with_suffix(".json"), {name: {"Method": "Mean"} for name in _TISSUE})
    resolution = {"Resolution": {f"{session.space.resolution:.0f}": f"{session.space.resolution:.0f} mm"}}
    _write_volume(folder / f"{stem}_desc-brain_mask.nii.gz", np.ones(len(session.space), np.uint8), session.space)
    write_json(folder / f"{stem}_desc-brain_mask.json", {"Type": "Brain", **resolution})
    image = folder / f"{stem}_desc-preproc_bold.nii.gz"
    about = {"RepetitionTime": session.tr, "TaskName": "rest", "SkullStripped": True, **resolution}
    write_json(folder / f"{stem}_desc-preproc_bold.json", about)
    # Scaled 16-bit integers, as from a scanner: the step is below a hundredth of a voxel's sd.
    scale = float(np.abs(session.y).max()) / _INT16
    stored = np.round(session.y / np.float32(scale)).astype(np.int16)
    _write_volume(image, stored, session.space, scale=scale, tr=session.tr)
    return image


def _write_group(root: Path, config: SimulateConfig) -> None:
    group = group_truth(config.resolution, config.parcels, config.seed)
    _write_volume(root / "group_dseg.nii.gz", (group.labels + 1).astype(np.int16), group.space)
    rows = [{"index": k + 1, "name": f"{'LR'[k >= config.parcels // 2]}_{k + 1:03d}"} for k in range(config.parcels)]
    write_rows(root / "group_dseg.tsv", ("index", "name"), rows)


def _write_truth(path: Path, subject: SimulatedSubject, seed: int) -> None:
    disease = subject.disease
    with atomic_path(path) as part:
        np.savez_compressed(
            part,
            labels=subject.labels,
            group_labels=subject.group_labels,
            ijk=_grid(subject.space).ijk,
            modules=subject.modules,
            coupling=subject.coupling,
            true_fc=subject.true_fc,
            planted=disease.planted,
            affected=disease.affected,
            fc_change=disease.fc_change,
            nodes=disease.nodes,
            disease=disease.kind,
            severity=disease.severity,
            patient=subject.patient,
            age=subject.age,
            site=subject.site,
            hrf_delay=subject.hrf_delay,
            subject=subject.subject,
            index=subject.index,
            seed=seed,
        )


def _grid(space: Space) -> Grid:
    if space.grid is None:
        raise ValueError(f"an image requires a grid, got a space of kind {space.kind!r}")
    return space.grid


def _write_volume(path: Path, values: np.ndarray, space: Space, *, scale: float | None = None, tr: float | None = None) -> None:
    """Write values of the locations, `[V]` or `[V, T]`, as an image that is 0 elsewhere."""
    import nibabel

    grid = _grid(space)
    data = np.zeros((*grid.shape, *values.shape[1:]), values.dtype, order="F")  # memory order of NIfTI
    at = tuple(grid.ijk.T)
    if values.ndim == 1:
        data[at] = values
    else:
        for frame in range(values.shape[1]):  # one contiguous volume at a time
            data[..., frame][at] = values[:, frame]
    image = nibabel.Nifti1Image(data, grid.affine)
    image.set_qform(grid.affine, "mni")
    image.set_sform(grid.affine, "mni")
    image.header.set_xyzt_units("mm", "sec")
    if tr is not None:
        image.header.set_zooms((*image.header.get_zooms()[:3], tr))
    if scale is not None:
        image.header.set_slope_inter(scale, 0)
    write_image(image, path)
