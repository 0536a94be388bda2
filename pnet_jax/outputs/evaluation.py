"""Writing of evaluation answers as tidy tables and JSON."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pnet_jax.outputs.atomic import write_text
from pnet_jax.outputs.tables import plain, write_rows

if TYPE_CHECKING:
    from pnet_jax.evaluate.answer import Answer

COLUMNS = ("table", "name", "measure", "value", "low", "high", "p", "n", "note")


def write_answer(answer: Answer, folder: str | os.PathLike, about: dict[str, Any] | None = None) -> list[Path]:
    """Write an answer: `QUESTION.tsv` (one number per line), `QUESTION.json` (the same with sentences and settings), further tables.

    Args:
      answer: Result of an evaluation.
      folder: Output folder; created if needed.
      about: Inputs of the answer, e.g. the path of the cohort, for the JSON file.

    Returns:
      The files written.

    Raises:
      OSError: If a file cannot be written; names the file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row._asdict() for row in answer.rows]
    files = [write_rows(folder / f"{answer.question}.tsv", COLUMNS, rows)]
    said = {"question": answer.question, "sentences": list(answer.sentences), "warnings": list(answer.warnings)}
    content = said | {"settings": dict(answer.settings), "rows": rows, **(about or {})}
    files.append(write_text(folder / f"{answer.question}.json", json.dumps(plain(content), indent=2) + "\n"))
    for name, table in answer.tables.items():
        columns = [_title(column) for column in table]
        values = [np.asarray(column) for column in table.values()]
        lines = (dict(zip(columns, line, strict=True)) for line in zip(*(one.tolist() for one in values), strict=True))
        files.append(write_rows(folder / f"{answer.question}_{_title(name)}.tsv", columns, lines))
    return files


def _title(name: str) -> str:
    """Convert a name to one that can be used in a header or file name."""
    return re.sub(r"[^A-Za-z0-9²_+-]+", "_", name).strip("_")
