"""Data: the order of samples, fetching a batch, the feed that a run takes batches from, and placing them."""
