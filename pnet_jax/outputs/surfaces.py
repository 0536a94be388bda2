"""A Network's parcels on the meshes of the cortex: GIFTI labels of each hemisphere, and nilearn's SurfaceImage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from pnet_jax.ingest.surfaces import CORTICES, SurfaceInput, mesh_of, read_surfaces
from pnet_jax.network import Network
from pnet_jax.outputs.images import brain_models, label_table
from pnet_jax.space import Mesh, Space

if TYPE_CHECKING:
    import nibabel
    from nilearn.surface import SurfaceImage

NAMES = {"L": ("left", "CortexLeft"), "R": ("right", "CortexRight")}


def is_surface_only(space: Space) -> bool:
    """Whether all locations are vertices of the cortex, so that two GIFTI files can hold them."""
    return space.kind == "cifti" and set(space.structures) <= set(CORTICES.values())


def label_gifti(network: Network) -> dict[str, nibabel.GiftiImage]:
    """The parcellation as GIFTI labels, by hemisphere (`"L"`, `"R"`).

    Args:
      network: a result on surfaces.

    Returns:
      An image for each hemisphere that the scan has: ids of the atlas at every vertex of the mesh, int32, 0 (`???`) where the scan has
      none, with names and colours, and AnatomicalStructurePrimary, as Workbench reads and writes them.

    Raises:
      ValueError: the scan has no vertices.
    """
    import nibabel

    images = {}
    for side, values in vertex_ids(network).items():
        meta = nibabel.gifti.GiftiMetaData({"AnatomicalStructurePrimary": NAMES[side][1]})
        array = nibabel.gifti.GiftiDataArray(
            values, "NIFTI_INTENT_LABEL", "NIFTI_TYPE_INT32", meta=nibabel.gifti.GiftiMetaData({"Name": "pnet"})
        )
        table = nibabel.gifti.GiftiLabelTable()
        for key, (name, color) in label_table(network).items():
            label: Any = nibabel.gifti.GiftiLabel(key, *color)
            label.label = name
            table.labels.append(label)
        images[side] = nibabel.GiftiImage(meta=meta, labeltable=table, darrays=[array])
    return images


def vertex_ids(network: Network) -> dict[str, Int[np.ndarray, " n"]]:
    """The atlas's id at every vertex of each hemisphere's mesh, 0 where there is none, by `"L"` and `"R"`.

    Raises:
      ValueError: the scan has no vertices.
    """
    models: Any = brain_models(network.space)
    ids = np.where(network.labels >= 0, network.ids[network.labels], 0).astype(np.int32)
    found = {}
    for side, structure in CORTICES.items():
        if structure in models.nvertices:
            found[side] = np.zeros(models.nvertices[structure], np.int32)
            own = models.name == structure
            found[side][models.vertex[own]] = ids[own]
    if not found:
        raise ValueError(f"{network!r}: expected a scan with vertices of the cortex, found {', '.join(network.space.structures)}")
    return found


def labels_surface(network: Network, surfaces: SurfaceInput = None) -> SurfaceImage:
    """The parcellation as nilearn's SurfaceImage; values are the atlas's ids, 0 is outside.

    Args:
      network: a result on surfaces.
      surfaces: left and right GIFTI meshes in MNI mm. None takes the scan's own; a result that was read from files has none, and takes
        the template's where these can be had.

    Raises:
      ValueError: the scan has no vertices, or the meshes are not known.

    Example:
      >>> from nilearn.plotting import plot_surf_roi  # doctest: +SKIP
      >>> plot_surf_roi(roi_map=labels_surface(network), hemi="left")  # doctest: +SKIP
    """
    from nilearn.surface import InMemoryMesh, PolyMesh, SurfaceImage

    values, parts = vertex_ids(network), {}
    given = read_surfaces(surfaces, "surfaces")
    own = {} if surfaces is not None or network.space.mesh is None else _halves(network.space)
    for side, ids in values.items():
        if side in own:
            xyz, faces = own[side].xyz, own[side].faces
        else:
            mesh = mesh_of(CORTICES[side], given, len(ids), network.space.name, repr(network))
            xyz, faces = mesh.xyz.astype(np.float32), mesh.faces.astype(np.int32)
        parts[NAMES[side][0]] = InMemoryMesh(xyz, faces)
    return SurfaceImage(PolyMesh(**parts), {NAMES[side][0]: ids for side, ids in values.items()})


def _halves(space: Space) -> dict[str, Mesh]:
    """The meshes of a Space by hemisphere, with vertices counted in each."""
    models: Any = brain_models(space)
    mesh, start, found = space.mesh, 0, {}
    assert mesh is not None
    for structure in dict.fromkeys(models.name[models.surface_mask].tolist()):
        stop = start + models.nvertices[structure]
        own = (mesh.faces >= start).all(1) & (mesh.faces < stop).all(1)
        side = next((side for side, name in CORTICES.items() if name == structure), structure)
        found[side] = Mesh(mesh.xyz[start:stop], mesh.faces[own] - start, mesh.hemisphere[start:stop], np.zeros(0, np.int32))
        start = stop
    return found
