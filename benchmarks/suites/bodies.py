"""Large bodies: a reply as large as a profile, to a fast and to a slow reader, and uploads."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.context import Context
from benchmarks.report.model import Bars, Report, Table
from benchmarks.report.stats import median, ratio, spread
from benchmarks.subjects.servers import Missing, Server, served
from workerserver.loadgen._loadgen import Histogram, Load, Result

QUESTION = "What do large bodies cost, through each transport?"

MIB = 1 << 20
SIZE = 64 * MIB
#: Just below the limit of 10 MiB.
UPLOAD = 9 * MIB
#: Replies, or uploads, in a round, one after the other.
REPLIES = 3
#: Pings per second on other connections. Each ping is sent at a fixed time.
RATE = 200.0
CONNECTIONS = 16
TIMEOUT_SECONDS = 20.0
#: The slow reader reads this many bytes per second, and goes away after SLOW_SECONDS.
SLOW = 1 * MIB
SLOW_SECONDS = 3.0


class Subject(NamedTuple):
    kind: str
    tcp: bool

    @property
    def name(self) -> str:
        return f"{self.kind} {'TCP' if self.tcp else 'Unix'}"


SUBJECTS = tuple(
    Subject(kind, tcp)
    for kind in ("ours", "ours-uvloop", "torch", "uvicorn", "granian")
    for tcp in (False, True)
)

#: Subjects that a short run leaves out, because no ratio needs them.
LONG = ("uvicorn", "granian")


@dataclass
class Found:
    """One subject's figures. Each list has one value per round."""

    reply: list[float] = field(default_factory=list)  # MiB/s
    reply_memory: list[float] = field(default_factory=list)  # MiB
    upload: list[float] = field(default_factory=list)
    upload_memory: list[float] = field(default_factory=list)
    pings: Histogram = field(default_factory=Histogram)  # beside replies
    slow_pings: Histogram = field(default_factory=Histogram)  # beside a slow reader
    slow_memory: float | None = None
    slow_read: float = 0.0  # MiB
    left: float | None = None
    """MiB more than before the reply, shortly after the slow reader went away."""
    problem: str = ""


class Failed(Exception):
    """A subject failed at a task; the text says at which."""


def status(pid: int, name: str) -> float:
    """The value of a line of /proc/PID/status, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise LookupError(name)


class Memory:
    """The growth of *pid*'s resident memory since construction, in MiB: peak and present value."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # resets VmHWM, see proc(5)
        self._before = status(pid, "VmRSS")

    def peak(self) -> float:
        return status(self._pid, "VmHWM") - self._before

    def now(self) -> float:
        return status(self._pid, "VmRSS") - self._before


def whole(result: Result, number: int, received: int = 0) -> Result:
    """*result*, if all *number* requests got a 200 and *received* bytes came; else Failed."""
    if result.answered != number or result.statuses != {200: number} or result.received < received:
        raise Failed(
            f"{result.answered} of {number} answered, {result.received} bytes, "
            f"{result.statuses or ''} {result.failed or ''}"
        )
    return result


@contextlib.contextmanager
def pinged(server: Server, into: Histogram) -> Iterator[None]:
    """Send pings on other connections during the block. Failed unless all are answered."""
    load = Load(
        server.address,
        server.request("ping"),
        connections=CONNECTIONS,
        seconds=3600.0,
        rate=RATE,
        timeout=TIMEOUT_SECONDS,
        per_connection=25,
    )
    thread = threading.Thread(target=load.run)
    thread.start()
    try:
        yield
    finally:
        load.stop()
        thread.join()
    result = load.result
    if result is None or result.failed or set(result.statuses) - {200}:
        raise Failed(
            f"pings: {result.failed if result else ''} {result.statuses if result else ''}"
        )
    into.merge(result.response)


def reply(server: Server, size: int, found: Found) -> None:
    memory = Memory(server.pid)
    load = Load(server.address, server.request("body"), requests=REPLIES, timeout=TIMEOUT_SECONDS)
    result = whole(load.run(), REPLIES, REPLIES * size)
    found.reply.append(REPLIES * size / MIB / result.seconds)
    found.reply_memory.append(memory.peak())
    with pinged(server, found.pings):
        load = Load(
            server.address, server.request("body"), requests=REPLIES, timeout=TIMEOUT_SECONDS
        )
        whole(load.run(), REPLIES, REPLIES * size)


def upload(server: Server, size: int, found: Found) -> None:
    memory = Memory(server.pid)
    request = server.request("upload", b"x" * size)
    load = Load(server.address, request, requests=REPLIES, timeout=TIMEOUT_SECONDS)
    result = whole(load.run(), REPLIES)
    found.upload.append(REPLIES * size / MIB / result.seconds)
    found.upload_memory.append(memory.peak())


def slow(server: Server, seconds: float, found: Found) -> None:
    """One reader reads SLOW bytes per second and goes away with the rest unread."""
    memory = Memory(server.pid)
    with (
        pinged(server, found.slow_pings),
        socket.socket(socket.AF_INET if server.port is not None else socket.AF_UNIX) as reader,
    ):
        reader.settimeout(TIMEOUT_SECONDS)
        reader.connect(server.address)
        reader.sendall(server.request("body"))
        begun = time.monotonic()
        received = 0
        while (now := time.monotonic() - begun) < seconds:
            wanted = int(now * SLOW) - received
            if wanted > 0:
                new = len(reader.recv(wanted))
                if not new:
                    raise Failed(f"closed after {received} bytes to a slow reader")
                received += new
            time.sleep(0.005)
        found.slow_memory = memory.peak()
        found.slow_read = received / MIB
    time.sleep(0.2)
    found.left = memory.now()


def measure(
    subjects: Sequence[Subject], size: int, upload_size: int, context: Context
) -> tuple[dict[Subject, Found], dict[str, str]]:
    found: dict[Subject, Found] = {}
    missing: dict[str, str] = {}
    seconds = SLOW_SECONDS / 6 if context.quick else SLOW_SECONDS
    with contextlib.ExitStack() as stack:
        servers: dict[Subject, Server] = {}
        for subject in subjects:
            try:
                servers[subject] = stack.enter_context(
                    served(subject.kind, folder=context.folder, tcp=subject.tcp, body=size)
                )
                found[subject] = Found()
            except (Missing, RuntimeError) as error:
                missing[subject.kind] = str(error)

        def each(act: Callable[[Server, Found], None]) -> None:
            for subject, here in found.items():
                if here.problem:
                    continue
                with servers[subject].awake():
                    try:
                        act(servers[subject], here)
                    except (Failed, OSError) as error:
                        here.problem = str(error)

        context.say("warming up")
        each(lambda server, _: reply(server, size, Found()))
        for number in range(context.rounds):
            context.say(f"round {number + 1}")
            each(lambda server, here: reply(server, size, here))
            each(lambda server, here: upload(server, upload_size, here))
        context.say("slow readers")
        each(lambda server, here: slow(server, seconds, here))
    return found, missing


def run(
    context: Context,
    subjects: Sequence[Subject] | None = None,
    size: int = SIZE,
    upload_size: int = UPLOAD,
) -> Report:
    if subjects is None:
        subjects = [one for one in SUBJECTS if not context.quick or one.kind not in LONG]
    found, missing = measure(subjects, size, upload_size, context)
    good = {subject: here for subject, here in found.items() if not here.problem}
    problems = [
        f"{subject.name}: {here.problem}" for subject, here in found.items() if here.problem
    ]
    problems += [f"{kind}: missing: {reason}" for kind, reason in missing.items()]
    if context.quick:
        problems.append(f"Left out in a short run: {', '.join(LONG)}.")
    return Report(
        "bodies",
        QUESTION,
        (*reply_tables(found, size, problems), upload_table(found, upload_size, problems)),
        (speed_plot(good, size, upload_size), memory_plot(good)) if good else (),
        (),
        ratios(good),
        missing,
    )


Cells = list[str | int | float | None]


def middle(values: Sequence[float]) -> float | None:
    return round(median(values), 1) if values else None


def most(values: Sequence[float]) -> float | None:
    """The largest value of the rounds: later rounds reuse memory that the allocator kept."""
    return round(max(values), 1) if values else None


def ms(pings: Histogram, percentile: float) -> float | None:
    return round(pings.percentile(percentile) / 1e6, 3) if pings.count else None


def reply_tables(
    found: Mapping[Subject, Found], size: int, problems: Sequence[str]
) -> Iterator[Table]:
    rows: list[Cells] = []
    slow_rows: list[Cells] = []
    for subject, here in found.items():
        figures = [middle(here.reply), most(here.reply_memory)]
        pings = [ms(here.pings, 50.0), ms(here.pings, 99.0)]
        slowly = [here.slow_memory, here.left, here.slow_read]
        slowly = [None if value is None else round(value, 1) for value in slowly]
        slow_pings = [ms(here.slow_pings, 50.0), ms(here.slow_pings, 99.0)]
        rows.append([subject.name, *([None] * 4 if here.problem else [*figures, *pings])])
        slow_rows.append([subject.name, *([None] * 5 if here.problem else [*slowly, *slow_pings])])
    yield Table(
        f"A reply of {size / MIB:g} MiB",
        ("subject", "MiB/s", "peak memory more MiB", "ping p50 ms", "ping p99 ms"),
        rows,
        (
            f"{REPLIES} replies one after the other on one connection, medians of the rounds; "
            "client and server where the scheduler puts them. The server already has the body: the "
            "memory is what a reply takes beyond the body, in the round with the highest figure.",
            f"Pings: {RATE:g} per second on other connections while replies go out, all rounds.",
            *problems,
        ),
    )
    yield Table(
        f"A reply of {size / MIB:g} MiB to a reader of {SLOW / MIB:g} MiB/s",
        (
            "subject",
            "peak memory more MiB",
            "still more after it left MiB",
            "read MiB",
            "ping p50 ms",
            "ping p99 ms",
        ),
        slow_rows,
        ("The reader goes away with most of the reply unread.", *problems),
    )


def upload_table(found: Mapping[Subject, Found], size: int, problems: Sequence[str]) -> Table:
    rows: list[Cells] = []
    for subject, here in found.items():
        figures = [middle(here.upload), most(here.upload_memory)]
        rows.append([subject.name, *([None] * 2 if here.problem else figures)])
    return Table(
        f"A POST of {size / MIB:g} MiB",
        ("subject", "MiB/s", "peak memory more MiB"),
        rows,
        (
            "The handler takes the whole body and answers its length. ours, ours-uvloop: bytes; "
            "torch: str, decoded from UTF-8; uvicorn and granian: pieces, counted and dropped.",
            *problems,
        ),
    )


def speed_plot(good: Mapping[Subject, Found], size: int, upload_size: int) -> Bars:
    lists = {
        f"reply of {size / MIB:g} MiB": [here.reply for here in good.values()],
        f"POST of {upload_size / MIB:g} MiB": [here.upload for here in good.values()],
    }
    return Bars(
        "bodies-speed",
        "Large bodies",
        "MiB/s",
        [subject.name for subject in good],
        {label: [median(values) for values in each] for label, each in lists.items()},
        {label: [spread(values)[1:] for values in each] for label, each in lists.items()},
    )


def memory_plot(good: Mapping[Subject, Found]) -> Bars:
    return Bars(
        "bodies-memory",
        "Memory that the server takes beyond the body it has",
        "MiB",
        [subject.name for subject in good],
        {
            "reply": [most(here.reply_memory) for here in good.values()],
            "reply to a slow reader": [here.slow_memory for here in good.values()],
            "POST": [most(here.upload_memory) for here in good.values()],
        },
    )


def ratios(good: Mapping[Subject, Found]) -> dict[str, tuple[float, float, float]]:
    """Seconds for a body, relative to torch's: below 1 is better."""
    compared = {}
    for subject, own in good.items():
        peer = good.get(Subject("torch", subject.tcp))
        if subject.kind.startswith("ours") and peer is not None:
            transport = "TCP" if subject.tcp else "Unix"
            for name in ("reply", "upload"):
                # Figures are MiB/s, so the peer's is divided by ours.
                one = ratio(getattr(peer, name), getattr(own, name))
                compared[f"bodies {name} {transport} {subject.kind}/torch"] = one
    return compared
