"""Examples that are installed with the package; `heptad demo` runs `digits`."""
