"""The results of a benchmark as data: tables, plots and targets. Nothing here prints or draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Bars", "Lines", "Plot", "Report", "Table", "Target"]

Cell = str | int | float | None
"""None: not measured, for a reason that the table's notes say."""


@dataclass(frozen=True)
class Table:
    """Cells by row and column. Units stand in the columns' names: ``p50 µs``."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Bars:
    """Groups of bars: each of *groups* has one bar for each series (None: no bar)."""

    name: str  # of the file
    title: str
    unit: str
    groups: Sequence[str]
    series: Mapping[str, Sequence[float | None]]
    errors: Mapping[str, Sequence[tuple[float, float] | None]] = field(default_factory=dict)
    """Lowest and highest value of each bar."""
    log: bool = False


@dataclass(frozen=True)
class Lines:
    """Points (x, y) of each series; *bands* are (x, lowest, highest)."""

    name: str
    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    bands: Mapping[str, Sequence[tuple[float, float, float]]] = field(default_factory=dict)
    log_x: bool = False
    log_y: bool = False
    x_axis: Literal["number", "percentile"] = "number"
    """percentile: x is 0 to 100 (exclusive), drawn as HdrHistogram does, by 1 / (1 - x / 100)."""


Plot = Bars | Lines


@dataclass(frozen=True)
class Target:
    """A figure with a limit. If the figure could not be measured, *figure* is None and *note* says
    why. *lowest* and *highest* are the range over rounds, or the confidence interval.
    """

    what: str
    figure: float | None
    limit: float
    unit: str
    met: bool
    lowest: float | None = None
    highest: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Report:
    """The answer of one benchmark. The regression gate compares *ratios*. A key tells the whole
    case (``ping idle one-core ours/torch p50``); a value is (median, lowest, highest) of the
    rounds' ratios, and below 1 is better. *missing* maps each missing subject to the reason.
    """

    name: str
    question: str
    tables: Sequence[Table]
    plots: Sequence[Plot] = ()
    targets: Sequence[Target] = ()
    ratios: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
