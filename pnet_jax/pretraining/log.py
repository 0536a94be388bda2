"""Log of a training run: one line of JSON per step, TensorBoard curves, and a progress bar."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any


class Log:
    """Writer of training metrics; a resumed run appends. In multi-process runs, only the first process writes.

    Attributes:
      file: `metrics.jsonl`, one object per line.
      last: Metrics of the last line, from this run or the run that it resumes.
    """

    def __init__(self, folder: pathlib.Path, *, steps: int, first: int, writes: bool = True, progress: bool = True) -> None:
        self.file = folder / "metrics.jsonl"
        self.last: dict[str, float] = {}
        self._lines: Any = None
        self._curves: Any = None
        self._bar: Any = None
        if not writes:
            return
        from tensorboardX import SummaryWriter
        from tqdm import tqdm

        folder.mkdir(parents=True, exist_ok=True)
        rows = _drop_after(self.file, first)
        self.last = rows[-1] if rows else {}
        self._lines = self.file.open("a", encoding="utf-8")
        self._curves = SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1)
        self._bar = tqdm(total=steps, initial=first, desc="pretrain", unit="step", file=sys.stderr, disable=not progress)

    def __call__(self, step: int, numbers: Mapping[str, float], said: str) -> None:
        """Write the metrics of one step, and show `said` next to the progress bar."""
        self.last = dict(numbers)
        if self._lines is None:
            return
        self._lines.write(json.dumps({"step": step, **numbers}) + "\n")
        self._lines.flush()
        for name, value in numbers.items():
            self._curves.add_scalar(name, value, step)
        self._bar.set_postfix_str(said)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        for open_one in (self._lines, self._curves, self._bar):
            if open_one is not None:
                open_one.close()


def read_log(file: pathlib.Path) -> list[dict[str, Any]]:
    """Read the rows of a `metrics.jsonl`; a line truncated by a killed process is skipped."""
    rows = []
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _drop_after(file: pathlib.Path, first: int) -> list[dict[str, Any]]:
    """Remove the rows of steps that a resumed run repeats, and return the others."""
    rows = [row for row in read_log(file) if row["step"] <= first]
    if file.exists():
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return rows
