"""The benchmarks' tables and plots."""

from __future__ import annotations

import math
import sys
import xml.etree.ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from benchmarks.report import plots
from benchmarks.report.model import Bars, Lines, Plot, Report, Table, Target
from benchmarks.report.tables import Printer, cell, markdown, number, summary

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"),
        ("12 µs", "12 µs"),
        (12345, "12,345"),
        (12345.678, "12,346"),
        (12.04, "12.0"),
        (9.999, "10.00"),
        (0.5812, "0.581"),
        (0.000123456, "0.000123"),
        (-1.5, "-1.50"),
        (0, "0"),
        (0.0, "0"),
        (math.inf, "inf"),
    ],
)
def test_cells_have_three_significant_digits(value: str | float | None, text: str) -> None:
    assert cell(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_never_have_an_exponent(value: float) -> None:
    text = number(value)
    assert "e" not in text
    if abs(value) > 1e-6:
        assert math.isclose(float(text.replace(",", "")), value, rel_tol=0.006)


def test_markdown_is_a_table_with_none_pipes_and_notes() -> None:
    table = Table("T", ["who", "p50 µs", "a|b"], [["ours", 1.5, "x"], ["torch", None, "y"]], ["n"])
    assert markdown(table).splitlines() == [
        "**T**",
        "",
        "| who | p50 µs | a\\|b |",
        "|---|---:|---|",
        "| ours | 1.50 | x |",
        "| torch | \N{EN DASH} | y |",
        "",
        "n",
    ]


def test_brackets_in_cells_are_not_taken_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("[bold]T[/]", ["[red]c"], [["[/nothing] :smile:"]], ["[i]note"])
    Printer(sys.stdout).table(table)
    shown = capsys.readouterr().out
    for text in ("[bold]T[/]", "[red]c", "[/nothing] :smile:", "[i]note"):
        assert text in shown


def test_a_target_that_was_not_measured_is_not_called_met() -> None:
    target = Target("ping", None, 0.6, "", True, note="torch is not installed")
    table = summary([Report("latency", "?", [], targets=[target])])
    assert table is not None
    assert table.title == "Targets: 0 of 1 met"
    assert table.rows[0][2:] == (None, "0.600", "not measured", "torch is not installed")


BARS = Bars(
    "bars",
    "Time of a ping beside each load",
    "µs",
    ["idle", "a busy Python loop", "training"],
    {"ours": [12.0, 42.7, None], "torch": [20.8, 82.3, 90.0], "epoll": [12.5, None, None]},
    {"ours": [(11.0, 13.0), (40.0, 60.0), None]},
)
POINTS = [(100 - 100 / (1 + index / 10), 10.0 + index) for index in range(20_000)]
TAIL = Lines(
    "tail",
    "The distribution's tail",
    "percentile",
    "µs",
    {"ours": POINTS, "torch": [(x, 2 * y) for x, y in POINTS], "uvicorn": [(0.0, 9.0), (100, 99)]},
    log_y=True,
    x_axis="percentile",
)
LINES = Lines(
    "slowdown",
    "Slow-down of training",
    "polls per second",
    "%",
    {"ours": [(1, 0.1), (10, -0.2), (1000, 0.4)]},
    {"ours": [(1, 0.0, 0.2), (10, -0.4, 0.1), (1000, 0.2, 0.6)]},
    log_x=True,
)


@pytest.mark.parametrize("plot", [BARS, TAIL, LINES], ids=lambda plot: plot.name)
def test_plots_are_drawn_small_and_the_same_each_time(plot: Plot, tmp_path: Path) -> None:
    svg, png = plots.save(plot, tmp_path / "first" / "new")
    assert [svg.name, png.name] == [f"{plot.name}.svg", f"{plot.name}.png"]
    root = xml.etree.ElementTree.parse(svg).getroot()
    assert root.tag == f"{SVG}svg"
    assert len(root.findall(f".//{SVG}path")) > 10
    assert png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert png.read_bytes().endswith(b"IEND\xaeB`\x82")
    assert svg.stat().st_size < 100_000
    assert png.stat().st_size < 150_000
    again = plots.save(plot, tmp_path / "second")
    assert [path.read_bytes() for path in again] == [svg.read_bytes(), png.read_bytes()]


def test_bars_are_logarithmic_if_they_should_be() -> None:
    figures = [plots.draw(Bars("b", "", "", ["g"], {"s": [5.0]}, log=log)) for log in (True, False)]
    assert [figure.axes[0].get_yscale() for figure in figures] == ["log", "linear"]


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize(
    ("plot", "words", "series", "groups"),
    [
        (Bars("bars", "", "s", ["a"], {"s": [None]}), ["n/a"], 0, ["a"]),
        (Bars("none", "", "s", [], {}), [], 0, []),
        (Lines("lines", "", "s", "s", {"s": []}), [], 1, None),
        (Lines("tail", "", "", "s", {"s": []}, x_axis="percentile"), [], 1, ["0 %", "90 %"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_there_may_be_nothing_to_draw(
    plot: Plot, words: list[str], series: int, groups: list[str] | None, log: bool
) -> None:
    """Axes and numbers are there even without values, and a missing value is not drawn as zero."""
    scales: dict[str, Any] = (
        {"log": log} if isinstance(plot, Bars) else {"log_x": log, "log_y": log}
    )
    figure = plots.draw(replace(plot, **scales))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == words
    assert list(axes.patches) == []
    drawn: list[Any] = [line for line in axes.lines if line.get_label() == "s"]
    assert [len(line.get_xdata()) for line in drawn] == [0] * series
    assert (axes.get_yscale(), axes.get_ylabel()) == ("log" if log else "linear", "s")
    assert len([tick for tick in axes.get_yticklabels() if tick.get_text()]) > 1
    if groups is not None:
        assert [tick.get_text() for tick in axes.get_xticklabels()] == groups


def test_within_two_decades_there_are_ticks_between_the_powers_of_ten() -> None:
    for highest, expected in ((30.0, {"2", "5", "10", "20"}), (3000.0, {"1", "10", "100"})):
        values = [1.5, highest]
        axes = plots.draw(Bars("b", "", "", ["g", "h"], {"s": values}, log=True)).axes[0]
        shown = {axes.yaxis.get_major_formatter()(tick) for tick in axes.get_yticks()}
        assert expected <= shown


def test_percentiles_are_a_decade_apart() -> None:
    axes = plots.draw(TAIL).axes[0]
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    shown = [axes.xaxis.get_major_formatter()(tick) for tick in ticks]
    assert shown == ["0 %", "90 %", "99 %", "99.9 %"]


def test_a_long_line_is_thinned_and_keeps_its_extremes() -> None:
    line = [(float(x), math.sin(x)) for x in range(50_000)]
    line[20_000] = (20_000.0, 99.0)
    thin = plots.thinned(line, log=False)
    assert 100 < len(thin) <= plots.POINTS
    assert thin == sorted(thin)
    assert (thin[0], thin[-1]) == (line[0], line[-1])
    assert (20_000.0, 99.0) in thin
    assert plots.thinned(line[:100], log=False) == line[:100]


def test_a_subject_has_its_colour_in_every_plot() -> None:
    found = plots.colours(["ours nogil", "ours gil", "torch", "something"])
    assert found["torch"] == plots.SUBJECTS["torch"]
    assert found["ours nogil"] == plots.SUBJECTS["ours"]
    assert len(set(found.values())) == 4
    assert plots.colours(["ours gil", "ours"])["ours"] == plots.SUBJECTS["ours"]
