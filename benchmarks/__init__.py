"""Benchmarks: each subject has its own process, and all subjects take turns in one run."""
