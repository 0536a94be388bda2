"""Write a small data set in the layout of Brainmarks' `abide_dx`, without any download, to try the models offline.

400 regions in 8 networks, 150 frames, TR 2 s. In patients, two networks share a further signal. The file `coordinates.tsv`
has the centres of the regions.

    python make_data.py DATA
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value
from datasets.features import Sequence

from pnet_jax.checkpoint import load_model

REGIONS, NETWORKS, FRAMES, TR = 400, 8, 150, 2.0
COUNTS = {"train": 80, "validation": 40, "test": 80}
SHARED = 0.6  # amplitude of the signal that two networks of patients share


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path)
    folder = arguments.parse_args().data
    atlas = load_model("pnet-linear").atlases[REGIONS]
    centres = np.stack([atlas.xyz[atlas.labels == k].mean(0) for k in range(REGIONS)])
    network = np.argsort(np.argsort(centres[:, 1])) * NETWORKS // REGIONS  # from back to front
    rng, classes = np.random.default_rng(0), {}
    for split, count in COUNTS.items():
        rows = []
        for number in range(count):
            subject = f"{split}{number:03d}"
            classes[subject] = ("control", "patient")[number % 2]
            rows.append(_sample(rng, network, classes[subject] == "patient") | {"sub": subject})
        floats = Sequence(Sequence(Value("float32")))
        features = Features({"bold": floats, "mean": floats, "std": floats, "tr": Value("float32"), "sub": Value("string")})
        _write(Dataset.from_list(rows, features), folder / "abide.schaefer400.arrow" / split)
    (folder / "targets").mkdir(parents=True, exist_ok=True)
    (folder / "targets" / "abide_target_map_dx.json").write_text(json.dumps(classes))
    lines = ["x\ty\tz", *("\t".join(f"{x:.2f}" for x in row) for row in centres)]
    (folder / "coordinates.tsv").write_text("\n".join(lines) + "\n")


def _sample(rng: np.random.Generator, network: np.ndarray, patient: bool) -> dict[str, object]:
    signals = rng.standard_normal((FRAMES, NETWORKS))
    if patient:
        signals[:, :2] += SHARED * rng.standard_normal((FRAMES, 1))
    bold = signals[:, network] + rng.standard_normal((FRAMES, REGIONS))
    bold = ((bold - bold.mean(0)) / bold.std(0)).astype(np.float32)
    return {"bold": bold, "mean": np.full((1, REGIONS), 1000, np.float32), "std": np.full((1, REGIONS), 10, np.float32), "tr": TR}


def _write(dataset: Dataset, folder: Path) -> None:
    """Write one Arrow shard, as Brainmarks reads it."""
    from datasets.arrow_writer import ArrowWriter

    folder.mkdir(parents=True, exist_ok=True)
    with ArrowWriter(features=dataset.features, path=str(folder / "data-00000.arrow")) as writer:
        for row in dataset:
            writer.write(row)
        writer.finalize()


if __name__ == "__main__":
    main()
