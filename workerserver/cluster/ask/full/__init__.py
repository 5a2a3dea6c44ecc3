"""Whole histories, which are too long to ask for where a summary is enough."""
