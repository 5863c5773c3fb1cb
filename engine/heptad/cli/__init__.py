"""The command line, which asks the journal of a run at a terminal: `heptad --help`."""
