"""Encoders of pnet_jax as Brainmarks models: `pnet_linear`, `pnet_small`, and `pnet` for any checkpoint.

Brainmarks finds this file by its namespace package: there is no `__init__.py` beside it or above it, up to `src`.
The encoders are frozen and run in JAX; tensors pass through NumPy. JAX is used only in `forward`, that is in the main
process, and not in the worker processes that Brainmarks forks to read data.
"""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np
import torch
from brainmarks.models.base import Embeddings, ModelWrapper
from brainmarks.models.registry import register_model

from pnet_jax.checkpoint import load_model
from pnet_jax.encoder.model import components
from pnet_jax.encoder.tokens import Observed, bucketed, observe
from pnet_jax.parcellation.atlas import on_space
from pnet_jax.scan import make_scan
from pnet_jax.space import Space, grid_space, point_space

PARCELS = 400  # tokens of a volume


class PnetWrapper(ModelWrapper):
    """Frozen encoder of pnet_jax.

    Embeddings of a sample, from the components x `[V, D]` of its locations on the axes that all scans share:

    - `patch`: mean component of each token, `[L, D]`. A token is a region of the space, or for a volume one of the 400
      parcels of the checkpoint's atlas.
    - `reg`: the same values as one vector, `[1, L · D]`, for classifiers that average tokens.
    - `cls`: upper triangle of the products Σ x xᵀ of all tokens, scaled to trace 1, `[1, D (D + 1) / 2]`.
    """

    def __init__(self, checkpoint: str, space: str, where: Space) -> None:
        super().__init__()
        self.__space__ = space
        self.encoder_model = load_model(checkpoint)
        self.where = where
        self.token = _tokens(self.encoder_model.atlases, where)

    def extra_repr(self) -> str:
        return f"{self.encoder_model.name!r}, {self.__space__!r}, {len(self.where)} locations, {self.token.max() + 1} tokens"

    def forward(self, batch: dict[str, torch.Tensor]) -> Embeddings:
        names = "bold", "mean", "std", "tr"
        samples = zip(*(batch[name].detach().cpu().float().numpy() for name in names), strict=True)
        patch = np.stack([self._sample(*sample) for sample in samples])
        products = np.einsum("bld,ble->bde", patch, patch)
        products /= np.maximum(np.trace(products, axis1=1, axis2=2), 1e-30)[:, None, None]
        i, j = np.triu_indices(patch.shape[2])
        device = batch["bold"].device
        cls, reg, tokens = (torch.from_numpy(x).to(device) for x in (products[:, None, i, j], patch.reshape(len(patch), 1, -1), patch))
        return Embeddings(cls, reg, tokens)

    def _sample(self, bold: np.ndarray, mean: np.ndarray, std: np.ndarray, tr: np.ndarray) -> np.ndarray:
        """Return the mean components of the tokens of one sample, `[L, D]`."""
        if bold.shape[1] != len(self.where):
            raise ValueError(f"bold has {bold.shape[1]} columns, expected the {len(self.where)} locations of {self.__space__}")
        scan = make_scan(bold.T, self.where, tr=float(tr), mean=mean.ravel(), std=std.ravel())
        encoder = self.encoder_model.encoder
        observed: Observed = bucketed(observe(scan, np.asarray(encoder.references)))
        x = np.asarray(components(encoder, observed))[: len(self.where)]
        here = (self.token >= 0) & scan.valid
        sums = np.zeros((self.token.max() + 1, x.shape[1]), np.float32)
        np.add.at(sums, self.token[here], x[here])
        count = np.bincount(self.token[here], minlength=len(sums)).astype(np.float32)
        return sums / np.maximum(count, 1)[:, None]


def _tokens(priors: dict, where: Space) -> np.ndarray:
    """Return the token of each location, -1 for none, `[V]`."""
    if where.kind == "points":
        return np.arange(len(where))
    return on_space(priors[PARCELS], where).labels


def _space(space: str, coordinates: str | None, mask: str | None) -> Space:
    """Return the locations of a Brainmarks space.

    Args:
      space: `schaefer400`, or `mni` and `mni_cortex`, volumes of 2 mm.
      coordinates: table with the columns x, y, z in MNI mm, one row for each region, in the order of the data.
      mask: image, above 0 inside, in the orientation of the data.

    The regions and masks of Brainmarks are downloaded where no file is given.
    """
    if coordinates is not None:
        with Path(coordinates).open(newline="") as file:
            rows = [[float(row[axis]) for axis in "xyz"] for row in csv.DictReader(file, delimiter="\t")]
        return point_space(np.array(rows), name=space)
    if mask is None and space.startswith("mni"):
        mask = _published_mask(space)
    if mask is not None:
        image = nibabel.load(mask)
        return grid_space(np.asarray(image.dataobj) > 0, image.affine, name=space)
    if space == "schaefer400":
        return point_space(_published_centres(), name=space)
    raise ValueError(f"space {space!r} needs coordinates=TABLE or mask=IMAGE (schaefer400, mni and mni_cortex are known)")


def _published_mask(space: str) -> str:
    from brainmarks import nisc

    if space == "mni_cortex":
        return str(nisc.fetch_schaefer(PARCELS, space="mni"))
    from templateflow import api

    return str(api.get("MNI152NLin6Asym", desc="brain", resolution=2, suffix="mask", extension="nii.gz"))


def _published_centres() -> np.ndarray:
    """Return the centres of the 400 regions in the volume, in the order of their numbers, `[400, 3]`."""
    from brainmarks import nisc
    from scipy.ndimage import center_of_mass

    image = nibabel.load(nisc.fetch_schaefer(PARCELS, space="mni"))
    labels = np.asarray(image.dataobj).astype(int)
    centres = np.array(center_of_mass(labels > 0, labels, np.arange(1, PARCELS + 1)))
    return centres @ image.affine[:3, :3].T + image.affine[:3, 3]


@register_model
def pnet(
    checkpoint: str = "pnet-linear", space: str = "schaefer400", coordinates: str | None = None, mask: str | None = None, **_: object
) -> PnetWrapper:
    """Return the encoder of a checkpoint by name or folder, on a space of Brainmarks."""
    return PnetWrapper(checkpoint, space, _space(space, coordinates, mask))


@register_model
def pnet_linear(**kwargs: object) -> PnetWrapper:
    return pnet(**({"checkpoint": "pnet-linear"} | kwargs))


@register_model
def pnet_small(**kwargs: object) -> PnetWrapper:
    return pnet(**({"checkpoint": "pnet-small"} | kwargs))
