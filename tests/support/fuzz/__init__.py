"""Fuzz targets: a function for each, called with bytes. Any exception is a finding.

``python -m support.fuzz`` runs one under atheris, ``tools/fuzz.py`` all of them, and
``tests/fuzz`` replays the corpora.
"""
