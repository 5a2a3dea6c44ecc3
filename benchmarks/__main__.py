"""``python -m benchmarks [NAME…]``: run suites, print their tables, write JSON and plots.

Tables go to stdout (with ``--json -`` to stderr), progress goes to stderr. The exit status is 1 if
a suite failed or ``--check`` found a worse ratio, and 130 after Ctrl-C. Missed targets are shown,
but don't change the exit status.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import pkgutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import children, suites
from benchmarks.context import BUDGETS, Context
from benchmarks.report import gate, machine
from benchmarks.report.model import Bars, Report
from benchmarks.report.tables import Printer, last_line, summary
from benchmarks.subjects.servers import Missing

ORDER = (
    "latency",
    "throughput",
    "training",
    "blackbox",
    "snapshot",
    "acquisitions",
    "bodies",
    "flight",
    "proof",
    "strangers",
    "footprint",
    "scale",
    "record",
)
ROUNDS = 5
#: A Unix socket's path has at most 107 bytes; the suites' folders stay below this.
SHORT = 40


@dataclass
class Outcome:
    """*failed* maps suites to their exceptions, *missing* maps suites that can't run to reasons."""

    reports: list[Report] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    verdicts: list[gate.Verdict] = field(default_factory=list)
    interrupted: bool = False


def arguments(package: ModuleType) -> argparse.ArgumentParser:
    names = found(package)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Run all suites of benchmarks, or the named ones: " + ", ".join(names),
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a suite (default: all suites)")
    parser.add_argument("--list", action="store_true", help="list the suites and their questions")
    parser.add_argument("--json", metavar="FILE", help="write all results; - for stdout")
    parser.add_argument("--plots", metavar="DIR", type=Path, help="write PNG and SVG files there")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument(
        "--rounds", type=positive, metavar="N", default=ROUNDS, help=f"default {ROUNDS}"
    )
    parser.add_argument("--quick", action="store_true", help="shorter rounds")
    gates = parser.add_mutually_exclusive_group()
    gates.add_argument(
        "--check", action="store_true", help="run the suites with ratios, compare with the baseline"
    )
    gates.add_argument(
        "--save-baseline", action="store_true", help="run the suites with ratios, record the ratios"
    )
    parser.add_argument("--runs", type=positive, default=3, metavar="K", help="default 3")
    parser.add_argument("--baseline", type=Path, default=gate.BASELINE, metavar="FILE")
    return parser


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def found(package: ModuleType) -> list[str]:
    """The names of the package's modules. Modules that ORDER doesn't name come last."""
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    known = [name for name in ORDER if name in names]
    return known + sorted(name for name in names if name not in ORDER)


def check(report: Report) -> None:
    """Raise ValueError if a part of *report* can't be printed or compared."""
    for table in report.tables:
        for row in table.rows:
            if len(row) != len(table.columns):
                raise ValueError(f"{table.title}: {len(table.columns)} columns, but {row}")
    for plot in report.plots:
        if isinstance(plot, Bars):
            for name, values in plot.series.items():
                if len(values) != len(plot.groups):
                    raise ValueError(f"{plot.name}: {len(plot.groups)} groups, {name}: {values}")
    for key, (middle, lowest, highest) in report.ratios.items():
        if not 0 <= lowest <= middle <= highest < math.inf:
            raise ValueError(f"ratio {key}: {middle} ({lowest} to {highest})")


class Runner:
    def __init__(self, package: ModuleType, options: argparse.Namespace) -> None:
        self.package = package
        self.rounds: int = options.rounds
        self.quick: bool = options.quick
        self.outcome = Outcome()

    def run(self, name: str) -> Report | None:
        """The suite's report. None if it failed or can't run here; *outcome* has the reason."""
        began = time.monotonic()
        place = "/tmp" if len(tempfile.gettempdir()) > SHORT else None
        with tempfile.TemporaryDirectory(
            prefix="bench-", dir=place, ignore_cleanup_errors=True
        ) as folder:
            context = Context(self.rounds, self.quick, Path(folder), name)
            context.say("begins")
            try:
                module = importlib.import_module(f"{self.package.__name__}.{name}")
                with children.none_left():
                    report: Report = module.run(context)
                check(report)
            except Missing as missing:
                context.say(f"can't run here: {missing}")
                self.outcome.missing[name] = str(missing)
                return None
            except Exception as error:
                traceback.print_exc()
                context.say("FAILED")
                self.outcome.failed[name] = f"{type(error).__name__}: {error}"
                return None
        return replace(report, name=name, seconds=round(time.monotonic() - began, 1))

    def all(self, names: Sequence[str], printer: Printer) -> None:
        for name in names:
            report = self.run(name)
            if report is not None:
                self.outcome.reports.append(report)
                printer.report(report)

    def again(self, names: Sequence[str]) -> Iterator[Report]:
        """The reports of a further run. A suite that has failed doesn't run again."""
        for name in names:
            report = None if name in self.outcome.failed else self.run(name)
            if report is not None:
                yield report


def compare(
    runner: Runner, baseline: gate.Baseline, description: machine.Description, printer: Printer
) -> None:
    """Judge the reports. Suites with suspicious ratios run again."""
    attempts: dict[str, list[gate.Ratios]] = {
        report.name: [report.ratios] for report in runner.outcome.reports
    }
    verdicts = gate.judge(baseline, attempts)
    for number in range(2, gate.ATTEMPTS + 1):
        names = gate.suspects(verdicts)
        if names:
            print(f"gate: attempt {number} for {', '.join(names)}", file=sys.stderr)
        for report in runner.again(names):
            attempts[report.name].append(report.ratios)
        verdicts = gate.judge(baseline, attempts)
    runner.outcome.verdicts = verdicts
    notes = gate.differences(baseline, runner.rounds, runner.quick, description)
    printer.table(gate.table(verdicts, notes))


def record(runner: Runner, options: argparse.Namespace, description: machine.Description) -> None:
    """Write the baseline, from the reports and from further runs up to --runs."""
    reports = list(runner.outcome.reports)
    names = [report.name for report in reports if report.ratios]
    for number in range(2, options.runs + 1):
        print(f"baseline: run {number} of {options.runs}", file=sys.stderr)
        reports += runner.again(names)
    if runner.outcome.failed:
        print("the baseline was not written", file=sys.stderr)
        return
    fresh = gate.Baseline(
        gate.collected(reports), runner.rounds, runner.quick, described(description)
    )
    gate.Baseline.read(options.baseline).merged(fresh).write(options.baseline)
    print(f"recorded {', '.join(names)}", file=sys.stderr)


def described(description: machine.Description) -> dict[str, Any]:
    """The facts about the machine that are kept beside the ratios."""
    kept = ("cpu", "cores", "virtual", "kernel", "python", "packages", "commit", "date")
    return {name: description[name] for name in kept}


def document(
    runner: Runner, description: machine.Description, loads: tuple[float, float]
) -> dict[str, Any]:
    outcome = runner.outcome
    return {
        "machine": {**description, "load_start": loads[0], "load_end": loads[1]},
        "rounds": runner.rounds,
        "quick": runner.quick,
        "interrupted": outcome.interrupted,
        "reports": [report.as_dict() for report in outcome.reports],
        "failed": outcome.failed,
        "missing": outcome.missing,
        "budgets": BUDGETS,
        "gate": [
            {"suite": verdict.suite, "key": verdict.key, "verdict": verdict.word}
            for verdict in outcome.verdicts
        ],
    }


def plain(value: Any) -> Any:
    """*value* for JSON: without NaN, infinity, or paths of this machine."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        for path in (str(machine.ROOT), sys.prefix, sys.base_prefix, str(Path.home())):
            # Every path contains "/", so a path that is "/" itself stays.
            value = value.replace(path, "…") if len(path) > 1 else value
        return value
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def plot(outcome: Outcome, folder: Path) -> None:
    from benchmarks.report import plots

    for report in outcome.reports:
        for drawn in report.plots:
            try:
                paths = plots.save(drawn, folder)
            except Exception as error:
                traceback.print_exc()
                outcome.failed[f"{report.name}, plot {drawn.name}"] = str(error)
            else:
                print("wrote", *paths, file=sys.stderr)


def close(outcome: Outcome, printer: Printer) -> None:
    """The summary."""
    printer.heading("Summary")
    targets = summary(outcome.reports)
    if targets is not None:
        printer.table(targets)
    for report in outcome.reports:
        for subject, reason in report.missing.items():
            printer.line(f"missing in {report.name}: {subject}: {last_line(reason)}")
    for name, reason in outcome.missing.items():
        printer.line(f"missing: all of {name}: {last_line(reason)}")
    for name, reason in outcome.failed.items():
        printer.line(f"FAILED: {name}: {last_line(reason)}")
    if outcome.interrupted:
        printer.line("interrupted")


def chosen(
    parser: argparse.ArgumentParser, options: argparse.Namespace, names: list[str]
) -> list[str]:
    unknown = [name for name in options.names if name not in names]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(names) or 'none'}")
    return [name for name in names if name in options.names] if options.names else names


def questions(package: ModuleType, names: Sequence[str]) -> None:
    for name in names:
        print(f"{name:<14}{importlib.import_module(f'{package.__name__}.{name}').QUESTION}")


def main(argv: Sequence[str] | None = None, package: ModuleType = suites) -> int:
    parser = arguments(package)
    options = parser.parse_args(argv)
    names = chosen(parser, options, found(package))
    if options.list:
        questions(package, names)
        return 0
    if options.plots is not None:
        # If matplotlib is missing, fail now and not after minutes of measuring.
        importlib.import_module("benchmarks.report.plots")
    baseline = gate.Baseline.read(options.baseline)
    if options.check and not options.names:
        names = baseline.short(names)
    runner = Runner(package, options)
    printer = Printer(sys.stderr if options.json == "-" else sys.stdout, markdown=options.markdown)
    description, load = machine.describe(), machine.load()
    printer.line(machine.sentence(description))
    os.environ.update(BUDGETS)  # for the servers, which are children
    printer.line(f"budgets: {', '.join(f'{name}={value}' for name, value in BUDGETS.items())}")
    outcome = runner.outcome
    try:
        runner.all(names, printer)
        if options.check:
            compare(runner, baseline, description, printer)
        elif options.save_baseline:
            record(runner, options, description)
    except KeyboardInterrupt:
        outcome.interrupted = True
    if options.plots is not None:
        plot(outcome, options.plots)
    close(outcome, printer)
    if options.json is not None:
        data = document(runner, description, (load, machine.load()))
        text = json.dumps(plain(data), indent=1, ensure_ascii=False) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
        else:
            Path(options.json).parent.mkdir(parents=True, exist_ok=True)
            Path(options.json).write_text(text)
    if outcome.interrupted:
        return 130
    return int(bool(outcome.failed) or any(v.word == "worse" for v in outcome.verdicts))


if __name__ == "__main__":
    sys.exit(main())
