"""A smoke run: a few turns of a run that is about to begin, after which everything is put back."""
