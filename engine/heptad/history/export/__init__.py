"""A log in other forms: JSON lines, CSV, a trace, a data frame."""
