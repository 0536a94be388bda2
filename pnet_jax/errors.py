"""The two kinds of error that a user can mend; everything else is trouble of the machine or a fault of the program."""

from __future__ import annotations


class InputError(ValueError):
    """A recording, or a file that goes with it, cannot be used.

    The message names the file and the participant, what was expected and what was found. In a batch the scan fails and the others go
    on; results that an earlier run made of the same recording are removed, because they no longer describe it.
    """


class SettingsError(ValueError):
    """The command as a whole cannot be carried out: an option, an atlas or a selection is wrong. Raised before the first scan is read."""
