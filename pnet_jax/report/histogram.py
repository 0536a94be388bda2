"""Histograms as inline SVG, with colours set by the style sheet of the page."""

from __future__ import annotations

from html import escape

import numpy as np

from pnet_jax.report.quality import Distribution, ticks

WIDTH, HEIGHT, BOTTOM, SIDE, TOP = 340, 140, 22, 8, 16  # size of the drawing and its margins
LEAST_VALUES, MOST_BINS = 5, 40


def histogram(one: Distribution) -> str | None:
    """Draw a distribution with its median (solid); None for fewer than 5 values.

    If one pair of limits applies to all values, they are drawn (dashed), and the bars beyond them are marked.

    Returns:
      An `<svg>` element; all text in it is escaped.
    """
    if len(one.values) < LEAST_VALUES:
        return None
    edges, counts = _bins(one)
    shown = edges * one.figure.scale
    low, high = float(shown[0]), float(shown[-1])

    def place(value: float) -> float:
        return SIDE + (value - low) / (high - low) * (WIDTH - 2 * SIDE)

    parts = [_bar(one, k, place(shown[k]), place(shown[k + 1]), edges, counts) for k in range(len(counts)) if counts[k]]
    floor = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{SIDE}" x2="{WIDTH - SIDE}" y1="{floor}" y2="{floor}"/>')
    for value in ticks(low, high):
        x = place(value)
        anchor = "start" if x < 2 * SIDE else "end" if x > WIDTH - 2 * SIDE else "middle"
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{value:g}</text>')
    for limit in (one.only.low, one.only.high) if one.only else ():
        if low < limit * one.figure.scale < high:
            x = place(limit * one.figure.scale)
            parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{floor}"/>')
    x = place(float(np.median(one.values)) * one.figure.scale)
    parts.append(f'<line class="median" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 10}" y2="{floor}"/>')
    label = escape(f"Histogram of {one.figure.title.lower()}, n = {len(one.values)}", quote=True)
    return f'<svg class="histogram" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _bins(one: Distribution) -> tuple[np.ndarray, np.ndarray]:
    """Return bin edges and counts; identical values give one bar of visible width."""
    low, high = float(one.values.min()), float(one.values.max())
    if high - low < one.figure.step:
        low, high = max(low - one.figure.step, 0.0), min(high + one.figure.step, one.figure.most)
    bins = int(np.clip(np.ceil(2 * np.cbrt(len(one.values))), 8, MOST_BINS))
    counts, edges = np.histogram(one.values, bins, (low, high))
    return edges, counts


def _bar(one: Distribution, k: int, left: float, right: float, edges: np.ndarray, counts: np.ndarray) -> str:
    # A bar for one scan among thousands must remain visible.
    height = max(float(counts[k] / counts.max()) * (HEIGHT - BOTTOM - TOP), 1.5)
    middle = (edges[k] + edges[k + 1]) / 2
    beyond = one.only is not None and not one.only.low <= middle <= one.only.high
    text = f"{one.figure.text(edges[k])} to {one.figure.text(edges[k + 1])}: {counts[k]}"
    box = f'x="{left + 0.5:.1f}" y="{HEIGHT - BOTTOM - height:.1f}" width="{max(right - left - 1, 0.8):.1f}" height="{height:.1f}"'
    return f'<rect class="{"beyond" if beyond else "bar"}" {box}><title>{escape(text)}</title></rect>'
