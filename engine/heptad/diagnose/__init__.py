"""What is likely wrong and what to do, in words. Loaded by name when something has failed: see `heptad.errors`."""
