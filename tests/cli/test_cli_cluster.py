"""``workerserver diagnose``, ``stacks``, ``fr``, ``ping``: whole commands on served jobs.

The jobs are recorded ones (``_recordings``), each rank's answers given by a server of ours; and
processes of their own where it is about them.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.jobs.peers import answering, http, make_socket, peer
from support.jobs.recordings import recording
from support.jobs.replaying import answer, replayed, replaying
from support.jobs.workers import HEALTH, Canned, good, health
from support.lifecycle import environment

from workerserver.cli import console, main
from workerserver.cluster.judge.sentences import SENTENCES
from workerserver.http.registry import Registry
from workerserver.server import WorkerServer
from workerserver.types import Response

EVIL = "\x1b[2J\u202e\x9b"
TORCH = """
from torch._C._distributed_c10d import _WorkerServer
import sys
server = _WorkerServer(sys.argv[1])
print("on", flush=True)
sys.stdin.read()
server.shutdown()
"""


@pytest.fixture
def job(folder: Path, no_leaks: None) -> Iterator[Callable[[str], str]]:
    """``job(name)``: serves a recording's ranks; gives the target that they are found by."""
    with replaying(folder) as start:
        yield start


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """``run(command, word...)``: its exit status and what it wrote to stdout."""

    def call(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        status = main(words)
        return status, capsys.readouterr().out

    return call


Run = Callable[..., tuple[int, str]]
Job = Callable[[str], str]
SOON = ("--interval", "0.05")


# ---- diagnose


def test_the_verdict(job: Job, run: Run) -> None:
    target = job("asleep-ours")
    status, out = run("diagnose", target, *SOON)
    assert status == 1
    lines = out.splitlines()
    assert lines[0].startswith("rank 2 has not entered all_reduce #6 of default_pg; ")
    assert lines[0].endswith("it stands in compute(), scenes.py:39")
    assert lines[2].startswith("rank 2 (")
    assert lines[2].endswith("rank2.sock): behind")
    assert "  operation:     all_reduce #6 of default_pg" in lines
    (place,) = (line for line in lines if line.startswith("  stands in:"))
    assert place.endswith("scenes.py:39 compute, in sleep")
    assert lines[-1].startswith("4 of 4 ranks answered; ")
    assert 12 <= len(lines) <= 20
    assert len(set(lines) - {""}) == len([line for line in lines if line])
    assert "\x1b" not in out


def test_all_that_is_behind_the_verdict(job: Job, run: Run) -> None:
    target = job("asleep-ours")
    for option in ("-v", "--all"):
        status, out = run("diagnose", target, option, *SOON)
        lines = out.splitlines()
        assert status == 1
        assert lines[0].startswith("rank 2 has not entered all_reduce #6 of default_pg; ")
        assert lines[1].startswith("4 of 4 ranks answered; ")
        assert lines[3].endswith("rank2.sock): behind")
        assert "  collective:     all_reduce #6" in lines
        assert "rank 2" in lines
        assert "ranks 0-1,3 (3 in all)" in lines


def test_the_verdict_as_json(job: Job, run: Run) -> None:
    status, out = run("diagnose", job("asleep-ours"), "--json", *SOON)
    fields = json.loads(out)
    assert status == fields["status"] == 1
    assert fields.keys() == {
        "verdict", "status", "ranks", "responded", "unreachable", "suspects", "stragglers",
        "groups", "process_groups", "problems", "progress", "again_s", "not_looked_at", "time",
        "cost", "job", "leftovers", "notes", "other_jobs", "schema_version",
    }  # fmt: skip
    assert (fields["ranks"], fields["responded"], fields["unreachable"]) == (4, 4, [])
    (suspect,) = fields["suspects"]
    assert suspect.keys() == {
        "rank", "host", "address", "reason", "process_group", "collective", "seq", "location",
        "call", "gil_holder", "step", "step_age_s", "evidence", "waits_for",
        "deadlock",
    }  # fmt: skip
    told = (suspect["rank"], suspect["reason"], suspect["collective"], suspect["seq"])
    assert told == (2, "behind", "all_reduce", 6)
    assert suspect["location"].endswith(" compute")
    assert [(each["ranks"], each["count"]) for each in fields["groups"]] == [("2", 1), ("0-1,3", 3)]
    assert fields["cost"].keys() == {"rounds", "seconds", "questions", "bytes_received"}
    assert fields["cost"]["rounds"] in (1, 2)  # by how long the ranks have been up


def test_a_healthy_job(job: Job, run: Run) -> None:
    status, out = run("diagnose", job("healthy-ours"), *SOON)
    assert (status, out.splitlines()[0].partition(";")[0]) == (0, "no rank is stuck")


def test_nobody_answers(folder: Path, run: Run) -> None:
    make_socket(folder / "rank0.sock")
    status, out = run("diagnose", "./rank{rank}.sock", *SOON)
    assert (status, out) == (3, "the job has ended: nobody listens at ./rank0.sock\n")
    with peer(folder / "rank1.sock", lambda connection: None):
        status, out = run("diagnose", "./rank{rank}.sock", *SOON)
    assert status == 2
    assert out.startswith("could not tell: no rank gave a usable answer\n")
    assert "rank 0 (./rank0.sock): unreachable: connection refused" in out


def test_a_rank_that_nobody_found(job: Job, run: Run) -> None:
    status, out = run("diagnose", job("asleep-ours"), "--world-size", "5", "--json", *SOON)
    fields = json.loads(out)
    assert (status, fields["ranks"], fields["responded"]) == (1, 5, 4)
    assert [(each["rank"], each["reason"]) for each in fields["unreachable"]] == [(4, "missing")]


# ---- stacks


def test_groups(job: Job, run: Run) -> None:
    target = job("asleep-ours")
    status, out = run("stacks", target)
    assert status == 0
    head, _, *lines = out.splitlines()
    assert head.startswith("4 of 4 ranks answered, different stacks: 2; ")
    assert lines.index("rank 2") < lines.index("ranks 0-1,3 (3 in all)")
    assert lines[1] == "  main"
    assert "compute" in lines[2]
    status, out = run("stacks", target, "--json", "--rounds", "2", *SOON)
    fields = json.loads(out)
    assert (status, fields["responded"], fields["problems"]) == (0, 4, [])
    odd, crowd = fields["groups"]
    assert (odd["ranks"], odd["count"], odd["unranked"]) == ("2", 1, [])
    assert any(line.endswith(" compute") for line in odd["stack"])
    assert (crowd["ranks"], crowd["count"]) == ("0-1,3", 3)
    assert fields["motion"] == {"stuck": "0-3"}
    assert "tree" not in fields


def test_the_tree(job: Job, run: Run) -> None:
    target = job("asleep-ours")
    status, out = run("stacks", target, "--tree")
    assert status == 0
    assert out.splitlines()[2] == "4 x 0-3"
    assert any(line.startswith("    1 x 2: ") and "compute" in line for line in out.splitlines())
    status, out = run("stacks", target, "--tree", "--json")
    nodes = json.loads(out)["tree"]
    assert nodes[0] == {"depth": 0, "ranks": "0-3", "count": 4, "ended": 0, "frames": []}
    (odd,) = (node for node in nodes if node["ranks"] == "2")
    assert odd["frames"][-1].endswith(" compute")
    assert sum(node["ended"] for node in nodes) == 4


def test_one_is_gone(job: Job, run: Run, folder: Path) -> None:
    target = job("asleep-ours")
    make_socket(folder / "rank7.sock")
    status, out = run("stacks", target)
    assert status == 1
    assert f"rank 7 ({folder}/rank7.sock): unreachable: connection refused" in out
    assert "ranks 0-1,3 (3 in all)" in out
    status, out = run("stacks", target, "--json")
    (gone,) = json.loads(out)["unreachable"]
    assert (status, gone["rank"], gone["reason"]) == (1, 7, "unreachable")
    for path in folder.glob("rank[0-6].sock"):
        path.rename(path.with_suffix(".off"))
    assert run("stacks", target)[0] == 3


# ---- fr


def test_a_mismatch(job: Job, run: Run) -> None:
    target = job("shapes-ours")
    status, out = run("fr", target)
    assert status == 1
    assert "RANKS" in out
    assert "differs (size)" in out
    status, out = run("fr", target, "--json")
    fields = json.loads(out)
    assert status == 1
    assert fields["process_groups"][0]["mismatch"]["kind"] == "size"
    assert fields["problems"] == []


def test_who_waits(job: Job, run: Run) -> None:
    status, out = run("fr", job("asleep-ours"))
    assert status == 1
    assert "all_reduce #6: ranks 0-1,3 wait for 2; it hangs" in out.splitlines()


def test_no_recorder(folder: Path, serve: Callable[..., Any], run: Run) -> None:
    served = serve("unix")
    status, out = run("fr", served.path)
    assert status in (0, 2)  # an earlier test may have loaded torch and switched its recorder on
    assert out.startswith("1 of 1 ranks answered, process groups: ")


# ---- ping


def test_ping(serve: Callable[..., Any], run: Run, folder: Path) -> None:
    served = serve("unix")
    status, out = run("ping", served.path)
    assert status == 0
    assert "1 of 1 answered" in out
    make_socket(folder / "gone")
    status, out = run("ping", served.path, "./gone", "--json", "--count", "1")
    fields = json.loads(out)
    assert (status, fields["ranks"], fields["responded"]) == (1, 2, 1)
    rows = {each["address"]: each for each in fields["workers"]}
    assert rows["./gone"]["status"] == "unreachable"
    assert rows[served.path]["status"] == "ok"
    assert rows[served.path]["fastest_s"] == rows[served.path]["slowest_s"] > 0
    assert run("ping", "./gone")[0] == 3


@pytest.mark.torch
def test_stock_torch(folder: Path, run: Run) -> None:
    pytest.importorskip("torch")
    with subprocess.Popen(
        [sys.executable, "-c", TORCH, "./rank3.sock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"on\n"
            status, out = run("ping", "./rank{rank}.sock", "--json")
            (row,) = json.loads(out)["workers"]
            assert (status, row["status"], row["rank"]) == (0, "torch", 3)
            status, out = run("stacks", "./rank{rank}.sock")
            assert status == 0
            assert "rank 3" in out.splitlines()
            process.communicate(b"", timeout=60)
        finally:
            process.kill()


# ---- watch and top


def test_watch(job: Job, run: Run, folder: Path) -> None:
    (folder / "kept").mkdir()
    (folder / "kept" / "mine.json").write_text("{}")
    words = ("--every", "0.05", "--count", "3", "--folder", "kept", "--keep", "2")
    status, out = run("watch", job("asleep-ours"), *words)
    assert status == 1
    (line,) = out.splitlines()  # the verdict is the same in all looks
    assert "  SUSPECT  rank 2 has not entered all_reduce #6 of default_pg; " in line
    names = sorted(path.name for path in (folder / "kept").iterdir())
    assert names[0] == "mine.json"
    assert len(names) == 3
    fields = json.loads((folder / "kept" / names[-1]).read_text())
    assert [each["rank"] for each in fields["suspects"]] == [2]
    run("watch", "./rank{rank}.sock", *words[:-2], "--keep", "1", "--count", "1")
    (left,) = (path.name for path in (folder / "kept").iterdir() if path.name != "mine.json")
    assert left > names[-1]


def test_a_folder_that_is_none(
    serve: Callable[..., Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").touch()
    assert main(["watch", serve("unix").path, "--folder", "file"]) == 64
    assert capsys.readouterr().err == "workerserver: file: File exists\n"


def test_top(serve: Callable[..., Any], run: Run, folder: Path) -> None:
    served = serve("unix")
    make_socket(folder / "gone")
    words = (served.path, "./gone", "--every", "0.05", "--count", "2")
    status, out = run("top", *words)
    assert status == 1
    assert [line.split()[0] for line in out.splitlines() if line] == ["RANK", "-", "-"] * 2
    assert out.splitlines()[1].split()[1:3] == ["./gone", "unreachable"]
    status, out = run("top", *words, "--json")
    looks = [json.loads(line) for line in out.splitlines()]
    assert (status, len(looks)) == (1, 2)
    gone, here = looks[0]["workers"]
    assert (gone["answered"], gone["state"]) == (False, "unreachable")
    assert (here["answered"], here["address"]) == (True, served.path)
    assert here["state"] == "starting"  # it has made no step yet
    assert here["uptime_s"] >= 0
    assert here["rss_bytes"] > 10 << 20
    assert here["cpu"] is None
    (now,) = (each["cpu"] for each in looks[1]["workers"] if each["answered"])
    assert 0 <= now < 100


# ---- profile


def trace(pid: int, base: int) -> dict[str, Any]:
    return {
        "baseTimeNanoseconds": base,
        "traceEvents": [
            {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": "python"}},
            {"ph": "X", "name": "mm", "pid": pid, "tid": 1, "ts": 10.5, "dur": 1, "args": {}},
            {"ph": "s", "name": "ac2g", "pid": pid, "tid": 1, "ts": 10.5, "id": 5},
            {"ph": "X", "name": EVIL, "pid": "Spans", "tid": 1, "ts": 10.5, "dur": 1},
            *("no event", {"ph": "X", "ts": 10**400}, {"ph": "X", "ts": 1, "dur": "1"}),
        ],
    }


def test_profile(folder: Path, run: Run, no_leaks: None) -> None:
    now = time.time_ns()
    asked: list[float] = []

    def of(rank: int) -> Registry:
        registry = Registry()

        def torch_profile(duration: float) -> Response:
            asked.append(duration)
            # Containers have equal pids. Their clocks begin at different moments.
            return answer(trace(77, now - rank * 1000) if rank < 2 else {"traceEvents": None})

        registry.register("torch_profile", torch_profile)
        return registry

    with contextlib.ExitStack() as stack:
        for rank in range(3):
            server = WorkerServer(str(folder / f"rank{rank}.sock"), -1, registry=of(rank))
            stack.callback(server.shutdown)
        words = ("profile", "./rank{rank}.sock", "--duration", "0.25", "-o")
        status, out = run(*words, "all.json")
        assert (status, asked) == (1, [0.25] * 3)
        lines = ["rank 0: 7 events", "rank 1: 7 events", "rank 2: malformed: no Chrome trace"]
        assert out.splitlines() == [*lines, "2 of 3 in all.json"]
        status, out = run(*words, "all.json.gz", "--json")
        assert (status, json.loads(out)["responded"]) == (1, 2)
    merged = json.loads((folder / "all.json").read_text())
    assert len(json.loads(gzip.decompress((folder / "all.json.gz").read_bytes()))) == 3
    events = merged["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert sorted(names.values()) == ["rank 0", "rank 0, Spans", "rank 1", "rank 1, Spans"]
    one, other = (e for e in events if e["name"] == "mm")
    assert (names[one["pid"]], names[other["pid"]]) == ("rank 0", "rank 1")
    assert one["ts"] - other["ts"] == pytest.approx(1.0, abs=0.01)
    assert merged["baseTimeNanoseconds"] + one["ts"] * 1000 == pytest.approx(now + 10500, abs=1000)
    assert len({e["id"] for e in events if e["ph"] == "s"}) == 2
    assert not list(folder.glob("*.part"))


def test_no_profile(folder: Path, run: Run, serve: Callable[..., Any]) -> None:
    (folder / "all.json").write_text("mine")
    make_socket(folder / "gone")
    assert run("profile", "./gone", "-o", "all.json")[0] == 3
    assert (folder / "all.json").read_text() == "mine"


# ---- where the workers are


def test_a_hosts_file(serve: Callable[..., Any], run: Run, folder: Path) -> None:
    served = [serve("tcp"), serve("tcp")]
    ports = ",".join(str(each.address[1]) for each in served)
    (folder / "hosts").write_text(f"127.0.0.1:[{ports}]  # both\n")
    status, out = run("ping", "--hosts", "hosts", "--json")
    assert status == 0
    assert sorted(each["rank"] for each in json.loads(out)["workers"]) == [0, 1]


def test_the_environment(job: Job, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_WORKER_SERVER_SOCKET", job("asleep-ours"))
    monkeypatch.setenv("WORLD_SIZE", "5")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    status, out = run("diagnose", "--json", *SOON)
    assert (status, json.loads(out)["ranks"]) == (1, 5)


def test_the_worst_of_several_jobs_comes_first(run: Run, folder: Path) -> None:
    """A hung one, then one of which nobody can tell, then one that goes on."""
    paces: dict[str, dict[str, Any]] = {
        "goes on": {"step_age_s": 0.01},
        "unclear": {"step": None, "step_age_s": None},
        "hangs": {"step_age_s": 900.0},
    }
    with contextlib.ExitStack() as stack:
        for number, (name, pace) in enumerate(paces.items()):
            job = {"job": name, "job_from": "WORKERSERVER_JOB", "world_size": 1, "host": "n1"}
            fields = {"agent": f"{number + 1}:1", "step_median_s": 0.1, "uptime_s": 1e3, **pace}
            answers = {**good(0), HEALTH: health(0, **job, **fields)}
            worker = Canned(answers, folder / f"{number}.sock")
            stack.callback(worker.close)
        status, out = run("diagnose", "./*.sock", "--json", "--rounds", "2", *SOON)
    fields = json.loads(out)
    judged = [(each["job"], each["status"]) for each in (fields, *fields["other_jobs"])]
    assert judged == [("hangs", 1), ("unclear", 2), ("goes on", 0)], out
    assert status == 1


@pytest.mark.parametrize(
    ("variables", "mine"),
    [
        ({"SLURM_JOB_ID": "1200"}, "1200"),
        ({"SLURM_JOB_ID": "1201"}, "1201"),
        (
            {
                "SLURM_JOB_ID": "1205",
                "SLURM_ARRAY_JOB_ID": "1200",
                "SLURM_ARRAY_TASK_ID": "3",
            },
            "1200_3",
        ),
    ],
)
def test_the_ports_of_a_slurm_job_that_another_job_has(
    variables: dict[str, str], mine: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a shared node: two jobs with the same fixed ports. Both are named, nobody is accused."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in {**variables, "SLURM_JOB_NODELIST": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    job = {"job": "slurm-1200.0", "job_from": "SLURM_JOB_ID", "world_size": 1, "host": "n1"}
    hung = health(0, **job, agent="1:1", step_age_s=900.0, step_median_s=0.1, uptime_s=1000.0)
    worker = Canned({**good(0), HEALTH: hung})
    port = worker.address.rpartition(":")[2]
    try:
        status, out = run("diagnose", "--slurm", "--port", port, "--json", *SOON)
    finally:
        worker.close()
    fields = json.loads(out)
    found = status, fields["status"], [each["rank"] for each in fields["suspects"]]
    if mine == "1200":
        assert found == (1, 1, [0]), fields["verdict"]
    else:
        assert found == (2, 2, [])
        assert fields["verdict"] == (
            "could not tell: the workers on these ports belong to slurm-1200, "
            f"and this is slurm-{mine}"
        )


@pytest.mark.parametrize("command", ["diagnose", "stacks", "fr", "ping", "top"])
def test_wrong_use(
    command: str, run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, complaint in (
        (("nowhere",), "'nowhere' is not a target"),
        (("--hosts", "nowhere"), "nowhere: No such file"),
        (("--dns", "x"), "'x': give NAME:PORT"),
        (("localhost:1", "--cacert", "nowhere"), "nowhere: no certificates"),
    ):
        assert main([command, *words]) == 64
        written = capsys.readouterr()
        assert (written.out, complaint in written.err) == ("", True), written.err
    with pytest.raises(SystemExit, match="64"):
        main([command, "x", "--deadline", "0"])
    assert "'0' is not a positive number of seconds" in capsys.readouterr().err


# ---- texts from workers are not trusted


@pytest.mark.parametrize("command", ["diagnose", "stacks", "fr", "ping"])
@pytest.mark.parametrize("as_json", [False, True])
def test_text_from_workers(command: str, as_json: bool, run: Run, folder: Path) -> None:
    body = f"not found: {EVIL}\n".encode()
    evil = http(body, f"500 {EVIL}")
    soon = () if command == "ping" else SOON
    with peer(folder / "rank1.sock", answering(evil)):
        status, out = run(command, "./rank{rank}.sock", *soon, *["--json"] * as_json)
    assert status == 2
    assert "rank1.sock" in out
    assert out.replace("\n", "").isprintable()
    assert out.isascii() or not as_json


def test_names_in_stacks(folder: Path, run: Run, no_leaks: None) -> None:
    look = recording("asleep-ours")["rounds"][0]["ranks"][0]
    for thread in look["stacks"]["threads"]:
        for frame in thread["frames"]:
            frame.update(function=EVIL, qualname=EVIL)
    server = WorkerServer(str(folder / "rank0.sock"), -1, registry=replayed([look]))
    try:
        for words in (("stacks",), ("stacks", "--tree"), ("diagnose", "-v", *SOON)):
            _, out = run(*words, "./rank{rank}.sock")
            assert "\\x1b[2J\\u202e\\x9b" in out
            assert out.replace("\n", "").isprintable()
    finally:
        server.shutdown()


# ---- terminals


class Terminal(io.StringIO):
    encoding = "ascii"

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    terminal = Terminal()
    out = console.Output(terminal)
    out.line(f"[b]{EVIL}\u00e9", "bold red")
    out.table(("NAME",), [(EVIL,)], ["red"])
    text = terminal.getvalue()
    assert "\x1b[1;31m[b]\\x1b[2J\\u202e\\x9b\\xe9\x1b[0m" in text
    assert "\x1b[31m\\x1b[2J\\u202e\\x9b\x1b[0m" in text


def test_without_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Plain text, and no word about what could be installed."""
    monkeypatch.setitem(sys.modules, "rich.console", None)
    terminal = Terminal()
    out = console.Output(terminal)
    out.line("a", "bold red")
    out.table(("NAME",), [("b",)], ["red"])
    assert terminal.getvalue() == "a\nNAME\nb\n"
    assert capsys.readouterr() == ("", "")


def test_progress_and_the_end_by_ctrl_c(folder: Path) -> None:
    """On a terminal, a progress bar on stderr; Ctrl-C shows the answers that came."""
    asked = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        asked.set()
        connection.recv(1)

    ours, theirs = os.openpty()
    with (
        open(ours, "rb", buffering=0) as terminal,
        peer(folder / "rank0.sock", serve),
        subprocess.Popen(
            [
                *(sys.executable, "-m", "workerserver", "ping", "./rank{rank}.sock"),
                *("--deadline", "100", "--json"),
            ],
            env={**environment(), "TERM": "xterm"},
            stdout=subprocess.PIPE,
            stderr=theirs,
        ) as process,
    ):
        os.close(theirs)
        try:
            assert asked.wait(60)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=60)
            assert process.returncode == 2
            (row,) = json.loads(out)["workers"]
            assert (row["status"], row["text"]) == ("timeout", "interrupted before it answered")
            assert b"asking" in terminal.read(100_000)
        finally:
            process.kill()


def test_progress_between_two_looks(job: Job) -> None:
    """All were asked, and it is said when they are asked again."""
    target = job("asleep-ours")
    ours, theirs = os.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "workerserver", "diagnose", target),
                *("--rounds", "2", "--interval", "1.5"),
            ],
            env={**environment(), "TERM": "xterm", "COLUMNS": "100"},
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            timeout=100,
            check=False,
        )
        os.close(theirs)
        shown = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", terminal.read(100_000)).decode()
    assert done.returncode == 1
    between = r"4 asked; another look 1\.5 s after the last one \S+ +4/4"
    assert re.search(between, shown) is not None, shown


def test_the_documentation_has_every_reason() -> None:
    text = (Path(__file__).parents[2] / "docs" / "diagnose.md").read_text()
    for reason, sentence in SENTENCES.items():
        assert f"| `{reason}` | {sentence.rests_on} |\n" in text
