"""Suites of benchmarks/, with settings so small that they show only whether they work."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.asking import Reply
from benchmarks.context import Context
from benchmarks.report.model import Bars, Lines, Report, Table
from benchmarks.subjects.servers import Missing, available
from benchmarks.suites import acquisitions, bodies, flight, snapshot

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks are Linux's"),
]

MIB = 1 << 20


@pytest.fixture
def context(short_path: Path) -> Context:
    return Context(1, True, short_path, log=io.StringIO())


def well_formed(report: Report) -> None:
    json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert report.question.endswith("?")
    for table in report.tables:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}
    assert report.plots
    for plot in report.plots:
        if isinstance(plot, Bars):
            assert {len(bars) for bars in plot.series.values()} == {len(plot.groups)}
            assert {len(ranges) for ranges in plot.errors.values()} <= {len(plot.groups)}
        else:
            assert isinstance(plot, Lines)
            assert all(plot.series.values())
    for low, high in ((low, high) for _, low, high in report.ratios.values()):
        assert 0 < low <= high < math.inf


def cells(table: Table) -> dict[str, dict[str, Any]]:
    """By the first column, by the columns' names."""
    return {str(row[0]): dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_snapshot(context: Context) -> None:
    subjects = [subject for subject in snapshot.SUBJECTS if subject.kind != "torch"]
    report = snapshot.run(context, [(3, 20)], subjects)
    well_formed(report)
    assert (report.missing, report.ratios) == ({}, {})
    rows: list[dict[str, Any]] = [cells(table)["3"] for table in report.tables]
    longest, total, inside = rows
    parked = 3 * 20
    assert inside["frames in naive walk"] == parked
    for mode in ("gil", "nogil"):
        # The main thread and the server's own threads are counted besides.
        assert parked < inside[f"frames in ours {mode}"] < parked + 30
    assert 0 < inside["walk, again µs"] < 1e6
    assert all(longest[name] <= total[name] for name in longest)
    assert total["naive walk ms"] > 0


def test_what_is_not_the_body_is_no_figure(context: Context) -> None:
    """A server that answers "pong" to everything."""
    try:
        available("epoll")
    except Missing as reason:
        pytest.skip(str(reason))
    subjects = (bodies.Subject("ours", False), bodies.Subject("epoll", False))
    report = bodies.run(context, subjects, MIB, MIB // 2)
    well_formed(report)
    for table in report.tables:
        rows = cells(table)
        assert all(value is not None for value in rows["ours Unix"].values())
        assert {value for name, value in rows["epoll Unix"].items() if name != "subject"} == {None}
        assert any(note.startswith("epoll Unix: 3 of 3 answered, ") for note in table.notes)


@pytest.mark.torch
def test_flight(context: Context) -> None:
    pytest.importorskip("torch")
    subjects = [flight.Subject("ours", name) for name in ("fr_trace_json", "fr_summary")]
    report = flight.run(context, 25, subjects, ("idle",))
    well_formed(report)
    assert report.missing == {}
    rows = cells(report.tables[0])
    assert list(rows) == ["ours fr_trace_json", "ours fr_summary", "no dump"]
    assert rows["ours fr_trace_json"]["bytes"] > rows["ours fr_summary"]["bytes"] > 100
    assert rows["ours fr_trace_json"]["idle p50 ms"] > 0
    assert rows["ours fr_trace_json"]["busy p50 ms"] is None


def test_a_dump_of_too_few_entries_is_no_figure() -> None:
    with pytest.raises(RuntimeError, match="1 entries, not 3"):
        flight.check(3, "fr_trace_json", Reply({}, b'{"entries": [{}]}'))


def test_acquisitions(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acquisitions, "SUBJECTS", {"ours": ("ping", "inline")})
    monkeypatch.setattr(acquisitions, "REQUESTS", 8)
    report = acquisitions.run(context)
    if "gdb" in report.missing:
        pytest.skip(report.missing["gdb"])
    well_formed(report)
    assert list(cells(report.tables[0])) == ["ping", "inline"]


def test_acquisitions_without_gdb(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    report = acquisitions.run(context)
    assert report.missing == {"gdb": "gdb is not installed"}
    assert (list(report.tables[0].rows), list(report.plots)) == ([], [])
