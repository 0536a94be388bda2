"""Check of the optional packages that reports need."""

from __future__ import annotations

import importlib

NEEDED = ("jinja2",)


class ReportExtraMissingError(ImportError, ValueError):
    """The `report` extra is not installed. It is also a ValueError, so that the command line prints it in one line."""


def check_installed() -> None:
    """Raise if reports cannot be written; a batch calls this before its first scan.

    Raises:
      ReportExtraMissingError: If a package is missing; the message names it and how to install it.
    """
    missing = [name for name in NEEDED if not _imports(name)]
    if missing:
        raise ReportExtraMissingError(f"reports need {' and '.join(missing)}, not installed here: pip install 'pnet_jax[report]'")


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True
