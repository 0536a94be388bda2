"""Path of one scan through the package: modules used by `construct`, numbers of calls, and lengths of the construction functions.

A profiler counts calls between modules of the package during construction of one scan, after compilation, so that tracing is not counted.

    python benchmarks/journey.py --out benchmarks/results/journey.json
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from common import parser, write

import pnet_jax
from pnet_jax.config import SimulateConfig
from pnet_jax.simulate import cleaned_scan, simulate_cohort

PACKAGE = Path(pnet_jax.__file__).parent


def main() -> None:
    args = parser(__doc__, data=False).parse_args()
    subject = next(iter(simulate_cohort(SimulateConfig(subjects=1, sessions=1, minutes=4.0))))
    scan, model = cleaned_scan(subject.sessions[0]), pnet_jax.load_model("pnet-linear")
    pnet_jax.construct(scan, model=model, parcels=100)  # compiles
    entered, modules = trace(lambda: pnet_jax.construct(scan, model=model, parcels=100))
    own = {name: count for name, count in entered.items() if name.startswith("construction")}
    length, where = longest_function(PACKAGE / "construction")
    print(f"modules passed: {len(modules)}: {', '.join(sorted(modules))}")
    print(f"entries into construction's modules from others: {own}")
    print(f"longest function of construction: {length} lines, {where}")
    write(args, {"modules": sorted(modules), "entries": entered, "longest_function": {"lines": length, "name": where}})


def trace(run) -> tuple[dict[str, int], set[str]]:
    """Count calls into each module from other modules of the package, and list the modules used."""
    entered: dict[str, int] = {}
    modules: set[str] = set()

    def profile(frame, event, _):
        if event != "call" or (here := module_of(frame)) is None:
            return
        modules.add(here)
        caller = frame.f_back
        while caller is not None and module_of(caller) is None:
            caller = caller.f_back
        if caller is None or module_of(caller) != here:
            entered[here] = entered.get(here, 0) + 1

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return entered, modules


def module_of(frame) -> str | None:
    file = Path(frame.f_code.co_filename)
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts) if file.is_relative_to(PACKAGE) else None


def longest_function(folder: Path) -> tuple[int, str]:
    """Return the number of lines of the longest function below a folder, and its name."""
    found = [
        (node.end_lineno - node.lineno + 1, f"{file.stem}.{node.name}")
        for file in sorted(folder.glob("*.py"))
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]
    return max(found)


if __name__ == "__main__":
    main()
