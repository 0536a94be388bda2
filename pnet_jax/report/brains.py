"""Figures of the brain: parcels and confidence on anatomy, what moved, the connectome inside a glass brain."""

from __future__ import annotations

import functools
import warnings

import numpy as np

from pnet_jax.network import Network
from pnet_jax.outputs import images
from pnet_jax.outputs.bids import parcel_centroids
from pnet_jax.report.style import ALARM, PERSONAL, SOFT, as_png, new_figure
from pnet_jax.report.words import has_confidence
from pnet_jax.space import LEFT, Space

KEPT = "#cbd5e1"
LEVELS = 64  # colours of the confidence map
EDGES_SHOWN = 150
MAX_MARKERS = 1500  # more locations than this are drawn as a cloud
CHANGED = "Locations that changed their parcel"


def parcellation_figure(network: Network) -> str:
    """The parcels: slices through anatomy on a grid, views from outside elsewhere."""
    if not _on_grid(network):
        return _outside_views(network, {"": _colored(network, network.labels)})
    figure = new_figure(4.45)
    image, colors = _parcels(network, network.labels), images.parcel_colors(network.ids)
    _twelve_slices(figure, 1.0, _background(network), _inside_mm(network), image, colors)
    return as_png(figure)


def confidence_figure(network: Network) -> str | None:
    """Probability of each location's own label, in the views of `parcellation_figure`; None where probabilities were not saved."""
    if not has_confidence(network):
        return None
    shares = np.where(network.labels >= 0, network.confidence, np.nan)
    if not _on_grid(network):
        return points_figure(network.space, shares, "viridis", "probability")
    image = images.location_image(network, share_levels(shares))
    return slices_figure(image, _background(network), _inside_mm(network), "viridis", "probability")


def slices_figure(levels, background, mm: np.ndarray, cmap: str, title: str) -> str:
    """Draw a map of shares on twelve slices, with its colour scale.

    Args:
      levels: NIfTI image of `share_levels`, 0 outside.
      background: image to draw on, or None.
      mm: positions of the locations over which the slices are spread, `[n, 3]`.
      cmap: name of a colour map.
      title: title of the colour scale.
    """
    figure = new_figure(4.45)
    _twelve_slices(figure, 0.94, background, mm, levels, _level_colors(cmap))
    _share_bar(figure, cmap, title)
    return as_png(figure)


def points_figure(space: Space, shares: np.ndarray, cmap: str, title: str) -> str:
    """Draw a map of shares `[V]` seen from outside, with its colour scale; NaN is left out."""
    colors = np.vstack([np.full((1, 3), np.nan), _level_colors(cmap)])[share_levels(shares)]
    figure = _views(space, {"": colors}, width=0.94)
    _share_bar(figure, cmap, title)
    return as_png(figure)


def share_levels(shares: np.ndarray) -> np.ndarray:
    """Return the colour level of each share 0…1, int32, from 1; 0 for NaN."""
    levels = 1 + np.minimum((np.nan_to_num(shares) * LEVELS).astype(np.int32), LEVELS - 1)
    return np.where(np.isfinite(shares), levels, 0).astype(np.int32)


def _level_colors(cmap):
    import matplotlib

    return matplotlib.colormaps[cmap](np.linspace(0, 1, LEVELS))[:, :3]


def _share_bar(figure, cmap, title):
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    colors = ListedColormap(_level_colors(cmap))
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), colors), cax=figure.add_axes((0.955, 0.2, 0.01, 0.6)))
    bar.outline.set_visible(False)
    bar.ax.set_title(title, loc="center", fontsize=8, weight="normal")
    bar.ax.tick_params(labelsize=7, length=2)


def change_figure(network: Network) -> str | None:
    """Start and result side by side, and where a location's parcel changed: confidently or doubtfully, where that is known.

    None where the start is returned.
    """
    if network.qc.selection.decision == "atlas":
        return None
    mark, names = _changes(network)
    title = network.start.removeprefix("the ").capitalize()
    palette = np.array([_rgb(color) for color in names.values()])
    if not _on_grid(network):
        changed = np.where((mark > 0)[:, None], palette[np.maximum(mark, 1) - 1], np.nan)
        before, after = _colored(network, network.atlas_labels), _colored(network, network.labels)
        figure = _views(network.space, {title: before, "Personalised": after, CHANGED: changed})
        _legend(figure, 0.29, 0.327, names)
        return as_png(figure)
    figure = new_figure(7.4)
    background, colors, cuts = _background(network), images.parcel_colors(network.ids), _cuts(_inside_mm(network), "z", 6)
    for column, (said, labels) in enumerate({title: network.atlas_labels, "Personalised": network.labels}.items()):
        left = 0.51 * column
        figure.text(left + 0.005, 0.995, said, weight="bold", va="top", size=10)
        for row in range(2):
            place = (left, 0.69 - 0.32 * row, 0.49, 0.28)
            _slices(figure, place, _parcels(network, labels), background, "z", cuts[3 * row : 3 * row + 3], colors)
    figure.text(0.005, 0.325, CHANGED, weight="bold", va="top", size=10)
    _legend(figure, 0.29, 0.325, names)
    _slices(figure, (0.0, 0.025, 1.0, 0.265), images.location_image(network, mark), background, "z", cuts, palette)
    return as_png(figure)


def _changes(network):
    """What became of each location, as numbers from 1 (0 outside), and the name and colour of each number."""
    moved = (network.labels != network.atlas_labels) & (network.labels >= 0) & (network.atlas_labels >= 0)
    mark = np.where(moved, 2, (network.labels >= 0) | (network.atlas_labels >= 0)).astype(np.int16)
    if network.qc.calibration is None or not has_confidence(network):
        return mark, {f"as in {network.start}": KEPT, "changed": ALARM}
    mark[moved & (network.confidence < 0.5)] = 3
    return mark, {
        f"as in {network.start}": KEPT,
        "changed, replication probability ≥ 50 %": PERSONAL,
        "changed, replication probability < 50 %": ALARM,
    }


def _legend(figure, x, y, names):
    for name, color in names.items():
        figure.text(x, y, "■ ", color="#94a3b8" if color == KEPT else color, va="top")
        figure.text(x + 0.014, y, name, color=SOFT, va="top")
        x += 0.03 + 0.0064 * len(name)


def glass_figure(network: Network, measure: str) -> str:
    """The strongest edges between parcel centroids inside a transparent brain; arrows where they have a direction."""
    from nilearn import plotting

    centre = parcel_centroids(network)
    present = np.isfinite(centre).all(1)
    matrix = np.nan_to_num(network.edges[measure][np.ix_(present, present)].astype(float), posinf=0, neginf=0)
    directed = not np.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-5)
    matrix = matrix.T if directed else (matrix + matrix.T) / 2  # nilearn's rows are where an arrow begins, ours where it ends
    np.fill_diagonal(matrix, 0)
    weights = np.sort(np.abs(matrix[~np.eye(len(matrix), dtype=bool) if directed else np.triu_indices(len(matrix), 1)]))[::-1]
    weakest = weights[min(EDGES_SHOWN, len(weights)) - 1] if len(weights) else 0
    shown = np.where((np.abs(matrix) >= weakest) & (matrix != 0), matrix, 0)
    degree = ((shown != 0) | (shown.T != 0)).sum(1)
    figure = new_figure(3.1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*adjacency_matrix.* is not symmetric")  # it need not be
        plotting.plot_connectome(
            shown,
            centre[present],
            figure=figure,
            axes=(0, 0, 0.93, 1),
            display_mode="lyrz",
            node_size=4 + 5 * np.sqrt(degree),
            node_color=[tuple(color) for color in images.parcel_colors(network.ids)[present]],
            edge_cmap="RdBu_r",
            edge_vmin=-np.abs(shown).max() if shown.any() else -1,
            edge_vmax=np.abs(shown).max() if shown.any() else 1,
            edge_kwargs={"linewidth": 1.1, "alpha": 0.85},
            colorbar=False,
        )
    _edge_bar(figure, float(np.abs(shown).max()) if shown.any() else 1.0, measure)
    return as_png(figure)


def _edge_bar(figure, limit, measure):
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(ScalarMappable(Normalize(-limit, limit), "RdBu_r"), cax=figure.add_axes((0.95, 0.2, 0.009, 0.56)))
    bar.outline.set_visible(False)
    bar.ax.set_title(measure, loc="center", fontsize=8, weight="normal")
    bar.ax.tick_params(labelsize=7, length=2)


def _twelve_slices(figure, width, background, mm, image, colors):
    _slices(figure, (0.0, 0.52, width, 0.48), image, background, "z", _cuts(mm, "z", 6), colors)
    _slices(figure, (0.0, 0.04, width / 2, 0.43), image, background, "y", _cuts(mm, "y", 3, 0.15), colors)
    _slices(figure, (width / 2, 0.04, width / 2, 0.43), image, background, "x", _cuts(mm, "x", 3, 0.15), colors)


def _slices(figure, place, image, background, axis, cuts, colors):
    from matplotlib.colors import ListedColormap
    from matplotlib.transforms import blended_transform_factory
    from nilearn import plotting

    # The last colour stands in twice, because a scale from 1 to 1 has no width.
    colors = np.vstack([colors, colors[-1:]])
    display = plotting.plot_roi(
        image,
        bg_img=background,
        figure=figure,
        axes=place,
        display_mode=axis,
        cut_coords=cuts,
        cmap=ListedColormap(colors),
        vmin=1,
        vmax=len(colors),
        alpha=0.9,
        colorbar=False,
        black_bg=False,
        annotate=False,
        draw_cross=False,
        linewidths=0,
    )
    for number, (position, cut) in enumerate(display.axes.items()):
        below = blended_transform_factory(cut.ax.transAxes, figure.transFigure)  # one line of text under slices of unequal height
        figure.text(0.5, place[1] - 0.004, f"{axis} = {float(position):.0f}", transform=below, ha="center", va="top", color=SOFT, size=8)
        if axis != "x" and number == 0:
            for where, side in ((0.06, "L"), (0.94, "R")):
                cut.ax.text(where, 0.94, side, transform=cut.ax.transAxes, ha="center", va="top", color=SOFT, size=8)


@functools.lru_cache(maxsize=1)
def template():
    """Load MNI152 at 2 mm, the background for scans in that space."""
    from nilearn.datasets import load_mni152_template

    return load_mni152_template(resolution=2)


def _background(network):
    """MNI152 where the scan is in that space, else its own mean image, else nothing."""
    if network.space.name.startswith("MNI"):
        return template()
    if network.mean is None:
        return None
    from nilearn.image import resample_img

    image = images.location_image(network, np.nan_to_num(np.asarray(network.mean, np.float32)))
    # Slices through an oblique grid would be interpolated by splines, which ring at the mask's edge.
    return resample_img(image, np.diag([network.space.resolution] * 3), interpolation="linear", copy_header=True, force_resample=True)


def _parcels(network, labels):
    return images.location_image(network, (labels + 1).astype(np.int32))


def _inside_mm(network):
    """Return the position of every location that has a parcel, in mm of its image, [n, 3]."""
    grid = network.space.grid
    inside = (network.labels >= 0) | (network.atlas_labels >= 0)
    return grid.ijk[inside] @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def _cuts(mm, axis, count, margin=0.07):
    """Return slice positions in mm, spread over the parcels except for a margin at either end."""
    along = mm[:, "xyz".index(axis)]
    low, high = np.percentile(along, (100 * margin, 100 - 100 * margin)) if len(along) else (-40, 60)
    return np.round(np.linspace(low, high, count)).tolist()


def _on_grid(network):
    return network.space.grid is not None and network.space.grid.brain_models is None


def _outside_views(network, colors_by_title):
    return as_png(_views(network.space, colors_by_title))


def _views(space, colors_by_title, width=1.0):
    rows = len(colors_by_title)
    figure = new_figure(2.6 * rows)
    for row, (title, colors) in enumerate(colors_by_title.items()):
        bottom, height = 1 - (row + 0.98) / rows, 0.88 / rows
        if len(space) <= MAX_MARKERS:
            _markers(figure, (0.04 * width, bottom, 0.92 * width, height), space.xyz, colors)
        else:
            _cloud(figure, bottom, height, space, colors, width)
        figure.text(0.005, 1 - (row + 0.02) / rows, title, weight="bold", va="top", size=10)
    return figure


def _markers(figure, place, xyz, colors):
    from nilearn import plotting

    seen = np.isfinite(colors[:, 0])
    nothing = np.zeros((int(seen.sum()),) * 2)
    shown = [tuple(color) for color in colors[seen]]
    options = {"display_mode": "lyrz", "node_color": shown, "node_size": 22, "colorbar": False}
    plotting.plot_connectome(nothing, xyz[seen], figure=figure, axes=place, **options)


def _cloud(figure, bottom, height, space, colors, width):
    """Every location as a dot large enough to close the surface, seen from the left, from above and from the right."""
    x, y, z = space.xyz.T.astype(float)
    left = space.hemisphere == LEFT
    views = (np.where(left, -x, np.nan), -y, z), (z, x, y), (np.where(left, np.nan, x), y, z)
    for column, (depth, across, up) in enumerate(views):
        axes = figure.add_axes(((0.03 + 0.32 * column) * width, bottom, 0.30 * width, height))
        seen = np.flatnonzero(np.isfinite(colors[:, 0]) & np.isfinite(depth))
        seen = seen[np.argsort(depth[seen], kind="stable")]  # what is nearest is drawn last
        axes.scatter(across[seen], up[seen], c=colors[seen], s=np.clip(90000 / max(len(seen), 1), 1.5, 12), linewidths=0)
        axes.set_aspect("equal")
        axes.axis("off")


def _colored(network, labels):
    colors = np.full((len(labels), 3), np.nan)
    colors[labels >= 0] = images.parcel_colors(network.ids)[labels[labels >= 0]]
    return colors


def _rgb(color):
    from matplotlib.colors import to_rgb

    return to_rgb(color)
