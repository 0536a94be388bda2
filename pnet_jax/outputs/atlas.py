"""Label of the input atlas in file names, and the file that describes which atlas a label refers to in a folder."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pnet_jax.ingest import naming
from pnet_jax.network import Network
from pnet_jax.outputs.tables import write_json

LONGEST = 64  # characters of a label; a file name has 255 for all entities
NAMING = ("atlas", "seg", "scale", "desc")  # entities that distinguish atlases; space and res do not
IMAGES = (".nii", ".nii.gz", ".dlabel.nii", ".label.gii")
SUFFIXES = ("dseg", "probseg", "parc", "parcellation", "labels")


@dataclasses.dataclass(frozen=True)
class AtlasKey:
    """Input atlas of a result.

    Attributes:
      label: Value of the `seg` entity in file names.
      source: File, or how the atlas was made.
      digest: Digest of its parcels; empty if unknown.
      parcels: Number of parcels K.
    """

    label: str
    source: str
    digest: str
    parcels: int


def atlas_label(source: str | Path, parcels: int) -> str:
    """Make the label of an input atlas, with letters and digits only.

    For an image, the label is its file name without space, resolution and suffix; for an atlas that was not read from an image, the first
    word of its source, followed by K.

    Args:
      source: File, or how the atlas was made (`Atlas.source`).
      parcels: Number of parcels K.

    Example:
      >>> atlas_label("atlases/Schaefer200TianS1_res-2_dseg.nii.gz", 216)
      'Schaefer200TianS1'
      >>> atlas_label("tpl-MNI152NLin6Asym_res-02_atlas-Schaefer2018_desc-200Parcels7Networks_dseg.nii.gz", 200)
      'Schaefer2018200Parcels7Networks'
      >>> atlas_label("geometric, k-means on mm, K = 200, seed 0", 200)
      'geometric200'
    """
    stem, extension = naming.split_name(source)
    if extension not in IMAGES:
        return _plain(re.split(r"\W", str(source).strip(), maxsplit=1)[0] or "atlas") + str(parcels)
    parts = stem.split("_")
    parts = parts[:-1] if parts[-1].lower() in SUFFIXES else parts
    kept = []
    for part in parts:
        key, dash, value = part.partition("-")
        is_entity = bool(dash) and re.fullmatch("[a-z]+", key) is not None
        if not is_entity or key in NAMING:
            kept.append(value if is_entity else part)
    return _plain("".join(kept)) or f"atlas{parcels}"


def network_atlas(network: Network) -> AtlasKey:
    """Return the input atlas of a network from its provenance."""
    found: Any = network.provenance.get("atlas")
    about: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    source = str(about.get("source") or "")
    return AtlasKey(atlas_label(source, network.n_parcels), source, str(about.get("digest") or ""), network.n_parcels)


def check_atlas(folder: str | os.PathLike, atlas: AtlasKey) -> None:
    """Refuse a folder in which another atlas has the same label, whose results would be overwritten or mixed with the new ones.

    Raises:
      ValueError: If another atlas has the label; names both.
    """
    file = _file(folder, atlas)
    try:
        found = json.loads(file.read_text("utf-8"))
        digest, source = str(found["Digest"]), found["Source"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if atlas.digest and digest and digest != atlas.digest:
        raise ValueError(
            f"{folder}: two atlases have the label seg-{atlas.label}: the existing results use {source} (digest {digest}), "
            f"the new ones {atlas.source} (digest {atlas.digest}); write to another folder, or rename one of the two atlas files"
        )


def describe_atlas(folder: str | os.PathLike, atlas: AtlasKey) -> None:
    """Write the description of an input atlas, unless the folder already has it or the atlas is unknown.

    Raises:
      OSError: If the file cannot be written; names the file.
    """
    file = _file(folder, atlas)
    if not atlas.digest or file.exists():
        return
    about = f"Input atlas of the results with seg-{atlas.label} in their names; their parcels were initialised from this atlas."
    write_json(file, {"Name": atlas.label, "Description": about, "Source": atlas.source, "Digest": atlas.digest, "Parcels": atlas.parcels})


def _file(folder: str | os.PathLike, atlas: AtlasKey) -> Path:
    # Not `_description`: by the BIDS inheritance principle, it would apply to every result, as atlas-pnet_description.json does.
    return Path(folder) / f"atlas-pnet_seg-{atlas.label}_source.json"


def _plain(text: str) -> str:
    return re.sub("[^a-zA-Z0-9]", "", text)[:LONGEST]
