"""Plates: several views of a brain in one image, stored as the index of the location that each pixel shows."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pnet_jax.report.png import png
from pnet_jax.space import LEFT, Space

GAP, FOOT = 0.04, 0.13  # space between slices, and below each row for captions, relative to the row height
ROWS = (("z", 0.07, 6), ("y", 0.15, 3), ("x", 0.15, 3))  # slices along each axis: omitted margin, and number
BACKDROP = 2  # pixels of a map per pixel of the anatomy, which the browser smooths
VIEW_WIDTH = 420  # pixels of each of three views from outside
MARKED = 1500  # largest number of locations drawn as discs of visible size


@dataclasses.dataclass(frozen=True, eq=False)
class Plate:
    """Several views of a brain.

    Attributes:
      pixels: Location that each pixel shows, −1 for none, `[H, W]`, int32.
      captions: Texts with their positions in per cent of width and height, and whether they are below a slice (or name a side).
      backdrop: Anatomy as a `data:` address, scaled to the size of the map; empty if there is none.
    """

    pixels: Int[np.ndarray, "H W"]
    captions: tuple[tuple[float, float, str], ...]
    backdrop: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]

    def draw(self, colours: Float[np.ndarray, "n 3"], values: Int[np.ndarray, " V"]) -> str:
        """Return the map of one value per location as a `data:` address.

        Args:
          colours: RGB in 0…1 for the values 0…n−1, `[n, 3]`.
          values: Value of each location, `[V]`; locations with negative values are not drawn.
        """
        shown = np.where(self.pixels >= 0, values[self.pixels], -1)
        table = np.zeros((len(colours) + 1, 4), np.uint8)
        table[:-1, :3], table[:-1, 3] = np.rint(colours * 255), 255
        return png(table[shown])


@dataclasses.dataclass(frozen=True)
class _Tile:
    """Slice: axis and position in mm, upper left pixel, and whether it is the first along its axis."""

    axis: int
    cut: float
    top: int
    left: int
    first: bool


def slices_plate(volume: Int[np.ndarray, "X Y Z"], affine: Float[np.ndarray, "4 4"], anatomy: Any = None) -> Plate:
    """Draw twelve slices of a volume of location indices: six axial, three coronal and three sagittal.

    Args:
      volume: Index of the location in each voxel, −1 for none, `[X, Y, Z]`.
      affine: Affine from voxel indices to mm.
      anatomy: NIfTI image drawn behind the map, in the same mm space, or None.
    """
    inside = np.argwhere(volume >= 0)
    mm = inside @ affine[:3, :3].T + affine[:3, 3] if len(inside) else np.zeros((1, 3))
    spacing = float(np.cbrt(abs(np.linalg.det(affine[:3, :3]))))
    step = max(spacing / 2, 0.5)
    low, high = mm.min(0), mm.max(0)
    if anatomy is not None:  # the same slices for all scans on a template
        first, last = _bounds(anatomy)
        low, high = np.minimum(low, first), np.maximum(high, last)
    low, high = low - 3, high + 3
    tiles, size, heights, widths = _layout(mm, low, high, step)
    pixels = np.full(size, -1, np.int32)
    inverse = np.linalg.inv(affine)
    for tile in tiles:
        place = _plane(tile, low, high, step) @ inverse[:3, :3].T + inverse[:3, 3]
        found = _nearest(volume, place)
        pixels[tile.top : tile.top + found.shape[0], tile.left : tile.left + found.shape[1]] = found
    captions = [caption for tile in tiles for caption in _captions(tile, size, heights, widths)]
    return Plate(pixels, tuple(captions), _anatomy(anatomy, tiles, size, low, high, step) if anatomy is not None else "")


def _layout(mm, low, high, step):
    """Arrange the slices: axial in the first row, coronal and sagittal in the second, with rows of equal width."""
    across = {axis: tuple(int(np.ceil((high - low)[k] / step / 2)) * 2 for k in _plane_axes(axis)) for axis in range(3)}
    row_heights = (across[2][1], across[0][1])
    gap = [int(GAP * height) // 2 * 2 for height in row_heights]
    wide = [6 * across[2][0] + 5 * gap[0], 3 * (across[1][0] + across[0][0]) + 5 * gap[1]]
    width = max(wide)
    tops = (0, row_heights[0] + int(FOOT * row_heights[0]) // 2 * 2)
    height = tops[1] + row_heights[1] + int(FOOT * row_heights[1]) // 2 * 2
    tiles, lefts = [], [(width - wide[0]) // 4 * 2, (width - wide[1]) // 4 * 2]
    for name, margin, count in ROWS:
        axis, row = "xyz".index(name), 0 if name == "z" else 1
        ends = np.percentile(mm[:, axis], (100 * margin, 100 - 100 * margin))
        for number, cut in enumerate(np.round(np.linspace(*ends, count))):
            tiles.append(_Tile(axis, float(cut), tops[row], lefts[row], number == 0))
            lefts[row] += across[axis][0] + gap[row]
    return tiles, (height, width), {axis: across[axis][1] for axis in across}, {axis: across[axis][0] for axis in across}


def _plane_axes(axis):
    return [(1, 2), (0, 2), (0, 1)][axis]


def _plane(tile, low, high, step):
    """Return the coordinates of each pixel of a slice in mm, `[rows, columns, 3]`; left is on the left."""
    one, two = _plane_axes(tile.axis)
    columns = int(np.ceil((high - low)[one] / step / 2)) * 2
    rows = int(np.ceil((high - low)[two] / step / 2)) * 2
    mm = np.empty((rows, columns, 3))
    mm[..., tile.axis] = tile.cut
    mm[..., one] = low[one] + step * (np.arange(columns) + 0.5)
    mm[..., two] = (low[two] + step * (np.arange(rows) + 0.5))[::-1, None]
    return mm


def _nearest(volume, place):
    index = np.rint(place).astype(int)
    known = ((index >= 0) & (index < volume.shape)).all(-1)
    return np.where(known, volume[tuple(np.moveaxis(np.where(known[..., None], index, 0), -1, 0))], -1)


def _captions(tile, size, heights, widths):
    height, width = size
    centre, below = tile.left + widths[tile.axis] / 2, tile.top + heights[tile.axis]
    yield 100 * centre / width, 100 * (below + 0.02 * heights[tile.axis]) / height, f"{'xyz'[tile.axis]} = {tile.cut:.0f}".replace("-", "−")
    if tile.axis != 0 and tile.first:
        for side, name in ((0.04, "L"), (0.96, "R")):
            yield 100 * (tile.left + side * widths[tile.axis]) / width, 100 * tile.top / height, name


def _bounds(anatomy):
    """Return the lowest and highest coordinates in mm of the content of an image."""
    shown = np.argwhere(np.asarray(anatomy.dataobj) > 0)
    mm = shown @ anatomy.affine[:3, :3].T + anatomy.affine[:3, 3] if len(shown) else np.zeros((1, 3))
    return mm.min(0), mm.max(0)


def _anatomy(anatomy, tiles, size, low, high, step):
    from scipy.ndimage import map_coordinates

    data, inverse = np.asarray(anatomy.dataobj, np.float32), np.linalg.inv(anatomy.affine)
    top = float(np.percentile(data[data > 0], 99)) if (data > 0).any() else 1.0
    grey = np.zeros((size[0] // BACKDROP, size[1] // BACKDROP, 4), np.uint8)
    for tile in tiles:
        place = _plane(tile, low, high, step)
        rows, columns = place.shape[0] // BACKDROP, place.shape[1] // BACKDROP
        place = place.reshape(rows, BACKDROP, columns, BACKDROP, 3).mean((1, 3)) @ inverse[:3, :3].T + inverse[:3, 3]
        value = np.clip(map_coordinates(data, np.moveaxis(place, -1, 0), order=1, cval=0) / top, 0, 1)
        part = grey[tile.top // BACKDROP :, tile.left // BACKDROP :][:rows, :columns]
        part[..., :3] = (44 + 13 * np.round(12 * value))[..., None]  # few greys keep the file small
        part[..., 3] = np.where(value > 0.06, 255, 0)
    return png(grey)


def views_plate(space: Space) -> Plate:
    """Draw every location as a disc, seen from the left, from above and from the right; nearer discs hide those behind."""
    x, y, z = space.xyz.T.astype(float)
    left = space.hemisphere == LEFT
    few = len(space) <= MARKED
    everywhere = np.ones(len(space), bool)
    views = (
        ("left", everywhere if few else left, -x, -y, z),
        ("from above", everywhere, z, x, y),
        ("right", everywhere if few else ~left, x, y, z),
    )
    scale = VIEW_WIDTH / 190  # pixels per mm; a brain is at most 185 mm long
    height = int(210 * scale)
    radius = 5 if few else int(np.clip(np.sqrt(90000 / len(space)), 1, 5))
    pixels = np.full((height, 3 * VIEW_WIDTH), -1, np.int32)
    captions = []
    for column, (name, seen, depth, across, up) in enumerate(views):
        middle = column * VIEW_WIDTH + VIEW_WIDTH // 2
        _discs(pixels, seen, depth, middle + scale * (across - _middle(across)), height / 2 - scale * (up - _middle(up)), radius)
        captions.append((100 * middle / (3 * VIEW_WIDTH), 95.5, name))
    return Plate(pixels, tuple(captions))


def _middle(values):
    return (values.min() + values.max()) / 2 if len(values) else 0.0


def _discs(pixels, seen, depth, columns, rows, radius):
    order = np.flatnonzero(seen)
    order = order[np.argsort(depth[order], kind="stable")]  # the nearest is drawn last
    reach = np.arange(-radius, radius + 1)
    dy, dx = (
        part[np.hypot(*np.meshgrid(reach, reach, indexing="ij")) <= radius + 0.3] for part in np.meshgrid(reach, reach, indexing="ij")
    )
    row = (np.rint(rows[order])[:, None].astype(int) + dy).clip(0, pixels.shape[0] - 1)
    column = (np.rint(columns[order])[:, None].astype(int) + dx).clip(0, pixels.shape[1] - 1)
    # Discs are written in order, so that the nearest one is kept where several overlap.
    pixels[row.ravel(), column.ravel()] = np.repeat(order, len(dx))


@functools.lru_cache(maxsize=1)
def template() -> Any:
    """Load MNI152 at 2 mm, the anatomy for scans in that space."""
    from nilearn.datasets import load_mni152_template

    return load_mni152_template(resolution=2)
