"""The answer of /metrics, as the official parser of its format reads it."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("prometheus_client")
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

__all__ = ["Samples", "families", "key", "samples"]

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def families(text: bytes) -> dict[str, Any]:
    """The families of *text*, by name, as the official parser of its format reads them."""
    of_format = openmetrics_parser if text.endswith(b"# EOF\n") else parser
    found = list(of_format.text_string_to_metric_families(text.decode()))
    names = [family.name for family in found]
    assert len(set(names)) == len(names), "a family comes twice"
    return {family.name: family for family in found}


def samples(text: bytes) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families(text).values()
        for sample in family.samples
    }
