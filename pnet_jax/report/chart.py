"""Small charts as inline SVG, coloured by the style sheet of the page in light and dark mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from pnet_jax.report.quality import ticks

Values = Sequence[float] | np.ndarray
# Classes of the style sheet that set the colour of a mark.
PERSONAL, ATLAS, DATA_FREE, NULL, ALARM, INK = "c-personal", "c-atlas", "c-free", "c-null", "c-alarm", "c-ink"
SERIES = ("c-personal", "c-alarm", "c-violet", "c-atlas", "c-blue", "c-olive")


class Panel(NamedTuple):
    """Chart with its heading, legend and note.

    Attributes:
      title: Heading.
      body: SVG or HTML; all text in it is escaped.
      keys: Legend: name and class of each kind of mark; may be empty.
      note: Sentence below the chart.
    """

    title: str
    body: str
    keys: tuple[tuple[str, str], ...] = ()
    note: str = ""


class Chart:
    """SVG drawing with two axes; marks are placed in data units.

    Args:
      label: Description for screen readers.
      x, y: Lowest and highest value of each axis, in data units.
      width, height, left: Size, and margin to the left of the y axis, in drawing units.
      x_scale, y_scale: Monotone transforms of the axes, e.g. `numpy.log`.
    """

    def __init__(
        self,
        label: str,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        width: int = 460,
        height: int = 250,
        left: int = 52,
        x_scale: Callable[[float], float] = float,
        y_scale: Callable[[float], float] = float,
    ):
        self.label, self.x_range, self.y_range, self.width, self.height = label, x, y, width, height
        self.box = (left, 10, width - 14, height - 40)  # left, top, right, bottom of the plot
        self._scales = x_scale, y_scale
        self._parts: list[str] = []

    def x(self, value: float) -> float:
        """Return the horizontal position of a value in drawing units."""
        return _place(value, self.x_range, self._scales[0], self.box[0], self.box[2])

    def y(self, value: float) -> float:
        """Return the vertical position of a value in drawing units."""
        return _place(value, self.y_range, self._scales[1], self.box[3], self.box[1])

    def line(self, x: Values, y: Values, kind: str, style: str = "") -> None:
        """Add a line, with gaps where y is not finite; `style` is empty, `dashed` or `thin`."""
        known = np.isfinite(np.asarray(y, float))
        runs = np.split(np.arange(len(known)), np.flatnonzero(np.diff(known)) + 1)
        for run in (run for run in runs if len(run) and known[run[0]]):
            points = " ".join(f"{self.x(x[k]):.1f},{self.y(y[k]):.1f}" for k in run)
            self._parts.append(f'<polyline class="line {style} {kind}" points="{points}"/>')

    def band(self, x: Values, low: Values, high: Values, kind: str) -> None:
        """Add the area between two lines."""
        edge = [(a, b) for a, b in zip(x, low, strict=True)] + [(a, b) for a, b in zip(x, high, strict=True)][::-1]
        points = " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in edge if np.isfinite(b))
        self._parts.append(f'<polygon class="band {kind}" points="{points}"/>')

    def dot(self, x: float, y: float, kind: str, *, radius: float = 4, said: str = "", open: bool = False) -> None:
        """Add a point; `said` is shown as a tooltip."""
        title = f"<title>{escape(said)}</title>" if said else ""
        place = f'cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius:.1f}"'
        self._parts.append(f'<circle class="{"ring" if open else "mark"} {kind}" {place}>{title}</circle>')

    def bar(self, left: float, right: float, low: float, high: float, kind: str, said: str = "") -> None:
        """Add a rectangle."""
        x, y = self.x(left), self.y(high)
        size = f'x="{x:.1f}" y="{y:.1f}" width="{max(self.x(right) - x, 0.5):.1f}" height="{max(self.y(low) - y, 0):.1f}"'
        self._parts.append(f'<rect class="mark {kind}" {size}>{f"<title>{escape(said)}</title>" if said else ""}</rect>')

    def image(self, address: str, x: tuple[float, float], y: tuple[float, float]) -> None:
        """Add an image over the given ranges of both axes, without smoothing."""
        left, top = self.x(x[0]), min(self.y(y[0]), self.y(y[1]))
        size = f'width="{self.x(x[1]) - left:.1f}" height="{abs(self.y(y[1]) - self.y(y[0])):.1f}"'
        self._parts.append(f'<image class="pixels" x="{left:.1f}" y="{top:.1f}" {size} preserveAspectRatio="none" href="{address}"/>')

    def rule(self, *, x: float | None = None, y: float | None = None, kind: str = INK, style: str = "dashed") -> None:
        """Add a line across the plot at a value of x or y."""
        left, top, right, bottom = self.box
        at = (self.x(x),) * 2 + (top, bottom) if x is not None else (left, right) + (self.y(y or 0),) * 2
        self._parts.append(f'<line class="line {style} {kind}" x1="{at[0]:.1f}" x2="{at[1]:.1f}" y1="{at[2]:.1f}" y2="{at[3]:.1f}"/>')

    def text(self, x: float, y: float, text: str, *, anchor: str = "middle", dx: float = 0, dy: float = 0) -> None:
        """Add text at a position in data units, shifted in drawing units."""
        place = f'x="{self.x(x) + dx:.1f}" y="{self.y(y) + dy:.1f}" text-anchor="{anchor}"'
        self._parts.append(f'<text class="said" {place}>{escape(text)}</text>')

    def x_axis(self, title: str, marks: Sequence[tuple[float, str]] | None = None) -> None:
        """Draw the x axis with the given marks, or with marks at round numbers."""
        left, _, right, bottom = self.box
        self._parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        for value, name in _marks(self.x_range) if marks is None else marks:
            x = self.x(value)
            self._parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
            self._parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{escape(name)}</text>')
        middle = (left + right) / 2
        self._parts.append(f'<text class="name" x="{middle:.1f}" y="{bottom + 33}" text-anchor="middle">{escape(title)}</text>')

    def y_axis(self, title: str, marks: Sequence[tuple[float, str]] | None = None, *, grid: bool = True) -> None:
        """Draw the y axis with the given marks, or with marks at round numbers."""
        left, top, right, bottom = self.box
        for value, name in _marks(self.y_range) if marks is None else marks:
            y = self.y(value)
            if grid:
                self._parts.insert(0, f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self._parts.append(f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        if title:
            middle = (top + bottom) / 2
            turned = f'transform="rotate(-90 12 {middle:.1f})" x="12" y="{middle:.1f}" text-anchor="middle"'
            self._parts.append(f'<text class="name" {turned}>{escape(title)}</text>')

    def svg(self) -> str:
        """Return the `<svg>` element; all text in it is escaped."""
        label = escape(self.label, quote=True)
        return f'<svg class="chart" viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{label}">{"".join(self._parts)}</svg>'


def number(value: float) -> str:
    """Format a number for an axis, with a typographic minus sign."""
    text = f"{value:,.0f}" if abs(value) >= 1000 and value == round(value) else f"{value:g}"
    return text.replace("-", "−")


def _marks(ends: tuple[float, float]) -> list[tuple[float, str]]:
    return [(value, number(value)) for value in ticks(*ends)]


def _place(value: float, ends: tuple[float, float], scale: Callable[[float], float], start: float, stop: float) -> float:
    low, high = scale(ends[0]), scale(ends[1])
    share = (scale(value) - low) / (high - low) if high != low else 0.5
    return start + float(np.clip(share, -0.02, 1.02)) * (stop - start)
