"""Models on disk.

Besides the arrays of the encoder and its atlases, the folder contains the model card, the format version and the digest of the weights as
metadata. The complete model is rebuilt from it.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import pathlib
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from pnet_jax import parallel
from pnet_jax.checkpoint.arrays import FORMAT, attempt, read, read_metadata, write
from pnet_jax.config import PerceiverConfig, nearest
from pnet_jax.encoder.linear import LinearEncoder
from pnet_jax.encoder.model import Encoder, Model
from pnet_jax.errors import SettingsError
from pnet_jax.parcellation.atlas import Atlas

if TYPE_CHECKING:
    from pnet_jax.encoder.perceiver import PerceiverEncoder

RUN_MODEL = "model"  # subfolder of a training run that contains the model
_SHIPPED = "checkpoints"


def save_model(model: Model, folder: str | pathlib.Path, *, replace: bool = False) -> pathlib.Path:
    """Write a model to a new folder, under a temporary name until it is complete. In multi-process runs, all processes must call it.

    Args:
      model: Model to write.
      folder: Folder to create.
      replace: Whether to replace an existing checkpoint once the new one is complete.

    Raises:
      SettingsError: If the folder exists and `replace` is False.
      OSError: If the folder cannot be created or the disk is full; no part of the checkpoint is left.
    """
    folder = pathlib.Path(folder).absolute()
    there = folder.exists()
    parallel.meet("saving a model")  # every process has checked
    if there and not replace:
        raise SettingsError(f"checkpoint {folder} already exists: expected a new folder")
    atlases = {str(k): _atlas_arrays(atlas) for k, atlas in model.atlases.items()}
    texts = {str(k): {"names": list(p.names), "source": p.source, "space": p.space} for k, p in model.atlases.items()}
    metadata: dict[str, Any] = {"format": FORMAT, "name": model.name, "digest": model.digest, "card": model.card, "priors": texts}
    encoder, config = _encoder_arrays(model.encoder)
    if config is not None:
        metadata["perceiver"] = dataclasses.asdict(config)
    write(folder, {"encoder": encoder, "priors": atlases}, metadata)
    return folder


def load_model(name_or_folder: str | pathlib.Path) -> Model:
    """Load a model by name (`list_models()`) or from a folder.

    Raises:
      SettingsError: If there is no such model (the message suggests the nearest name) or folder, one of its files was changed, or it was
          written by another version.
    """
    folder = _find(name_or_folder)
    where = f"checkpoint {folder}"
    metadata = read_metadata(folder, where)
    if "format" not in metadata:
        raise SettingsError(f"{where} was not written by pnet_jax: it has no format number")
    if metadata["format"] != FORMAT:
        raise SettingsError(
            f"{where} has format {metadata['format']}, expected {FORMAT}; use the version of pnet_jax that wrote it, or pre-train again"
        )
    if "kind" in metadata:
        raise SettingsError(f"{where}: expected a model, found {metadata['kind']}")
    arrays = read(folder, where)

    def rebuild() -> tuple[Model, str]:
        encoder = _encoder(arrays["encoder"], metadata.get("perceiver"))
        atlases = {int(k): _atlas(values, metadata["priors"][k]) for k, values in arrays["priors"].items()}
        return Model(metadata["name"], encoder, atlases, metadata["card"]), metadata["digest"]

    model, expected = attempt(rebuild, f"{where} is damaged: it cannot be read")
    if not isinstance(model.encoder, LinearEncoder):
        _check_shapes(model.encoder, folder)
    if model.digest != expected:
        raise SettingsError(f"{where} is damaged: expected weights digest {expected}, found {model.digest}")
    return model


def list_models() -> list[str]:
    """List the models that ship with the package."""
    shipped = pathlib.Path(str(importlib.resources.files("pnet_jax"))) / _SHIPPED
    return sorted(path.name for path in shipped.iterdir() if path.is_dir()) if shipped.is_dir() else []


def _find(name_or_folder: str | pathlib.Path) -> pathlib.Path:
    folder = pathlib.Path(name_or_folder)
    if str(name_or_folder) in list_models():
        return pathlib.Path(str(importlib.resources.files("pnet_jax"))) / _SHIPPED / str(name_or_folder)
    if folder.is_dir():
        exported = folder / RUN_MODEL  # the folder of a training run contains its model
        return (exported if exported.is_dir() else folder).absolute()
    hint = nearest(str(name_or_folder), list_models())
    raise SettingsError(f"checkpoint {name_or_folder} is missing: expected a folder or one of {list_models()}{hint}")


def _encoder_arrays(encoder: Encoder) -> tuple[dict[str, Any], PerceiverConfig | None]:
    if isinstance(encoder, LinearEncoder):
        return dict(encoder._asdict()), None
    return {"linear": dict(encoder.linear._asdict()), "params": encoder.params}, encoder.config


def _encoder(arrays: dict[str, Any], config: dict[str, Any] | None) -> Encoder:
    if config is None:
        return LinearEncoder(**arrays)
    from pnet_jax.encoder.perceiver import PerceiverEncoder  # imports flax, which linear checkpoints do not need

    return PerceiverEncoder(LinearEncoder(**arrays["linear"]), arrays["params"], PerceiverConfig(**config))


def _check_shapes(encoder: PerceiverEncoder, folder: pathlib.Path) -> None:
    """Raise an error if the shapes of the weights do not match the configuration."""
    from pnet_jax.encoder.perceiver import init

    def shapes(params: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(params)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}

    try:
        expected = shapes(jax.eval_shape(lambda: init(encoder.linear, encoder.config, jax.random.key(0)).params))
    except ValueError as error:
        raise SettingsError(f"checkpoint {folder}: configuration and weights disagree: {error}") from error
    found = shapes(encoder.params)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise SettingsError(
                f"checkpoint {folder}: configuration and weights disagree: {name} has shape {found.get(name, 'none')}, "
                f"expected {expected.get(name, 'none')}"
            )


def _atlas_arrays(atlas: Atlas) -> dict[str, np.ndarray]:
    return {
        "xyz": atlas.xyz.astype(np.float32),
        "labels": atlas.labels.astype(np.int32),
        "hemisphere": atlas.hemisphere.astype(np.int32),
        "ids": atlas.ids.astype(np.int32),
        "resolution": np.float32(atlas.resolution).reshape(1),
    }


def _atlas(arrays: dict[str, Any], texts: dict[str, Any]) -> Atlas:
    return Atlas(
        xyz=np.asarray(arrays["xyz"]),
        labels=np.asarray(arrays["labels"]),
        hemisphere=np.asarray(arrays["hemisphere"]).astype(np.int8),
        ids=np.asarray(arrays["ids"]),
        names=tuple(texts["names"]),
        resolution=float(np.asarray(arrays["resolution"])[0]),
        source=texts["source"],
        space=texts["space"],
    )
