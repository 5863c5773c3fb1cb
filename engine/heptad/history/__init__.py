"""Asking a log: queries, explanations, differences, summaries. Needs no torch, and the engine works without it."""
