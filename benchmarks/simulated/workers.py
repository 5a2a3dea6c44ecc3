"""A job of thousands of workers, made from the answers of two real workers.

First this module records a real job of two ranks: rank 0 waits in an all_reduce, in one layer of
the model after the other, and rank 1 does not come. Then all ranks of a simulated job except one
give rank 0's answers, with only these changes: the rank, the pid, the times, and the list of the
process group's members. Each layer gives a different stack. ``simulated_workers.c`` serves any
Table.
"""

from __future__ import annotations

import array
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.subjects.servers import Server, compiled, launched
from workerserver.ranks import pack

__all__ = ["CONNECTIONS", "Job", "Recording", "Table", "listening", "record"]

#: Descriptors that simulated_workers.c needs besides its listeners.
CONNECTIONS = 3072

HEALTH = "GET /healthz"
TEXT = "POST /handler/dump_traceback"
JSON = f"{TEXT}?format=json"
DIGEST = f"{TEXT}?format=digest"
SUMMARY = "POST /handler/fr_summary"
TRACE = "POST /handler/fr_trace_json"
#: In a table: every other question. The answer is a worker's answer for an unknown handler.
ANYTHING = "*"
UNKNOWN = "POST /handler/no_such_handler"

#: The recorded job has to reach the wanted place within this time.
PATIENCE_SECONDS = 60.0
#: The simulated job has been hanging for this long at the first question.
HUNG_SECONDS = 60
#: All workers belong to one job.
JOB = b'"job":"simulated","job_from":"WORKERSERVER_JOB"'
#: All ranks enter a collective within this time.
SPREAD_NS = 50_000_000


# ---- the table


class Table:
    """The answers of many workers to each question. A question is "METHOD target", or the beginning
    of such a text and a "*". The first question that fits counts. If no question fits, there is no
    answer. Equal answers are kept once. :meth:`write` writes a file for simulated_workers.c."""

    def __init__(self, questions: Sequence[str]) -> None:
        self.questions = questions
        self._answers: dict[bytes, int] = {}
        self._cells = array.array("Q")

    def add(self, answers: Mapping[str, bytes]) -> None:
        """Add a worker, with its whole response to every question."""
        for question in self.questions:
            number = self._answers.setdefault(answers[question], len(self._answers))
            self._cells.append(number)

    def write(self, path: Path) -> None:
        questions = [question.encode() for question in self.questions]
        texts = [*questions, *self._answers]
        workers = len(self._cells) // len(questions)
        numbers = array.array("Q", (workers, len(questions), len(self._answers)))
        offset = (len(numbers) + 2 * len(texts) + len(self._cells)) * numbers.itemsize
        for text in texts:
            numbers.extend((offset, len(text)))
            offset += len(text)
        with path.open("wb") as file:
            (numbers + self._cells).tofile(file)
            file.writelines(texts)


@contextlib.contextmanager
def listening(table: Table, folder: Path, *, tcp: bool) -> Iterator[tuple[Server, list[int]]]:
    """The workers of *table*, at ``rank0.sock`` and so on in *folder*, which is made, or with *tcp*
    on the returned ports. The workers are stopped except when it is their turn."""
    folder.mkdir()
    path = folder / "table"
    table.write(path)
    program = compiled("simulated/workers", folder.parent)
    command = [program, str(path), "127.0.0.1" if tcp else str(folder)]
    with launched("simulated workers", str(path), command) as (server, said):
        yield server, said["ports"] or []


# ---- the recording


@dataclass(frozen=True)
class Recording:
    """Whole responses by question. *stacks*: rank 0's responses to TEXT, JSON and DIGEST in the
    first place where it waited, the second, and so on. *waiting*: rank 0's responses to the other
    questions in the last place. *behind*: all responses of the rank that did not come."""

    stacks: Sequence[Mapping[str, bytes]]
    waiting: Mapping[str, bytes]
    behind: Mapping[str, bytes]


class Rank:
    """A recorded process, and a connection to its server."""

    def __init__(self, server: Server) -> None:
        self.process = server.process
        self.path = server.path
        self.pid = server.pid
        self._socket = socket.socket(socket.AF_UNIX)
        server.signal(signal.SIGCONT)

    def connect(self) -> None:
        give_up = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self._socket.connect(self.path)
            except OSError:
                if time.monotonic() > give_up or self.process.poll() is not None:
                    raise
                time.sleep(0.02)

    def close(self) -> None:
        self._socket.close()

    def order(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def done(self) -> None:
        """Wait until the last order is carried out."""
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            raise RuntimeError("the recorded job has ended")

    def ask(self, question: str) -> bytes:
        """The whole response, byte by byte as received."""
        head = f"{question} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        self._socket.sendall(head.encode())
        answer = b""
        while (end := answer.find(b"\r\n\r\n")) < 0 or len(answer) < end + 4 + length(answer):
            part = self._socket.recv(1 << 16)
            if not part:
                raise RuntimeError(f"no whole answer to {question}")
            answer += part
        return answer

    def stacks(self, function: str) -> dict[str, bytes]:
        """The rank's stacks in all forms, taken while its main thread rests in *function*."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < give_up:
            found = {question: self.ask(question) for question in (DIGEST, JSON, TEXT)}
            (main,) = (
                thread
                for thread in json.loads(body(found[JSON]))["threads"]
                if thread["native_id"] == self.pid
            )
            resting = main["state"] == "S" and main["frames"][0]["function"] == function
            if resting and body(self.ask(DIGEST)) == body(found[DIGEST]):
                return found
            time.sleep(0.001)
        raise RuntimeError(f"the recorded job did not come to rest in {function}()")


def record(folder: Path, places: int) -> Recording:
    """The answers of a real job's ranks. Rank 0 answers in *places* places."""
    with contextlib.ExitStack() as stack:
        ranks = []
        for rank in range(2):
            path = str(folder / f"recorded{rank}")
            command = [sys.executable, "-m", "benchmarks.simulated.job", path, str(rank)]
            command += [str(places), str(folder / "recorded_store")]
            server, _ = stack.enter_context(
                launched("the recorded job", path, command, stdin=subprocess.PIPE)
            )
            ranks.append(stack.enter_context(contextlib.closing(Rank(server))))
        waiting, behind = ranks
        for each in ranks:
            each.connect()
        stacks = []
        for place in range(places):
            if place:
                behind.order("join")
                behind.done()
                waiting.done()
            waiting.order(str(place))
            stacks.append(waiting.stacks("all_reduce"))
        behind.order("stay")
        others = {HEALTH: HEALTH, SUMMARY: SUMMARY, TRACE: TRACE, ANYTHING: UNKNOWN}
        return Recording(
            stacks,
            {name: waiting.ask(question) for name, question in others.items()},
            {
                **behind.stacks("compute"),
                **{name: behind.ask(question) for name, question in others.items()},
            },
        )


def length(response: bytes) -> int:
    """The length of the body of *response*."""
    match = re.search(rb"\r\ncontent-length: *(\d+)\r\n", response, re.IGNORECASE)
    if match is None:
        raise RuntimeError(f"no length: {response[:200]!r}")
    return int(match[1])


def body(response: bytes) -> bytes:
    return response.partition(b"\r\n\r\n")[2]


# ---- the simulated job


@dataclass(frozen=True)
class Job:
    """One of *ranks* ranks is behind. The others wait in *stacks* different layers, as the stages
    of a pipeline do: a run of neighbouring ranks waits in the same layer."""

    ranks: int
    stacks: int

    @property
    def behind(self) -> int:
        return self.ranks // 3

    def place(self, rank: int) -> int:
        return rank * self.stacks // self.ranks

    def groups(self) -> set[frozenset[int]]:
        """The sets of ranks that have the same stack."""
        found: dict[int, set[int]] = {}
        for rank in range(self.ranks):
            found.setdefault(-1 if rank == self.behind else self.place(rank), set()).add(rank)
        return set(map(frozenset, found.values()))

    def answers(self, recording: Recording) -> Iterator[dict[str, bytes]]:
        """The answers of each rank."""
        listed = json.dumps(list(range(self.ranks))).encode()
        waiting, behind = (
            # Only two ranks are asked for their traces, so equal times do no harm.
            {**each, TRACE: resized(replaced(earlier(each[TRACE]), rb"\[0, 1\]", listed))}
            for each in (recording.waiting, recording.behind)
        )
        members = pack(range(self.ranks)).encode()
        for rank in range(self.ranks):
            if rank == self.behind:
                found = dict(behind)
            else:
                found = {**waiting, **recording.stacks[self.place(rank)]}
            found[HEALTH] = health(found[HEALTH], rank, self.ranks)
            found[SUMMARY] = summary(found[SUMMARY], rank, members)
            yield found

    def table(self, recording: Recording) -> Table:
        table = Table((HEALTH, DIGEST, SUMMARY, JSON, TRACE, TEXT, ANYTHING))
        for answers in self.answers(recording):
            table.add(answers)
        return table


def health(response: bytes, rank: int, ranks: int) -> bytes:
    response = replaced(response, rb'"rank":\d+', b'"rank":%d' % rank)
    response = replaced(response, rb'"pid":\d+', b'"pid":%d' % (10_000 + rank))
    response = replaced(response, rb'"agent":"[^"]*"', b'"agent":"9999:1"')
    response = replaced(response, rb'"job":"[^"]*","job_from":"[^"]*"', JOB)
    response = replaced(response, rb'"world_size":\d+', b'"world_size":%d' % ranks)
    response = replaced(response, rb'"local_rank":\d+', b'"local_rank":%d' % rank)
    return resized(replaced(response, rb'("step_age_s":)\d+', rb"\g<1>%d" % HUNG_SECONDS))


def summary(response: bytes, rank: int, members: bytes) -> bytes:
    response = earlier(response, rank * 7_919 % SPREAD_NS)
    response = replaced(response, rb'"rank":\d+', b'"rank":%d' % rank)
    return resized(replaced(response, rb'"ranks":"0-1"', b'"ranks":"%s"' % members))


def earlier(response: bytes, more: int = 0) -> bytes:
    """*response* with all times earlier, by HUNG_SECONDS and *more* nanoseconds."""
    shift = HUNG_SECONDS * 10**9 + more
    return re.sub(rb'(_ns": ?)(\d{19})\b', lambda m: b"%s%d" % (m[1], int(m[2]) - shift), response)


def replaced(response: bytes, pattern: bytes, text: bytes) -> bytes:
    """*response* with *text* instead of the only match of *pattern*."""
    response, count = re.subn(pattern, text, response)
    if count != 1:
        raise RuntimeError(f"{count} times {pattern!r}: {response[:500]!r}")
    return response


def resized(response: bytes) -> bytes:
    """*response* with the right length of its body in the head."""
    size = b"%d" % len(body(response))
    return replaced(response, rb"(?i)(?<=\r\ncontent-length: )\d+", size)
