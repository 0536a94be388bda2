"""Answers of evaluations -> tidy tables and JSON."""

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
      answer: result of an evaluation.
      folder: where to write; it is created.
      about: what the answer was made from, e.g. the cohort's path, for the JSON file.

    Returns:
      The files.

    Raises:
      OSError: a file cannot be written; the error names it.
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
    """Return a name that can stand in a header or file name."""
    return re.sub(r"[^A-Za-z0-9²_+-]+", "_", name).strip("_")
