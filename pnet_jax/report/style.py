"""How figures look, and how they become part of a page."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT, GRID, ABSENT = "#1f2937", "#6b7280", "#e5e7eb", "#9ca3af"
PERSONAL, ATLAS, DATA_FREE, NULL, ALARM = "#0f766e", "#475569", "#8b95a5", "#b6bec9", "#d9480f"
BETAS = ("#94d2bd", "#2a9d8f", "#0f766e", "#134e4a", "#0b2e2c")
WIDTH, DPI = 10.4, 125  # inches and dots an inch: about 1300 pixels, sharp on a page of 1040

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Figures drawn inside look alike; the user's own matplotlib settings are as before afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(height: float, **options: Any) -> Figure:
    """Empty figure of the page's width, `height` in inches. It belongs to no window, so no backend and no display are needed."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white", **options)


def as_png(figure: Figure) -> str:
    """The figure as a `data:` address that an `<img>` shows without any other file."""
    target = io.BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode("ascii")
