"""Reports need a package that the rest does not: what to say where it is missing."""

from __future__ import annotations

import importlib

NEEDED = ("jinja2",)


class ReportExtraMissingError(ImportError, ValueError):
    """The `report` extra is not installed. A ValueError too, so that the command line says it in one line."""


def check_installed() -> None:
    """Refuse to begin a report that could not be finished; a batch calls it before its first scan.

    Raises:
      ReportExtraMissingError: If names what is missing and how to get it.
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
