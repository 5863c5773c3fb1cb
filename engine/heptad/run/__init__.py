"""A run: the object that handlers receive, its state and window, the guards, and what it works with."""
