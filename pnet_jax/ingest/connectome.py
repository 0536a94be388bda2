"""Structural connectomes from square tables of weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from pnet_jax.dynamics.fit import checked_connectome
from pnet_jax.errors import InputError
from pnet_jax.ingest import naming
from pnet_jax.ingest.tables import drop_row_numbers, numbers_of, read_npy, read_table


def read_connectome(path: str | Path, n_parcels: int) -> Float[np.ndarray, "K K"]:
    """Read the weights between parcels from a table with or without a header, or from a .npy matrix.

    Args:
      path: .csv, .tsv, .txt or .npy file, with rows and columns in the order of the parcels.
      n_parcels: Number of parcels K.

    Returns:
      Weights, `[K, K]`.

    Raises:
      InputError: If the file is not a table of numbers, or the weights are not K × K, finite, symmetric and non-negative.
      FileNotFoundError: If the file does not exist.
    """
    path, where = Path(path), f"structural connectome {path}"
    is_npy = naming.split_name(path)[1] == ".npy"
    values = read_npy(path, where) if is_npy else numbers_of(drop_row_numbers(read_table(path, where)), where)
    try:
        return checked_connectome(values, n_parcels)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
