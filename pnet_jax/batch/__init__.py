"""Networks of many scans: read and written by worker processes, computed in waves, on one machine or many."""
