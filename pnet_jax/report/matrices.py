"""Matrices as charts with a colour scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from pnet_jax.report.chart import Chart, Panel, number
from pnet_jax.report.png import gradient, png, ramp

ABSENT = (156, 163, 175)
LONGEST = 14  # longest name beside a matrix, in characters


def matrix_panel(
    title: str,
    matrix: Float[np.ndarray, "n m"],
    *,
    limit: float,
    signed: bool = True,
    names: Sequence[tuple[float, str]] = (),
    edges: Sequence[float] = (),
    x: str = "",
    y: str = "",
) -> Panel:
    """Draw a matrix; NaN is grey.

    Args:
      title: Heading.
      matrix: Values, `[n, m]`.
      limit: Upper end of the colour scale, which is symmetric about 0 if `signed` and starts at 0 otherwise.
      signed: Whether the colours cover negative values.
      names: Positions along both axes, in rows from 0, and their names.
      edges: Positions of lines across the matrix.
      x, y: Titles of the axes.
    """
    rows, columns = matrix.shape
    colours = ramp("diverging" if signed else "probability", 129)
    share = (matrix / limit + 1) / 2 if signed else matrix / limit
    level = np.rint(np.clip(np.nan_to_num(share), 0, 1) * (len(colours) - 1)).astype(int)
    pixels = np.where(np.isfinite(matrix)[..., None], np.rint(colours[level] * 255), ABSENT).astype(np.uint8)
    left = 104 if names and max(len(name) for _, name in names) > 6 else 56
    height = round((460 - 14 - left) * rows / max(columns, 1)) + 50
    chart = Chart(title, (0, columns), (rows, 0), left=left, height=int(np.clip(height, 120, 500)))
    chart.image(png(pixels), (0, columns), (0, rows))
    few = [(place, name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…") for place, name in names]
    chart.x_axis(x, few if sum(len(name) for _, name in few) < 60 else [])
    chart.y_axis(y, few, grid=False)
    for edge in edges:
        chart.rule(x=edge, style="thin")
        chart.rule(y=edge, style="thin")
    low = number(float(f"{-limit:.3g}")) if signed else "0"
    name = "diverging" if signed else "probability"
    bar = (
        f'<p class="colours"><span>{low}</span><i style="background:{gradient(name)}"></i><span>{number(float(f"{limit:.3g}"))}</span></p>'
    )
    return Panel(title, chart.svg() + bar)
