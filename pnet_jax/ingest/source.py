"""ScanSource: the files of one recording, before they are opened."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pnet_jax.ingest import gifti, naming, timing

if TYPE_CHECKING:
    from pnet_jax.config import CleaningConfig
    from pnet_jax.scan import Scan

VOLUMES, DENSE = (".nii.gz", ".nii"), (".dtseries.nii",)
GIFTI = (naming.GIFTI_SERIES,)


@dataclasses.dataclass(frozen=True)
class ScanSource:
    """One recording to load.

    Attributes:
      bold: File of the recording (of the left hemisphere for a GIFTI pair), or the folder of a subject without a recording.
      mask: Brain mask, or None.
      confounds: Table of confounds, or None.
      subject: Label without `sub-`.
      entities: BIDS entities other than the subject.
      problem: Reason why the recording cannot be read, if known before it is opened (another space, a missing file); otherwise empty.
    """

    bold: Path
    mask: Path | None = None
    confounds: Path | None = None
    subject: str = "unknown"
    entities: dict[str, str] = dataclasses.field(default_factory=dict)
    problem: str = ""

    @property
    def files(self) -> tuple[Path | None, ...]:
        """Return the files from which the scan is read."""
        about = None if self.confounds is None else self.confounds.with_suffix(".json")  # metadata of the CompCor components
        return (self.bold, *self._partner, self.mask, self.confounds, about, *timing.sidecars(self.bold))

    @property
    def _partner(self) -> tuple[Path, ...]:
        """Return the file of the other hemisphere of a GIFTI recording."""
        pair = gifti.pair_of(self.bold) if naming.split_name(self.bold)[1] in GIFTI else None
        return () if pair is None else tuple(file for file in pair.values() if file != self.bold)

    def load(self, cleaning: CleaningConfig, **options: Any) -> Scan:
        """Read and clean the recording; `options` are further arguments of `load_scan`."""
        from pnet_jax.ingest.load import load_scan

        entities = {"sub": self.subject, **self.entities}
        return load_scan(self.bold, mask=self.mask, confounds=self.confounds, entities=entities, cleaning=cleaning, **options)

    @property
    def label(self) -> str:
        """Return the label of the Scan, e.g. `sub-01_ses-1_task-rest_run-1`."""
        return naming.scan_label(self.subject, self.entities)


def source_of(path: Path, **given: str) -> ScanSource:
    """Combine a recording with the mask and confounds beside it; `given` entities take precedence over those of its name."""
    subject, entities = naming.identity(path, given)
    pair = gifti.pair_of(path) if naming.split_name(path)[1] in GIFTI else None
    if pair is not None and pair["L"].exists():
        path = pair["L"]
    bids = naming.is_bids(path) and naming.suffix_of(path) == "bold"
    beside = bids and entities.get("desc", "preproc") != "denoised"
    return ScanSource(
        path,
        naming.mask_beside(path) if bids and naming.split_name(path)[1] in VOLUMES else None,
        naming.confounds_beside(path) if beside else None,
        subject,
        entities,
    )
