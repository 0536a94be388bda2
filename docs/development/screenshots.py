"""Make the pictures of docs/reports.md from a folder of simulated results.

    pnet simulate WORK/data --subjects 3 --sites 2 --minutes 14
    pnet construct WORK/data WORK/results
    python docs/development/screenshots.py WORK/results

It needs Chromium in PATH, and Pillow. The first page in the alphabet and the cohort report are drawn in light colours, 1,300 pixels wide.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

IMAGES = Path(__file__).parents[1] / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LARGEST = 300_000  # bytes of a picture
# What is done on the page before it is drawn, and the height of the picture.
PICTURES = {
    "scan.png": ("first", "", 1920),
    "parcels.png": (
        "first",
        "document.querySelector('#parcel-table tbody tr:nth-child(6)').click();"
        "document.querySelectorAll('header, nav, .lead, .cards, #reliability').forEach((one) => one.remove());",
        1560,
    ),
    "cohort.png": ("index", "", 1700),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    results = parser.parse_args().results
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"no browser found: expected {', '.join(BROWSERS)} in PATH")
    pages = {"index": results / "index.html", "first": min(results.glob("sub-*.html"))}
    IMAGES.mkdir(exist_ok=True)
    for name, (page, script, height) in PICTURES.items():
        draw(browser, pages[page], script, height, IMAGES / name)
        size = (IMAGES / name).stat().st_size
        if size > LARGEST:
            raise SystemExit(f"{name}: {size} bytes, expected at most {LARGEST}")
        print(f"{IMAGES / name}: {size} bytes")


def draw(browser: str, page: Path, script: str, height: int, target: Path) -> None:
    """Draw a page after a script has run, with 256 colours."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        copy, shot = Path(folder) / "page.html", Path(folder) / "shot.png"
        copy.write_text(page.read_text("utf-8").replace("</body>", f"<script>{script}</script></body>"), "utf-8")
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size=1300,{height}")
        subprocess.run([browser, *flags, f"--screenshot={shot}", copy.as_uri()], check=True, stderr=subprocess.DEVNULL, timeout=180)
        with Image.open(shot) as picture:
            picture.convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    main()
