"""Structural connectomes: square tables of weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from pnet_jax.dynamics.fit import checked_connectome
from pnet_jax.errors import InputError
from pnet_jax.ingest import naming
from pnet_jax.ingest.tables import drop_row_numbers, read_table, shortlist, text_columns


def read_connectome(path: str | Path, n_parcels: int) -> Float[np.ndarray, "K K"]:
    """Weights between parcels, from a table with or without a header, or a .npy matrix.

    Args:
      path: .csv, .tsv, .txt or .npy.
      n_parcels: K; rows and columns stand in the parcels' order.

    Raises:
      InputError: no table of numbers, or weights that are not K x K, finite, symmetric and 0 or above; names the file.
      FileNotFoundError: it is not there.
    """
    path, where = Path(path), f"structural connectome {path}"
    if naming.split_name(path)[1] == ".npy":
        values = _read_npy(path, where)
    else:
        table = drop_row_numbers(read_table(path, where))
        if text := text_columns(table):
            raise InputError(f"{where}: expected numbers in every column, found text in {shortlist(text)}")
        values = table.to_numpy(np.float64)
    try:
        return checked_connectome(values, n_parcels)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def _read_npy(path: Path, where: str) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: no such file") from error
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{where}: not a readable .npy file ({error})") from error
    if values.dtype.kind not in "iufb":
        raise InputError(f"{where}: expected a matrix of numbers, found values of type {values.dtype}")
    return values
