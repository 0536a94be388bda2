"""Errors that a user can correct; any other exception is a fault of the system or of the program."""

from __future__ import annotations


class InputError(ValueError):
    """Raised when a recording, or a file that belongs to it, cannot be used.

    The message names the file and the participant, and states what was expected and what was found. In a batch, the scan fails and the
    other scans continue; results that an earlier run wrote for the same recording are removed, because they no longer describe it.
    """


class SettingsError(ValueError):
    """Raised before the first scan is read if a command cannot run as given, e.g. because an option, an atlas or a selection is invalid."""
