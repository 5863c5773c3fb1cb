"""What is kept while a run is driven: arcs and times, recorded values, calls, events. No module here needs torch."""
