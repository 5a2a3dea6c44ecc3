"""The cost of a server for its worker: import, start, threads, memory, descriptors.

Import: fresh interpreters take turns, timed from spawn to exit. The figure is the median over
rounds of the difference to an interpreter that imports nothing in the same round. Modules come from
a cache of bytecode, as in an installed package. Start: the time of the constructor, and of the
constructor and the first ping, in fresh processes and again in the same process. Threads, memory
and descriptors: measured in the process itself, before and after the start, and after requests.

Memory is PSS: private pages, and this process's share of each shared page. Every worker pays for
its private dirty pages. The rest of PSS are pages of libraries, which the workers of a machine
share. So PSS is measured with a worker alone, and again beside another worker.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.context import Context
from benchmarks.report.model import Bars, Cell, Report, Table, Target
from benchmarks.report.stats import median, spread
from benchmarks.rounds import PER_CONNECTION
from workerserver.loadgen._loadgen import Load

__all__ = ["QUESTION", "run"]

QUESTION = "What does a server add to a worker: import, start, threads, memory?"

REPOSITORY = Path(__file__).parents[2]
NOTHING = "pass"
ALONE = "import workerserver"
SERVER = "from workerserver import WorkerServer"
#: The measured imports, and their names in the table.
IMPORTS = {
    NOTHING: "nothing",
    "import asyncio": "asyncio",
    "import uvloop, httptools": "uvloop and httptools (with asyncio)",
    ALONE: "workerserver",
    SERVER: "workerserver and its server",
}
#: Kinds of benchmarks/subjects/footprint_probe.py, and their names in the tables.
KINDS = {
    "ours": "ours, no torch",
    "ours-torch": "ours, with torch",
    "torch": "torch's",
}
WORKER = "ours-torch"
BESIDE = "beside"
#: All probes, and their names in the tables.
NAMES = {**KINDS, BESIDE: "ours, with torch, beside another worker"}
TOP = 12
IMPORT_LIMIT = 60.0  # ms
START_LIMIT = 5.0  # ms
THREAD_LIMIT = 2
MEMORY_LIMIT = 4.0  # MiB
#: Of our compiled modules, in a worker that serves. A page has 4 KiB: below 64 is 60 at most.
OWN_RESIDENT_LIMIT = 904.0  # KiB
OWN_DIRTY_LIMIT = 64.0  # KiB
TORCHS_THREAD = "pt_workerserver"
IMPORTTIME = re.compile(r"import time:\s*(\d+) \|\s*(\d+) \| ( *)(\S+)")


@dataclass
class Imports:
    """For each statement and round: ms from spawn to exit, and ms of processor time."""

    wall: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def added(self, statement: str, times: Mapping[str, Sequence[float]]) -> list[float]:
        """The difference to NOTHING in the same round, in ms."""
        return [a - b for a, b in zip(times[statement], times[NOTHING], strict=True)]


def environment(folder: Path) -> dict[str, str]:
    """This process's environment, with the repository on the path and bytecode in *folder*."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONDONTWRITEBYTECODE" and not name.startswith("WORKERSERVER_")
    }
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}


def spawned(statement: str, variables: Mapping[str, str]) -> tuple[float, float]:
    """Ms from spawn to exit of an interpreter that runs *statement*, and its processor ms."""
    command = [sys.executable, "-c", statement]
    began = time.perf_counter()
    pid = os.posix_spawn(command[0], command, dict(variables))
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - began
    if status:
        raise RuntimeError(f"{statement!r} failed ({os.waitstatus_to_exitcode(status)})")
    return wall * 1e3, (usage.ru_utime + usage.ru_stime) * 1e3


def measure_imports(rounds: int, variables: Mapping[str, str]) -> Imports:
    found = Imports()
    for number in range(rounds + 1):
        for statement in IMPORTS:
            wall, cpu = spawned(statement, variables)
            if number:  # the first round fills the caches
                found.wall[statement].append(wall)
                found.cpu[statement].append(cpu)
    return found


def self_times(variables: Mapping[str, str]) -> dict[str, tuple[float, int]]:
    """For each top-level package: its modules' own ms, and their number; the slowest first."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", SERVER],
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    times: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    for own, _, _, name in IMPORTTIME.findall(done.stderr):
        package = name.partition(".")[0]
        times[package] += int(own)
        modules[package] += 1
    return {name: (own / 1e3, modules[name]) for name, own in times.most_common()}


@dataclass
class Probe:
    """One process's reports in order, see benchmarks/subjects/footprint_probe.py."""

    before: dict[str, Any]
    started: dict[str, Any]
    polled: dict[str, Any]
    first: dict[str, float]
    modules: float  # ms to import all modules that serving needs
    package: float = 0.0  # ms of these for ``import workerserver`` alone
    imported: dict[str, Any] | None = None
    #: KiB of our compiled modules: ``resident``, and ``dirty`` (private).
    own: dict[str, int] = field(default_factory=dict)
    later: list[dict[str, float]] = field(default_factory=list)

    def threads(self) -> Counter[str]:
        return Counter(self.polled["threads"]) - Counter(self.before["threads"])

    def added(self, what: str, until: str = "polled") -> float:
        """The growth of *what* (``pss``, ``dirty``) from the beginning to *until*, in MiB."""
        state = getattr(self, until)
        return float(state[what] - self.before[what]) / 1024


class Serving:
    """A probe that serves at *path*. *facts* has its reports so far."""

    def __init__(self, process: subprocess.Popen[str], path: str, errors: Path) -> None:
        self.process = process
        self.path = path
        self.errors = errors
        self.facts: dict[str, Any] = {}
        self.hear()

    def hear(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            reason = self.errors.read_text(encoding="utf-8").strip()[-2000:]
            raise RuntimeError(f"the probe ended ({status}): {reason}")
        self.facts |= json.loads(line)

    def finish(self) -> Probe:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.hear()
        return Probe(**self.facts)


@contextlib.contextmanager
def probe(kind: str, path: Path, variables: Mapping[str, str]) -> Iterator[Serving]:
    path.unlink(missing_ok=True)  # torch's server would not start on the last round's socket
    log = path.with_suffix(".err")
    with (
        open(log, "w", encoding="utf-8") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.subjects.footprint_probe", kind, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=variables,
            text=True,
            cwd=REPOSITORY,
        ) as process,
    ):
        try:
            yield Serving(process, str(path), log)
        finally:
            process.kill()


def probed(kind: str, folder: Path, pings: int, dumps: int, variables: Mapping[str, str]) -> Probe:
    with probe(kind, folder / kind, variables) as serving:
        ask(serving.path, "ping", pings)
        ask(serving.path, "dump_traceback", dumps)
        return serving.finish()


def ask(path: str, name: str, number: int) -> None:
    request = f"POST /handler/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    load = Load(path, request.encode(), requests=number, per_connection=PER_CONNECTION)
    result = load.run()
    if result.answered < number:
        raise RuntimeError(f"{name}: {result.answered} of {number} answered, {result.failed}")


def run(context: Context) -> Report:
    began = time.monotonic()
    variables = environment(context.folder)
    context.say("imports")
    imports = measure_imports(3 if context.quick else 3 * context.rounds, variables)
    packages = self_times(variables)
    pings, dumps = (500, 10) if context.quick else (10_000, 100)
    missing: dict[str, str] = {}
    found: dict[str, list[Probe]] = {name: [] for name in NAMES}
    with_torch = importlib.util.find_spec("torch") is not None
    if not with_torch:
        missing["torch"] = "torch is not installed"
    # An import of torch takes seconds, so fewer processes import torch.
    fewer = 1 if context.quick else (context.rounds + 1) // 2
    for number in range(1 if context.quick else context.rounds):
        for kind in KINDS:
            if kind != "ours" and (not with_torch or number >= fewer):
                continue
            context.say(f"{KINDS[kind]}, round {number + 1}")
            found[kind].append(probed(kind, context.folder, pings, dumps, variables))
    if with_torch:
        with probe(WORKER, context.folder / "other", variables):
            for number in range(fewer):
                context.say(f"{NAMES[BESIDE]}, round {number + 1}")
                found[BESIDE].append(probed(WORKER, context.folder, pings, dumps, variables))
    found = {name: probes for name, probes in found.items() if probes}
    memory = memory_table(found, pings, dumps)
    return Report(
        "footprint",
        QUESTION,
        [
            import_table(imports),
            package_table(packages),
            start_table(found),
            thread_table(found),
            memory,
        ],
        [import_bars(imports), memory_bars(found)],
        targets(imports, found),
        missing=missing,
        seconds=time.monotonic() - began,
    )


# --- tables


def rounded(values: Sequence[float], digits: int = 1) -> tuple[float, str]:
    """The median, and lowest and highest as text."""
    middle, low, high = spread(values)
    return round(middle, digits), f"{low:.{digits}f} to {high:.{digits}f}"


def import_table(found: Imports) -> Table:
    rows: list[list[Cell]] = []
    for statement, name in IMPORTS.items():
        more = rounded(found.added(statement, found.wall))
        cpu = rounded(found.added(statement, found.cpu))
        rows.append([name, round(median(found.wall[statement]), 1), *more, *cpu])
    return Table(
        "Import: fresh interpreters, without torch",
        ["imported", "spawn to exit ms", "added ms", "range", "CPU added ms", "range "],
        rows,
        ["'added' is against the interpreter that imports nothing, in the same round"],
    )


def package_table(packages: Mapping[str, tuple[float, int]]) -> Table:
    first = dict(list(packages.items())[:TOP])
    rest = [facts for name, facts in packages.items() if name not in first]
    rows: list[list[Cell]] = [[name, n, round(own, 1)] for name, (own, n) in first.items()]
    rows.append(["the rest", sum(n for _, n in rest), round(sum(own for own, _ in rest), 1)])
    return Table(
        f"Where the time of '{SERVER}' goes: modules' own time by package",
        ["package", "modules", "own ms"],
        rows,
        ["-X importtime, one run, which is slower for it; what starts the interpreter is in it"],
    )


def start_table(found: Mapping[str, Sequence[Probe]]) -> Table:
    rows: list[list[Cell]] = []
    for kind, probes in alone(found).items():
        for when, times in (
            ("first", [probe.first for probe in probes]),
            ("later", [times for probe in probes for times in probe.later]),
        ):
            if times:
                start = rounded([time["start"] for time in times], 2)
                ping = rounded([time["ping"] for time in times], 2)
                cpu = round(median([time["cpu"] for time in times]), 2)
                rows.append([KINDS[kind], when, len(times), *start, *ping, cpu])
    return Table(
        "Start of a server, its modules imported",
        [
            "server",
            "start",
            "of",
            "constructor ms",
            "range",
            "to the first pong ms",
            "range ",
            "CPU ms",
        ],
        rows,
        [
            "CPU: processor time of all threads, to the first pong",
            "torch's server is started once in a process: stopping it can deadlock",
        ],
    )


def thread_table(found: Mapping[str, Sequence[Probe]]) -> Table:
    rows: list[list[Cell]] = []
    for kind, probes in alone(found).items():
        threads = probes[-1].threads()
        torchs = threads.pop(TORCHS_THREAD, 0)
        descriptors = [p.polled["descriptors"] - p.before["descriptors"] for p in probes]
        rows.append(
            [
                KINDS[kind],
                sum(threads.values()),
                torchs,
                ", ".join(sorted(threads)) or None,
                int(median(descriptors)),
            ]
        )
    return Table(
        "Threads and descriptors added",
        ["server", "threads", "threads of torch's server", "names", "descriptors"],
        rows,
        [
            "with torch, ours keeps torch's own server as a fallback, whose threads sleep; "
            "WORKERSERVER_TORCH_FALLBACK=0 leaves it out"
        ],
    )


def alone(found: Mapping[str, Sequence[Probe]]) -> dict[str, Sequence[Probe]]:
    return {kind: found[kind] for kind in KINDS if kind in found}


STAGES = {"imported": "import", "started": "start", "polled": "requests"}


def stages(probes: Sequence[Probe], what: str) -> dict[str, list[float] | None]:
    """MiB that each stage added, by process; None for a process that doesn't exist."""
    found: dict[str, list[float] | None] = {}
    last = [0.0] * len(probes)
    for stage in STAGES:
        if any(getattr(probe, stage) is None for probe in probes):
            found[stage] = None
            continue
        until = [probe.added(what, stage) for probe in probes]
        found[stage] = [b - a for a, b in zip(last, until, strict=True)]
        last = until
    return found


def memory_table(found: Mapping[str, Sequence[Probe]], pings: int, dumps: int) -> Table:
    rows: list[list[Cell]] = []
    for kind, probes in found.items():
        by_stage = stages(probes, "pss")
        cells = [None if v is None else round(median(v), 2) for v in by_stage.values()]
        total = rounded([probe.added("pss") for probe in probes], 2)
        dirty = rounded([probe.added("dirty") for probe in probes], 2)
        rows.append([NAMES[kind], len(probes), *cells, *total, *dirty])
    return Table(
        "Memory added, MiB",
        ["server", "of", *STAGES.values(), "PSS in all", "range", "private dirty in all", "range "],
        rows,
        [
            f"requests: {pings:,} pings and {dumps} dumps",
            "pages that are not private dirty belong to libraries: a machine's workers share them",
            "without torch, import also loads asyncio and the like, which torch imports anyway",
        ],
    )


# --- plots


def import_bars(found: Imports) -> Bars:
    spreads = [spread(found.added(name, found.wall)) for name in IMPORTS if name != NOTHING]
    return Bars(
        "import",
        "Import in a fresh interpreter, without torch",
        "ms",
        [name for statement, name in IMPORTS.items() if statement != NOTHING],
        {"added": [middle for middle, _, _ in spreads]},
        {"added": [(low, high) for _, low, high in spreads]},
    )


def memory_bars(found: Mapping[str, Sequence[Probe]]) -> Bars:
    def bars(what: str) -> list[float | None]:
        return [median([probe.added(what) for probe in probes]) for probes in found.values()]

    return Bars(
        "memory",
        "Memory that a server adds",
        "MiB",
        [NAMES[kind] for kind in found],
        {"PSS": bars("pss"), "private dirty": bars("dirty")},
    )


# --- targets


def target(what: str, values: Sequence[float], limit: float, unit: str, note: str = "") -> Target:
    """A target that is met if the median is below *limit*."""
    if not values:
        return Target(what, None, limit, unit, met=False, note=note)
    middle, low, high = (round(value, 2) for value in spread(values))
    return Target(what, middle, limit, unit, middle < limit, low, high, note)


def targets(imports: Imports, found: Mapping[str, Sequence[Probe]]) -> list[Target]:
    whole = median(imports.added(SERVER, imports.wall))
    loop = median(imports.added("import uvloop, httptools", imports.wall))
    judged = [
        target(
            "import workerserver, without torch",
            imports.added(ALONE, imports.wall),
            IMPORT_LIMIT,
            "ms",
            f"with all that serving needs {whole:.0f} ms, of which {loop:.0f} are asyncio, uvloop "
            "and httptools",
        )
    ]
    for kind in ("ours", WORKER):
        probes = found.get(kind, ())
        why = "" if probes else "torch is not installed"
        name = KINDS[kind].removeprefix("ours, ")
        first = [probe.first["start"] for probe in probes]
        judged.append(target(f"first start, {name}", first, START_LIMIT, "ms", why))
        added = [sum(n for t, n in p.threads().items() if t != TORCHS_THREAD) for p in probes]
        judged.append(
            Target(
                f"threads added, {name}",
                max(added, default=None),
                THREAD_LIMIT,
                "threads",
                met=bool(added) and max(added) <= THREAD_LIMIT,
                note=why or ("torch's own server apart" if kind == WORKER else ""),
            )
        )
    for name, what in ((WORKER, "the only worker of"), (BESIDE, "each of two workers of")):
        probes = found.get(name, ())
        dirty = [probe.added("dirty") for probe in probes]
        note = f"PSS, of it {median(dirty):.1f} private dirty" if dirty else "torch isn't installed"
        total = [probe.added("pss") for probe in probes]
        judged.append(target(f"memory added to {what} a machine", total, MEMORY_LIMIT, "MiB", note))
    for what, limit in (("resident", OWN_RESIDENT_LIMIT), ("dirty", OWN_DIRTY_LIMIT)):
        pages = [float(probe.own[what]) for probe in found.get(WORKER, ())]
        name = f"our compiled modules, {'private dirty' if what == 'dirty' else what}"
        note = "" if pages else "torch isn't installed"
        judged.append(target(name, pages, limit, "KiB", note))
    return judged
