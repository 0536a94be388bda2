"""Binary format of a record: magic, length of the header, JSON header that lists the arrays, then the arrays. Also digests."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_MAGIC, _ALIGNED = b"PNET", 16


def pack(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Serialise one record."""
    listed = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    text = json.dumps({**header, "arrays": listed}, ensure_ascii=False).encode()
    parts = [_MAGIC + struct.pack("<I", len(text)) + text, *(np.ascontiguousarray(array).tobytes() for array in arrays.values())]
    return b"".join(part + b"\0" * (-len(part) % _ALIGNED) for part in parts)


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the header and arrays of a record; the arrays are views of `data`. Raises ValueError if `data` is not a record."""
    if data[:4] != _MAGIC:
        raise ValueError(f"not a record of pnet_jax: expected it to begin with {_MAGIC!r}, found {data[:4]!r}")
    length = struct.unpack_from("<I", data, 4)[0]
    header = json.loads(data[8 : 8 + length])
    arrays, at = {}, 8 + length
    for name, dtype, shape in header["arrays"]:
        at += -at % _ALIGNED
        arrays[name] = np.frombuffer(data, dtype, int(np.prod(shape)), at).reshape(shape)
        at += arrays[name].nbytes
    return header, arrays


def digest_of(*parts: str | bytes) -> str:
    """Compute the SHA-256 of texts and bytes."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(struct.pack("<Q", len(data)) + data)
    return total.hexdigest()


def file_digest(path: Path) -> str:
    """Compute the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
