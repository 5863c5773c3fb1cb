"""The parts of a network that are compiled and recomputed one by one, while a run is driven."""
