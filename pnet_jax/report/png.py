"""Arrays as PNG images in `data:` addresses, and the colour ramps of maps and matrices."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

LEVELS = 64  # number of colours of a ramp
_RAMPS = {
    "diverging": ("#16325c", "#2f6db0", "#8db8dd", "#f5f5f4", "#eca489", "#c43c39", "#6b0f23"),
    "probability": ("#35185f", "#2b5c8f", "#1b9787", "#7dc963", "#f6e34a"),
    "share": ("#fff3c4", "#fdbb63", "#ea6a3c", "#a81c3a", "#560a33"),
}
_COLOUR_TYPE = {1: 0, 3: 2, 4: 6}  # PNG colour type by number of channels: grey, RGB, RGBA


def png(pixels: UInt8[np.ndarray, "height width *channels"]) -> str:
    """Encode an image as a self-contained `data:` address.

    Args:
      pixels: Image, grey `[H, W]`, RGB `[H, W, 3]` or RGBA `[H, W, 4]`, uint8.
    """
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, channels = pixels.shape
    rows = pixels.reshape(height, -1)
    # Rows are stored as differences from the row above, which compress well because maps have large areas of one colour.
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = 2
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPE[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode("ascii")


def ramp(name: str, levels: int = LEVELS) -> Float[np.ndarray, "levels 3"]:
    """Return the colours of a ramp, `"diverging"`, `"probability"` or `"share"`, from low to high; RGB in 0…1."""
    anchors = np.array([rgb(colour) for colour in _RAMPS[name]])
    place = np.linspace(0, 1, len(anchors))
    return np.stack([np.interp(np.linspace(0, 1, levels), place, channel) for channel in anchors.T], 1)


def rgb(colour: str) -> tuple[float, float, float]:
    """Convert a colour `#rrggbb` to RGB in 0…1."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return red, green, blue


def hexadecimal(colours: Sequence[Sequence[float]] | np.ndarray) -> list[str]:
    """Convert RGB in 0…1 to `#rrggbb`."""
    return ["#" + "".join(f"{channel:02x}" for channel in row) for row in np.rint(np.asarray(colours) * 255).astype(int).tolist()]


def gradient(name: str) -> str:
    """Return a ramp as the CSS gradient of a colour bar, from left to right."""
    return f"linear-gradient(90deg, {', '.join(hexadecimal(ramp(name, 13)))})"
