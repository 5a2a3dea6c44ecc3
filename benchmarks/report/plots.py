"""PNG and SVG of the reports' plots, as README and docs/ show them.

The same figures give the same bytes with the same matplotlib: files have no dates, and ids come
from a fixed salt. The background is opaque white, for GitHub's light and dark themes. The colours
are Okabe and Ito's, which colour-blind people can tell apart (https://jfly.uni-koeln.de/color/). A
subject has the same colour in every plot.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.report.model import Bars, Lines, Plot
from benchmarks.report.tables import number

__all__ = ["draw", "save"]

SIZE = (8.0, 4.2)  # inches
DOTS = 150  # per inch, in PNG: 1,200 pixels wide
#: Points that are drawn of one line. No line is that many pixels wide.
POINTS = 600
#: A plot with more bars has no figures above the bars.
MAX_LABELLED_BARS = 24

SUBJECTS = {
    "ours": "#0072B2",
    "ours-uvloop": "#56B4E9",
    "torch": "#D55E00",
    "uvicorn": "#E69F00",
    "granian": "#CC79A7",
    "epoll": "#555555",
}
OTHERS = ("#009E73", "#F0E442", "#000000", "#882255", "#999933")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # matplotlib brings it
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "workerserver",
}


#: Characters of one line of a legend.
MAX_LEGEND_CHARACTERS = 105


def save(plot: Plot, folder: Path) -> list[Path]:
    """Write ``NAME.svg`` and ``NAME.png`` to *folder*. Makes the folder if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{plot.name}.svg", folder / f"{plot.name}.png"]
    with matplotlib.rc_context(STYLE):
        figure = draw(plot)
        figure.savefig(paths[0], metadata={"Date": None, "Creator": None})
        figure.savefig(paths[1], dpi=DOTS, metadata={"Software": None})
    return paths


def draw(plot: Plot) -> Figure:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title("\n".join(textwrap.wrap(plot.title, 90)))
    if isinstance(plot, Bars):
        bars(axes, plot)
    else:
        lines(axes, plot)
    if len(plot.series) > 1:
        # As many columns as fit, with the symbol before each name.
        widest = max(map(len, plot.series)) + 6
        columns = max(1, min(len(plot.series), 6, MAX_LEGEND_CHARACTERS // widest))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    return figure


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name: the subject's own colour; or, if it is free, the colour of the
    subject with which the name begins (``ours nogil``); or any free colour."""
    names = list(names)
    found = {name: SUBJECTS[name] for name in names if name in SUBJECTS}
    for name in names:
        if name in found:
            continue
        subject = name.replace(",", " ").partition(" ")[0]
        wanted = [SUBJECTS[subject]] if subject in SUBJECTS else []
        free = [
            colour
            for colour in (*wanted, *OTHERS, *SUBJECTS.values())
            if colour not in found.values()
        ]
        found[name] = free[0] if free else OTHERS[len(found) % len(OTHERS)]
    return found


def bars(axes: Axes, plot: Bars) -> None:
    count = len(plot.series)
    width = 0.8 / max(count, 1)
    labelled = count * len(plot.groups) <= MAX_LABELLED_BARS
    palette = colours(plot.series)
    if plot.log:
        axes.set_yscale("log")
    for index, (name, values) in enumerate(plot.series.items()):
        if len(values) != len(plot.groups):
            raise ValueError(f"{plot.name}: {name} has {len(values)} of {len(plot.groups)} values")
        ranges = plot.errors.get(name, [None] * len(values))
        where = [group + (index - (count - 1) / 2) * width for group in range(len(values))]
        shown = [
            (x, value, error)
            for x, value, error in zip(where, values, ranges, strict=True)
            if value is not None
        ]
        axes.bar(
            [x for x, _, _ in shown],
            [value for _, value, _ in shown],
            width * 0.92,
            color=palette[name],
            label=name,
        )
        for x, value, error in shown:
            top = value
            if error is not None:
                low, high = min(error[0], value), max(error[1], value)
                axes.vlines(x, low, high, colors="black", linewidth=1)
                top = high
            if labelled:
                above(axes, number(value), x, max(top, 0))
        for x, missing in zip(where, values, strict=True):
            if missing is None:
                # At the foot of the axes, so that no reader takes the missing bar for a zero.
                axes.text(
                    x,
                    0.01,
                    "n/a",
                    transform=axes.get_xaxis_transform(),
                    ha="center",
                    va="bottom",
                    fontsize=7,
                    color="#777777",
                )
    letters = max(10, 100 // max(len(plot.groups), 1))
    axes.set_xticks(
        range(len(plot.groups)), ["\n".join(textwrap.wrap(name, letters)) for name in plot.groups]
    )
    axes.set_xlim(-0.5, max(len(plot.groups), 1) - 0.5)
    axes.grid(visible=False, axis="x")
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(plot.unit)
    axes.margins(y=0.1)
    low, high = axes.get_ylim()
    if plot.log:
        # Whole decades: on this axis a bar's length has no meaning, and should suggest none.
        axes.set_ylim(bottom=10 ** math.floor(math.log10(low)))
    elif low < 0 < high:
        axes.axhline(0, color="black", linewidth=0.8)
    numbers(axes.yaxis, log=plot.log)


def above(axes: Axes, text: str, x: float, y: float) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=(0, 2),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=7,
    )


def lines(axes: Axes, plot: Lines) -> None:
    percentiles = plot.x_axis == "percentile"
    if plot.log_x or percentiles:
        axes.set_xscale("log")
    if plot.log_y:
        axes.set_yscale("log")
    palette = colours(plot.series)
    for index, (name, points) in enumerate(plot.series.items()):
        drawn = [(odds(x), y) for x, y in points if x < 100] if percentiles else list(points)
        drawn = thinned(drawn, log=plot.log_x or percentiles)
        axes.plot(
            [x for x, _ in drawn],
            [y for _, y in drawn],
            color=palette[name],
            linestyle=STYLES[index % len(STYLES)],
            linewidth=1.8,
            marker=MARKERS[index % len(MARKERS)] if len(drawn) <= 20 else None,
            markersize=5,
            label=name,
        )
        band = plot.bands.get(name)
        if band:
            edges = [(odds(x) if percentiles else x, low, high) for x, low, high in band]
            axes.fill_between(
                [x for x, _, _ in edges],
                [low for _, low, _ in edges],
                [high for _, _, high in edges],
                color=palette[name],
                alpha=0.18,
                linewidth=0,
            )
    if percentiles:
        percentile_axis(axes, plot.series)
    else:
        numbers(axes.xaxis, log=plot.log_x)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    if not plot.log_y:
        low, high = axes.get_ylim()
        axes.set_ylim(min(0.0, low), max(0.0, high))
        if low < 0 < high:
            axes.axhline(0, color="black", linewidth=0.8)
    numbers(axes.yaxis, log=plot.log_y)


def odds(percentile: float) -> float:
    """N, if one request in N is slower than *percentile*."""
    return 1 / (1 - percentile / 100)


def percentile_axis(axes: Axes, series: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Ticks at 0, 90, 99, 99.9 …, a decade apart each, as HdrHistogram draws them."""
    last = max((odds(x) for points in series.values() for x, _ in points if x < 100), default=10)
    decades = max(1, math.ceil(math.log10(last) - 1e-9))
    axes.set_xlim(1, max(last, 10))
    axes.xaxis.set_major_locator(FixedLocator([10.0**decade for decade in range(decades + 1)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{100 * (1 - 1 / x):.{max(0, round(math.log10(x)) - 2)}f} %")
    )


def numbers(axis: Axis, *, log: bool) -> None:
    """Plain numbers at the ticks, and also between powers of ten if the axis has few of them."""
    axis.set_major_formatter(FuncFormatter(tick))
    if log:
        low, high = sorted(axis.get_view_interval())
        few = low > 0 and high / low < 100
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
        axis.set_minor_formatter(NullFormatter())


def tick(value: float, _position: int | None) -> str:
    """*value* without trailing zeros: 0.5, 20, 1,000."""
    return f"{value:,.12g}" if abs(value) < 1e12 else number(value)


def thinned(points: list[tuple[float, float]], *, log: bool) -> list[tuple[float, float]]:
    """At most POINTS of *points* (sorted by x): from each stretch of the axis the first, the
    last, the lowest and the highest point. So the line looks the same."""
    if len(points) <= POINTS:
        return points
    places = [math.log(x) if log else x for x, _ in points]
    scale = (POINTS // 4) / ((places[-1] - places[0]) or 1)
    stretches: dict[int, list[int]] = {}
    for index, place in enumerate(places):
        stretch = min(int((place - places[0]) * scale), POINTS // 4 - 1)
        stretches.setdefault(stretch, []).append(index)
    kept: set[int] = set()
    for found in stretches.values():
        by_height = sorted(found, key=lambda index: points[index][1])
        kept.update((found[0], found[-1], by_height[0], by_height[-1]))
    return [points[index] for index in sorted(kept)]
