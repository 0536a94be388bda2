"""`pnet-bids BIDS_DIR OUT_DIR participant|group`: the command line of BIDS Apps for `pnet construct` and `pnet collect`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pnet_jax import __version__
from pnet_jax.errors import InputError, SettingsError

ABOUT = """Individual brain functional networks from preprocessed resting-state fMRI.

participant: construct the networks of the scans in BIDS_DIR (pnet construct); results that are up to date are skipped.
group: collect all results of OUT_DIR in one cohort store (pnet collect) and write the report of the cohort, index.html.
"""
REQUIRED = ("Name", "BIDSVersion")  # keys of dataset_description.json


def main(argv: Sequence[str] | None = None) -> int:
    """Run one level of the analysis and return its exit code: 0 for success, 1 if something failed, 2 for wrong usage."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        command = command_of(args)
        limit(args)
        from pnet_jax.cli import main as pnet

        code = pnet(command)
        if code == 0 and args.analysis_level == "group":
            from pnet_jax.report.index import write_index

            print(f"Report: {write_index(args.output_dir)}")
    except (ValueError, OSError) as error:
        print(f"pnet-bids: {error}", file=sys.stderr)
        return 1
    return code


def make_parser() -> argparse.ArgumentParser:
    """Build the parser, with the option names that BIDS Apps share."""
    parser = argparse.ArgumentParser(
        "pnet-bids", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("bids_dir", type=Path, metavar="BIDS_DIR", help="derivatives of fMRIPrep, or a dataset with derivatives/fmriprep")
    add("output_dir", type=Path, metavar="OUT_DIR", help="derivatives folder to write to")
    add("analysis_level", choices=("participant", "group"), help="level of the analysis")
    add("--participant-label", "--participant_label", nargs="+", metavar="LABEL", help="use these subjects only, with or without sub-")
    add("--session-label", "--session_label", nargs="+", metavar="LABEL", help="use these sessions only, with or without ses-")
    add("--task", "--task-id", metavar="TASK", help="use this task only")
    add("--space", metavar="SPACE", help="use recordings in this space only, e.g. MNI152NLin6Asym or fsLR")
    add("-d", "--derivatives", type=Path, metavar="PATH", help="derivatives of fMRIPrep, if they are not in BIDS_DIR")
    add("--config", type=Path, metavar="FILE", help="TOML file with options of pnet construct")
    add("--skip-bids-validation", "--skip_bids_validation", action="store_true", help="do not check dataset_description.json of BIDS_DIR")
    add("-w", "--work-dir", type=Path, metavar="PATH", help="folder for temporary files and compiled programs")
    add("--nprocs", "--n-cpus", "--n_cpus", type=_positive, metavar="N", help="largest number of CPU cores to use")
    add("--mem-mb", "--mem_mb", type=_positive, metavar="N", help="memory to use in MB; bounds the scans that are read at a time")
    add("--version", action="version", version=f"pnet-bids {__version__}")
    return parser


def command_of(args: argparse.Namespace) -> list[str]:
    """Translate a level of the analysis into a `pnet` command.

    Args:
      args: Arguments parsed by `make_parser`.

    Raises:
      SettingsError: If there are no fMRIPrep derivatives, no results at the group level, or an option does not apply to the level.
      InputError: If BIDS_DIR is not a BIDS dataset.
      FileNotFoundError: If BIDS_DIR does not exist.
    """
    if not args.bids_dir.is_dir():
        raise FileNotFoundError(f"BIDS_DIR {args.bids_dir}: folder not found")
    if args.output_dir.resolve() == args.bids_dir.resolve():
        raise SettingsError(
            f"OUT_DIR and BIDS_DIR are the same folder ({args.output_dir}); use another OUT_DIR, e.g. derivatives/pnet within it"
        )
    about = {} if args.skip_bids_validation else read_description(args.bids_dir)
    if args.analysis_level == "group":
        return _group(args)
    command = ["construct", str(recordings_of(args, about)), str(args.output_dir), "--resume"]
    for option in ("participant_label", "session_label"):
        if labels := getattr(args, option):
            command += [f"--{option.replace('_', '-')}", *labels]
    for option in ("task", "space", "config"):
        if (value := getattr(args, option)) is not None:
            command += [f"--{option}", str(value)]
    return command


def _group(args: argparse.Namespace) -> list[str]:
    for option in ("participant_label", "session_label", "task", "space", "derivatives", "config"):
        if getattr(args, option) is not None:
            raise SettingsError(f"--{option.replace('_', '-')} is an option of the participant level; the group level uses all results")
    if not (args.output_dir / "status.tsv").is_file():
        raise SettingsError(f"OUT_DIR {args.output_dir}: expected results, found no status.tsv; run the participant level first")
    table = args.bids_dir / "participants.tsv"
    return ["collect", str(args.output_dir), *(["--participants", str(table)] if table.is_file() else [])]


def read_description(folder: Path) -> dict[str, object]:
    """Read the dataset_description.json of a dataset.

    Raises:
      InputError: If the file is missing, is not a JSON object, or lacks a required key.
    """
    file, way_out = folder / "dataset_description.json", "correct it, or use --skip-bids-validation"
    try:
        about = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"BIDS_DIR {folder}: expected a BIDS dataset, found no dataset_description.json; {way_out}") from error
    except ValueError as error:
        raise InputError(f"{file}: expected JSON, found {error}; {way_out}") from error
    missing = [key for key in REQUIRED if not isinstance(about, dict) or not about.get(key)]
    if missing:
        raise InputError(f"{file}: expected the keys {', '.join(REQUIRED)}, found no {', '.join(missing)}; {way_out}")
    return about


def recordings_of(args: argparse.Namespace, about: dict[str, object]) -> Path:
    """Find the folder of preprocessed recordings: `--derivatives`, derivatives/fmriprep in BIDS_DIR, or BIDS_DIR itself.

    Raises:
      SettingsError: If there is none.
    """
    if args.derivatives is not None:
        if not args.derivatives.is_dir():
            raise SettingsError(f"--derivatives: folder {args.derivatives} not found")
        return args.derivatives
    inside = args.bids_dir / "derivatives" / "fmriprep"
    if inside.is_dir():
        return inside
    if about.get("DatasetType") == "derivative" or next(args.bids_dir.rglob("*desc-preproc_bold.*"), None) is not None:
        return args.bids_dir
    raise SettingsError(
        f"BIDS_DIR {args.bids_dir}: expected derivatives of fMRIPrep, found neither derivatives/fmriprep nor *desc-preproc_bold files; "
        "run fMRIPrep first, or give the folder of its results (--derivatives)"
    )


def limit(args: argparse.Namespace) -> None:
    """Limit this process and its children to the given cores, memory and temporary folder."""
    if args.nprocs is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.nprocs])
    if args.mem_mb is not None:
        os.environ["PNET_MEM_MB"] = str(args.mem_mb)
    if args.work_dir is not None:
        compiled = args.work_dir.resolve() / "compiled"
        compiled.mkdir(parents=True, exist_ok=True)
        os.environ["TMPDIR"], os.environ["JAX_COMPILATION_CACHE_DIR"] = str(args.work_dir.resolve()), str(compiled)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
