"""Errors that a user can correct; any other exception is a fault of the machine or of the program."""

from __future__ import annotations


class InputError(ValueError):
    """A recording, or a file that belongs to it, cannot be used.

    The message names the file and the participant, what was expected and what was found. In a batch the scan fails and the other scans
    continue; results that an earlier run wrote for the same recording are removed, because they no longer describe it.
    """


class SettingsError(ValueError):
    """The command cannot run as given: an option, an atlas or a selection is wrong. Raised before the first scan is read."""
