"""Encoders from the signals of a scan to one embedding per location."""
