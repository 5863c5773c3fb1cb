"""Data: the order of samples, fetching a batch, the feed that the run takes batches from, and placing them."""

from heptad.data.build import build_feed
from heptad.data.feed import Feed
from heptad.data.placement import count_samples, place, resolve_device

__all__ = ["Feed", "build_feed", "count_samples", "place", "resolve_device"]
