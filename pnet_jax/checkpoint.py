"""Checkpoints on disk: the only file that knows orbax.

A checkpoint is a folder with the arrays (orbax) and, as their metadata, the model card, the format's version and the digest of
the weights. Everything a scan has to go through is rebuilt from it.
"""

from __future__ import annotations

import importlib.resources
import pathlib
from typing import Any

import numpy as np

from pnet_jax.config import nearest
from pnet_jax.encoder.linear import LinearEncoder
from pnet_jax.encoder.model import Model
from pnet_jax.parcellation.prior import Prior

FORMAT = 1
_SHIPPED = "checkpoints"


def save_model(model: Model, folder: str | pathlib.Path) -> pathlib.Path:
    """Writes a model to a new folder; orbax writes to a temporary name and renames.

    Raises:
      ValueError: the folder exists.
    """
    from orbax.checkpoint import v1 as ocp

    folder = pathlib.Path(folder).absolute()
    if folder.exists():
        raise ValueError(f"checkpoint {folder} exists already: expected a new folder")
    priors = {str(k): _prior_arrays(prior) for k, prior in model.priors.items()}
    texts = {str(k): {"names": list(p.names), "source": p.source, "space": p.space} for k, p in model.priors.items()}
    metadata: dict[str, Any] = {"format": FORMAT, "name": model.name, "digest": model.digest, "card": model.card, "priors": texts}
    ocp.save(folder, {"encoder": dict(model.encoder._asdict()), "priors": priors}, custom_metadata=metadata)
    return folder


def load_model(name_or_folder: str | pathlib.Path) -> Model:
    """A model by name (`list_models()`) or from a folder.

    Raises:
      ValueError: no such model (the nearest name is given) or folder, a damaged checkpoint, or one of another version.
    """
    from orbax.checkpoint import v1 as ocp

    folder = _find(name_or_folder)
    try:
        metadata = ocp.metadata(folder).custom_metadata
    except Exception as error:
        raise ValueError(f"checkpoint {folder} is damaged or not a checkpoint: {error}") from error
    if not isinstance(metadata, dict) or "format" not in metadata:
        raise ValueError(f"checkpoint {folder} was not written by pnet_jax: it has no format number")
    if metadata["format"] != FORMAT:
        raise ValueError(
            f"checkpoint {folder} has format {metadata['format']}, expected {FORMAT}: use the pnet_jax that wrote it, or pretrain again"
        )
    try:
        arrays = ocp.load(folder)
        encoder = LinearEncoder(**{key: np.asarray(value) for key, value in arrays["encoder"].items()})
        priors = {int(k): _prior(values, metadata["priors"][k]) for k, values in arrays["priors"].items()}
        model, expected = Model(metadata["name"], encoder, priors, metadata["card"]), metadata["digest"]
    except Exception as error:
        raise ValueError(f"checkpoint {folder} is damaged: it cannot be read ({type(error).__name__}: {error})") from error
    if model.digest != expected:
        raise ValueError(f"checkpoint {folder} is damaged: expected weights digest {expected}, found {model.digest}")
    return model


def list_models() -> list[str]:
    """Names of the models that ship with the package."""
    shipped = pathlib.Path(str(importlib.resources.files("pnet_jax"))) / _SHIPPED
    return sorted(path.name for path in shipped.iterdir() if path.is_dir()) if shipped.is_dir() else []


def _find(name_or_folder: str | pathlib.Path) -> pathlib.Path:
    folder = pathlib.Path(name_or_folder)
    if str(name_or_folder) in list_models():
        return pathlib.Path(str(importlib.resources.files("pnet_jax"))) / _SHIPPED / str(name_or_folder)
    if folder.is_dir():
        return folder.absolute()
    hint = nearest(str(name_or_folder), list_models())
    raise ValueError(f"checkpoint {name_or_folder} is missing: expected a folder or one of {list_models()}{hint}")


def _prior_arrays(prior: Prior) -> dict[str, np.ndarray]:
    arrays = {
        "xyz": prior.xyz.astype(np.float32),
        "labels": prior.labels.astype(np.int32),
        "hemisphere": prior.hemisphere.astype(np.int32),
        "ids": prior.ids.astype(np.int32),
        "resolution": np.float32(prior.resolution).reshape(1),
    }
    return arrays if prior.embedding is None else arrays | {"embedding": prior.embedding}


def _prior(arrays: dict[str, Any], texts: dict[str, Any]) -> Prior:
    return Prior(
        xyz=np.asarray(arrays["xyz"]),
        labels=np.asarray(arrays["labels"]),
        hemisphere=np.asarray(arrays["hemisphere"]).astype(np.int8),
        ids=np.asarray(arrays["ids"]),
        names=tuple(texts["names"]),
        resolution=float(np.asarray(arrays["resolution"])[0]),
        source=texts["source"],
        space=texts["space"],
        embedding=np.asarray(arrays["embedding"]) if "embedding" in arrays else None,
    )
