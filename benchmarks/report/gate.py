"""The regression gate: the ratios of this run against those of ``baseline.json``.

The gate compares only ratios (of ours to torch's, or to the bare epoll loop's). If the machine is
faster or slower for a while, most of that affects both sides. The rest is noise, and these rules
deal with the noise:

- The baseline holds (median, lowest, highest) of the rounds of several whole runs. *Recorded* is
  the median of the runs' medians.
- The tolerance is the highest recorded round divided by *recorded*, at least FLOOR and at most
  CEILING. But the limit is never less than MARGIN times the worst recorded run. The limit is
  recorded x tolerance, or recorded + SLACK for ratios near zero.
- If the median of a key is above recorded x sqrt(tolerance), the suite of that key runs again, up
  to ATTEMPTS times in all. The key is *worse* if the medians of most attempts are above the limit.
  So one bad moment of the machine is not enough, and a run near the limit gets a second look.
- New keys and missing keys are reported and don't fail. A *better* key (below recorded / tolerance)
  doesn't fail either, but should be recorded anew.

The table shows a simulation (``python -m benchmarks.report.gate``). The columns are true ratios, as
multiples of the recorded ratio. The cells say how many of 1,000 keys the gate calls worse. A run
has 5 rounds, the baseline has 3 runs, the noise is log-normal. Runs differ from each other half as
much as rounds do. One round in 20 is disturbed, on average by a factor of exp(0.4).

===============  ====  =====  =====  =====  =====  =====  ====
noise of rounds   x 1  x 1.1  x 1.2  x 1.3  x 1.4  x 1.5   x 2
===============  ====  =====  =====  =====  =====  =====  ====
2 %               0.0    0.0    328    823   1000   1000  1000
5 %               0.0    1.2    334    807    993   1000  1000
10 %              0.5     20    250    680    929    992  1000
15 %              2.1     36    191    495    776    923  1000
20 %              7.4     55    189    408    630    812   998
50 %               70    118    177    245    321    398   722
===============  ====  =====  =====  =====  =====  =====  ====

So with 20 keys of up to 10 % noise, 1 run of 100 gives a false alarm, and a key that is 1.5 times
as slow is found. A key with much more noise than 15 % has no place in ``Report.ratios``.
"""

from __future__ import annotations

import json
import math
import random
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.report.model import Report, Table

__all__ = [
    "ATTEMPTS",
    "BASELINE",
    "Baseline",
    "Verdict",
    "collected",
    "differences",
    "judge",
    "suspects",
    "table",
]

BASELINE = Path(__file__).parents[1] / "baseline.json"
FLOOR = 1.2
CEILING = 1.3
MARGIN = 1.1
SLACK = 0.005
ATTEMPTS = 5

Triple = tuple[float, float, float]
"""Median, lowest, highest of the rounds of one run."""
Ratios = Mapping[str, Triple]
Word = Literal["same", "better", "worse", "new", "gone"]


@dataclass(frozen=True)
class Recorded:
    """One key of the baseline: a triple for each run, and at least one triple."""

    runs: Sequence[Triple]

    @property
    def median(self) -> float:
        return statistics.median(run[0] for run in self.runs)

    @property
    def whole(self) -> Triple:
        """The median, and the lowest and the highest of all rounds."""
        return self.median, min(run[1] for run in self.runs), max(run[2] for run in self.runs)

    @property
    def highest(self) -> float:
        """The median of the worst run."""
        return max(run[0] for run in self.runs)

    @property
    def tolerance(self) -> float:
        if not self.median:
            return FLOOR
        least = max(FLOOR, MARGIN * self.highest / self.median)
        return max(least, min(self.whole[2] / self.median, CEILING))

    @property
    def noisy(self) -> bool:
        """Whether whole runs differed so much that the limit is above the usual one."""
        return self.tolerance > CEILING

    @property
    def limit(self) -> float:
        return max(self.median * self.tolerance, self.median + SLACK)

    @property
    def bar(self) -> float:
        """Above this median, a second look is worth the time."""
        return max(self.median * math.sqrt(self.tolerance), self.median + SLACK)


@dataclass(frozen=True)
class Baseline:
    """*suites* has an entry for every recorded suite; the entry is empty without ratios."""

    suites: Mapping[str, Mapping[str, Recorded]] = field(default_factory=dict)
    rounds: int = 0
    quick: bool = False
    machine: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """An empty one if there is no such file."""
        if not path.exists():
            return cls()
        data = json.loads(path.read_text())
        suites = {
            name: {
                key: Recorded([(run[0], run[1], run[2]) for run in runs])
                for key, runs in keys.items()
            }
            for name, keys in data["suites"].items()
        }
        return cls(suites, data["rounds"], data["quick"], data["machine"])

    def write(self, path: Path) -> None:
        """Each run on a line, so that a diff shows what changed."""
        data = {
            "machine": dict(self.machine),
            "rounds": self.rounds,
            "quick": self.quick,
            "suites": {
                name: {
                    key: [[float(f"{value:.5g}") for value in run] for run in recorded.runs]
                    for key, recorded in sorted(keys.items())
                }
                for name, keys in sorted(self.suites.items())
            },
        }
        text = json.dumps(data, indent=1)
        numbers = re.compile(r"\[\s+([-+.e0-9,\s]+?)\s+\]")
        text = numbers.sub(lambda match: f"[{' '.join(match[1].split())}]", text)
        path.write_text(text + "\n")

    def merged(self, newer: Baseline) -> Baseline:
        """This baseline, with *newer*'s suites instead of the suites of the same name."""
        return Baseline({**self.suites, **newer.suites}, newer.rounds, newer.quick, newer.machine)

    def short(self, names: Iterable[str]) -> list[str]:
        """Those of *names* that are suites with recorded ratios; all if nothing is recorded."""
        names = list(names)
        return [name for name in names if self.suites.get(name)] or names


def collected(runs: Sequence[Report]) -> dict[str, dict[str, Recorded]]:
    """The baseline's *suites*, from the reports of several runs in their order."""
    found: dict[str, dict[str, list[Triple]]] = {}
    for report in runs:
        keys = found.setdefault(report.name, {})
        for key, triple in report.ratios.items():
            keys.setdefault(key, []).append(triple)
    return {
        name: {key: Recorded(triples) for key, triples in keys.items()}
        for name, keys in found.items()
    }


@dataclass(frozen=True)
class Verdict:
    suite: str
    key: str
    word: Word
    recorded: Recorded | None
    attempts: Sequence[Triple]
    open: bool = False
    """The gate's word on one key. Another attempt may change the word."""

    @property
    def now(self) -> Triple | None:
        """The median of the attempts' medians, and the lowest and highest of all their rounds."""
        if not self.attempts:
            return None
        medians, lowest, highest = zip(*self.attempts, strict=True)
        return statistics.median(medians), min(lowest), max(highest)


def verdict(suite: str, key: str, recorded: Recorded, attempts: Sequence[Triple]) -> Verdict:
    medians = [attempt[0] for attempt in attempts]
    above = sum(median > recorded.limit for median in medians)
    middle = statistics.median(medians)
    most = ATTEMPTS // 2 + 1
    word: Word = "same"
    if above >= most or (above and len(medians) < ATTEMPTS and above == len(medians)):
        word = "worse"
    elif middle < min(recorded.median / recorded.tolerance, recorded.median - SLACK):
        word = "better"
    left = ATTEMPTS - len(medians)
    undecided = medians[0] > recorded.bar and above < most <= above + left
    return Verdict(suite, key, word, recorded, attempts, open=undecided)


def judge(baseline: Baseline, attempts: Mapping[str, Sequence[Ratios]]) -> list[Verdict]:
    """*attempts* maps each suite to its ratios, once for each run of the suite."""
    found = []
    for suite, runs in attempts.items():
        known = baseline.suites.get(suite, {})
        keys = dict.fromkeys([*known, *(key for run in runs for key in run)])
        for key in keys:
            now = [run[key] for run in runs if key in run]
            recorded = known.get(key)
            if recorded is None:
                found.append(Verdict(suite, key, "new", None, now))
            elif not now:
                found.append(Verdict(suite, key, "gone", recorded, ()))
            else:
                found.append(verdict(suite, key, recorded, now))
    return found


def suspects(verdicts: Sequence[Verdict]) -> list[str]:
    """The suites that should run again."""
    return list(dict.fromkeys(verdict.suite for verdict in verdicts if verdict.open))


def differences(baseline: Baseline, rounds: int, quick: bool, now: Mapping[str, Any]) -> list[str]:
    """The differences between now and the recording of the baseline, one sentence each."""
    if not baseline.suites:
        return ["nothing is recorded yet: --save-baseline"]
    found = []
    if (baseline.rounds, baseline.quick) != (rounds, quick):
        settings = f"{baseline.rounds} rounds{', quick' if baseline.quick else ''}"
        found.append(f"recorded with other settings: {settings}")
    for name in ("cpu", "cores", "python"):
        if name in baseline.machine and baseline.machine[name] != now[name]:
            found.append(f"recorded with another {name}: {baseline.machine[name]}")
    for name, version in baseline.machine.get("packages", {}).items():
        if name != "workerserver" and now["packages"].get(name) != version:
            found.append(f"recorded with another {name}: {version}")
    return found


def table(verdicts: Sequence[Verdict], notes: Sequence[str] = ()) -> Table:
    noisy = [verdict.key for verdict in verdicts if verdict.recorded and verdict.recorded.noisy]
    counts = Counter(verdict.word for verdict in verdicts)
    notes = [*notes, "below 1 is better; recorded and now: the median (lowest to highest round)"]
    if noisy:
        notes.append(f"too noisy when they were recorded for the usual limit: {', '.join(noisy)}")
    if counts["better"]:
        notes.append("better: record it anew with --save-baseline")
    return Table(
        "Regression gate: " + ", ".join(f"{count} {word}" for word, count in counts.items()),
        ("suite", "key", "recorded", "now", "limit", "runs", "verdict"),
        [
            (
                verdict.suite,
                verdict.key,
                spread(verdict.recorded.whole) if verdict.recorded else None,
                spread(verdict.now) if verdict.now else None,
                verdict.recorded.limit if verdict.recorded else None,
                len(verdict.attempts),
                verdict.word.upper() if verdict.word == "worse" else verdict.word,
            )
            for verdict in verdicts
        ],
        notes,
    )


def spread(triple: Triple) -> str:
    return "{:.3g} ({:.3g} to {:.3g})".format(*triple)


def simulated(chosen: random.Random, noise: float, factor: float, rounds: int, runs: int) -> bool:
    """Whether the gate calls a key worse whose true ratio is *factor* times the recorded one."""

    def run(factor: float) -> Triple:
        level = math.log(factor) + chosen.gauss(0, noise / 2)
        values = [
            math.exp(
                level
                + chosen.gauss(0, noise)
                + (chosen.expovariate(2.5) if chosen.random() < 0.05 else 0)
            )
            for _ in range(rounds)
        ]
        return statistics.median(values), min(values), max(values)

    recorded = Recorded([run(1.0) for _ in range(runs)])
    attempts = [run(factor)]
    while (found := verdict("", "", recorded, attempts)).open:
        attempts.append(run(factor))
    return found.word == "worse"


def main(keys: int = 10_000) -> None:
    factors = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 2.0)
    print("noise of a round |", *(f"x {factor:<4g}" for factor in factors))
    for noise in (0.02, 0.05, 0.1, 0.15, 0.2, 0.5):
        print(f"{noise:>14.0%}   |", end="")
        for factor in factors:
            chosen = random.Random(1)
            worse = sum(simulated(chosen, noise, factor, 5, 3) for _ in range(keys))
            print(f" {1000 * worse / keys:6.1f}", end="")
        print()


if __name__ == "__main__":
    main()
