"""Benchmarks: each subject in its own process, all in one run, interleaved."""
