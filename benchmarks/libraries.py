"""Libraries in place of the package's own parts: folders of 10,000 files, and stores of records.

`folders`: seconds to list the recordings of an fMRIPrep-like folder whose images are links, as DataLad makes them. Ours also finds the
mask, the confounds and the inherited sidecars of each recording. `records`: seconds per record, written and read in random order, of
records of the size that `pnet prepare` writes, in ArrayRecord and in zarr (one chunk per record, in shards). Libraries that are not
installed are left out.

    python benchmarks/libraries.py --out benchmarks/results/libraries.json
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import parser, table, write

ENDINGS = ("space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz", "space-T1w_desc-preproc_bold.nii.gz")
BESIDE = (
    *("space-MNI152NLin6Asym_res-2_desc-preproc_bold.json", "space-MNI152NLin6Asym_res-2_desc-brain_mask.nii.gz"),
    *("space-MNI152NLin6Asym_res-2_desc-brain_mask.json", "desc-confounds_timeseries.tsv", "desc-confounds_timeseries.json"),
    *("space-T1w_desc-preproc_bold.json", "space-fsLR_den-91k_bold.dtseries.nii", "space-fsLR_den-91k_bold.json"),
)
SHAPE = (100, 20_000)  # frames and locations of a record


def main() -> None:
    arguments = parser(__doc__, data=False)
    arguments.add_argument("--tasks", nargs="+", default=["folders", "records"])
    arguments.add_argument("--subjects", type=int, default=500, help="of the folder, 20 files each")
    arguments.add_argument("--records", type=int, default=64)
    args = arguments.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as place:
        if "folders" in args.tasks:
            figures["folders"] = folders(Path(place) / "folder", args.subjects)
        if "records" in args.tasks:
            figures["records"] = records(Path(place), args.records)
    write(args, figures)


def folders(root: Path, subjects: int) -> dict[str, dict[str, float]]:
    make_folder(root, subjects)
    ways: dict[str, Callable[[Path], int]] = {
        "pnet_jax": _ours,
        "nilearn": _nilearn,
        "ancpbids": _ancpbids,
        "bids2table": _bids2table,
        "bids": _pybids,
    }
    out = {}
    for name, way in ways.items():
        if importlib.util.find_spec(name) is None:
            continue
        found = [_timed(lambda way=way: way(root)) for _ in range(2)]  # the first one imports
        out[name] = {"recordings": found[1][1], "seconds": found[1][0]}
    table(("library", "recordings", "seconds"), [(name, *row.values()) for name, row in out.items()])
    return out


def make_folder(root: Path, subjects: int) -> None:
    """Write a folder of empty files with the names of fMRIPrep, two sessions per subject; recordings are links."""
    (root / ".annex").mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "empty", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}')
    (root / "task-rest_bold.json").write_text('{"RepetitionTime": 2.0}')
    for subject in range(subjects):
        for session in ("1", "2"):
            folder = root / f"sub-{subject:04d}" / f"ses-{session}" / "func"
            folder.mkdir(parents=True)
            stem = f"sub-{subject:04d}_ses-{session}_task-rest"
            for end in ENDINGS:
                target = root / ".annex" / f"{stem}_{end}"
                target.touch()
                (folder / target.name).symlink_to(os.path.relpath(target, folder))
            for end in BESIDE:
                (folder / f"{stem}_{end}").write_text('{"RepetitionTime": 2.0}' if end.endswith(".json") else "")


def _ours(root: Path) -> int:
    from pnet_jax.ingest import find_scans

    return len(find_scans(str(root)))


def _nilearn(root: Path) -> int:
    from nilearn.interfaces.bids import get_bids_files

    wanted = [("desc", "preproc"), ("space", "MNI152NLin6Asym")]
    return len(get_bids_files(str(root), file_tag="bold", file_type="nii.gz", modality_folder="func", filters=wanted))


def _ancpbids(root: Path) -> int:
    import ancpbids

    wanted = {"suffix": "bold", "desc": "preproc", "space": "MNI152NLin6Asym", "extension": ".nii.gz"}
    return len(ancpbids.load_dataset(str(root)).query(**wanted, return_type="filename"))


def _bids2table(root: Path) -> int:
    import bids2table

    rows = bids2table.index_dataset(str(root)).to_pandas()
    return int(((rows.suffix == "bold") & (rows.desc == "preproc") & (rows.space == "MNI152NLin6Asym") & (rows.ext == ".nii.gz")).sum())


def _pybids(root: Path) -> int:
    import bids

    layout = bids.BIDSLayout(str(root), validate=False, is_derivative=True)
    return len(layout.get(suffix="bold", desc="preproc", space="MNI152NLin6Asym", extension=".nii.gz"))


def records(place: Path, count: int) -> dict[str, dict[str, float]]:
    import zarr
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    rng = np.random.default_rng(0)
    values = rng.standard_normal(SHAPE).astype(np.float16)
    order = rng.permutation(count)
    out = {}

    def write_records() -> None:
        writer = ArrayRecordWriter(str(place / "records"), "group_size:1,uncompressed")
        for _ in range(count):
            writer.write(values.tobytes())
        writer.close()

    def read_records() -> None:
        reader = ArrayRecordReader(str(place / "records"))
        for at in order:
            np.frombuffer(reader.read([int(at)])[0], np.float16).sum()

    def write_zarr() -> None:
        array = zarr.create_array(str(place / "zarr"), shape=(count, *SHAPE), dtype="float16", chunks=(1, *SHAPE), shards=(16, *SHAPE))
        for start in range(0, count, 16):
            array[start : start + 16] = np.broadcast_to(values, (min(16, count - start), *SHAPE))

    def read_zarr() -> None:
        array = zarr.open_array(str(place / "zarr"), mode="r")
        for at in order:
            array[int(at)].sum()

    for name, one, other in (("ArrayRecord", write_records, read_records), ("zarr", write_zarr, read_zarr)):
        out[name] = {"write, s": _timed(one)[0] / count, "read, s": min(_timed(other)[0] for _ in range(3)) / count}
        files = [file for file in place.rglob("*") if file.is_file() and name.lower()[:5] in str(file).lower().replace("records", "array")]
        out[name]["MB"] = sum(file.stat().st_size for file in files) / 1e6 / count
    table(("store", "write, s", "read, s", "MB"), [(name, *row.values()) for name, row in out.items()])
    return out


def _timed(run: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


if __name__ == "__main__":
    main()
