"""The journal: the log of a run in an SQLite file, written while the run is driven and read at any time."""
