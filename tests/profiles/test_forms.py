"""A job's profile in each form, checked against what its viewers document, or by a viewer."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from workerserver.stacks.profiles.forms import MAX_APART, folded, perfetto, speedscope
from workerserver.stacks.profiles.job import Job, Member, Own, median
from workerserver.stacks.profiles.page import MAX_CALLS, page
from workerserver.stacks.profiles.pprof import MAX_RANKS, of_job
from workerserver.stacks.profiles.recorded import Function, Node, Recorded, Thread
from workerserver.stacks.profiles.tree import Call, grow

MAIN = Thread("MainThread", 1, 1)
POOL = Thread("ThreadPoolExecutor-0_1", 2, 2)
EVIL = "</script><script>alert(1)</script>"
TRAIN: Function = ("/job/train.py", "train", 10)
LOAD: Function = ("/job/data.py", EVIL, 20)
STEP: Function = ("/job/train.py", "step; now", 30)
WORK: Function = ("/lib/pool.py", "work", 5)


def recorded(load: int, step: int, pool: int = 0, samples: int = 100) -> Recorded:
    """Of one second. The main thread waits in load() and computes in step(). The thread of the pool
    runs in *pool* samples, and waits in the others."""
    nodes = [
        Node(-1, 0, 0, 0), Node(0, 0, 0, 0), Node(1, 1, 0, load), Node(1, 2, step, 0),
        Node(-1, 1, 0, 0), Node(4, 3, pool, samples - pool),
    ]  # fmt: skip
    functions = [TRAIN, LOAD, STEP, WORK]
    return Recorded("wall", 100.0, 5.0, 1.0, samples, 0, 0, 0, 0.01, functions, [MAIN, POOL], nodes)


def job(*parts: Recorded) -> Job:
    """Rank 0, 1, ... with a part each; the last one has no rank."""
    made = Job("wall", 100.0, 1_700_000_000.0)
    for rank, part in enumerate(parts):
        own = Own()
        own.add(part, made.stacks)
        last = rank == len(parts) - 1
        made.add(Member(None, "tcp:1") if last else Member(rank, f"rank {rank}"), own)
    return made


@pytest.fixture
def four() -> Job:
    """Rank 2 loads for 0.8 s, the others for 0.2 to 0.3 s; in rank 1 the pool works."""
    return job(recorded(20, 80), recorded(30, 70, 50), recorded(80, 20), recorded(20, 80))


def calls(root: Call) -> dict[str, Call]:
    return {call.name.partition(" (")[0]: call for _, call in root.walk()}


def test_the_tree_tells_ranks_and_times(four: Job) -> None:
    found = calls(grow(four))
    root, load, step = found["all ranks"], found[EVIL], found["step; now"]
    assert root.total == pytest.approx(8e6)
    assert (root.ranks, load.ranks) == ("0-2,tcp:1", "0-2,tcp:1")
    assert load.total == load.own == pytest.approx(1.5e6)
    assert load.on == 0
    assert step.on == pytest.approx(2.5e6)
    assert (load.median, load.most) == pytest.approx((0.25e6, 0.8e6))
    assert load.most_of == "2"
    assert found["train"].total == pytest.approx(4e6)
    assert found["train"].own == 0


def test_idle_threads_are_apart(four: Job) -> None:
    root = grow(four)
    assert set(root.children) == {"MainThread", "idle threads", "ThreadPoolExecutor-N_N"}
    assert root.children["ThreadPoolExecutor-N_N"].ranks == "1"
    assert root.children["idle threads"].ranks == "0,2,tcp:1"
    # A thread that has run in one of a hundred samples is still idle.
    assert "idle threads" in grow(job(recorded(50, 50, 1))).children
    assert "idle threads" not in grow(job(recorded(50, 50, 2))).children
    # The main thread is not, whatever it waits for.
    assert "MainThread" in grow(job(recorded(100, 0))).children


def test_one_rank_against_the_median_of_the_others(four: Job) -> None:
    load = calls(grow(four, 2))[EVIL]
    assert (load.here, load.others) == pytest.approx((0.8e6, 0.2e6))
    step = calls(grow(four, 0))["step; now"]
    assert (step.here, step.others) == pytest.approx((0.8e6, 0.7e6))


def test_the_median_counts_who_was_never_there() -> None:
    assert median([], 3) == median([5.0], 3) == median([], 0) == 0
    assert median([5.0, 3.0], 3) == 3
    assert median([5.0, 3.0, 4.0, 2.0], 4) == 3.5
    assert median([5.0], 2) == 2.5


def test_parts_of_one_rank_add_up_and_missed_samples_do_not_count() -> None:
    made, own = Job("wall", 100.0), Own()
    for part in (recorded(20, 80), recorded(10, 40, samples=50)):
        own.add(part, made.stacks)
    made.add(Member(0, "rank 0"), own)
    assert (made.seconds, made.samples) == (2, 150)
    assert calls(grow(made))[EVIL].total == pytest.approx(0.4e6)


def stacks(text: bytes) -> dict[str, list[int]]:
    found = {}
    for line in text.decode().splitlines():
        match = re.fullmatch(r"(.+?)((?: \d+)+)", line)
        assert match is not None, line
        found[match[1]] = [int(number) for number in match[2].split()]
    return found


def test_folded_stacks_are_printable(four: Job) -> None:
    """The file is text: people look at it in a terminal."""
    names = four.stacks.functions
    names[:] = [(file, f"\x1b[2J{name}\u202e\n", line) for file, name, line in names]
    text = folded(four, None).decode()
    assert "\\x1b[2Jtrain\\u202e" in text
    assert text.replace("\n", "").isprintable()


def test_folded(four: Job) -> None:
    found = stacks(folded(four, None))
    main = "MainThread;train (job/train.py:10);"
    assert found[f"{main}step, now (job/train.py:30)"] == [2_500_000]
    assert found["idle threads;ThreadPoolExecutor-N_N;work (lib/pool.py:5)"] == [3_000_000]
    assert len(found) == 4
    assert stacks(folded(four, 2))[f"{main}step, now (job/train.py:30)"] == [800_000, 200_000]


SPEEDSCOPE = {
    "type": "object",
    "required": ["$schema", "shared", "profiles"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"const": "https://www.speedscope.app/file-format-schema.json"},
        "name": {"type": "string"},
        "exporter": {"type": "string"},
        "activeProfileIndex": {"type": "number"},
        "shared": {
            "type": "object",
            "required": ["frames"],
            "properties": {
                "frames": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name"],
                        "additionalProperties": False,
                        "properties": {
                            "name": {"type": "string"},
                            "file": {"type": "string"},
                            "line": {"type": "number"},
                            "col": {"type": "number"},
                        },
                    },
                }
            },
        },
        "profiles": {
            "type": "array",
            "items": {
                "type": "object",
                "required": [
                    "type", "name", "unit", "startValue", "endValue", "samples", "weights",
                ],
                "properties": {
                    "type": {"const": "sampled"},
                    "name": {"type": "string"},
                    "unit": {
                        "enum": [
                            "none", "nanoseconds", "microseconds", "milliseconds", "seconds",
                            "bytes",
                        ]
                    },
                    "startValue": {"type": "number"},
                    "endValue": {"type": "number"},
                    "samples": {
                        "type": "array",
                        "items": {"type": "array", "items": {"type": "number"}},
                    },
                    "weights": {"type": "array", "items": {"type": "number"}},
                },
            },
        },
    },
}  # fmt: skip


def check_speedscope(body: bytes) -> dict[str, Any]:
    """What speedscope's file-format-spec.ts says of sampled profiles."""
    jsonschema = pytest.importorskip("jsonschema")
    told: dict[str, Any] = json.loads(body)
    jsonschema.Draft202012Validator(SPEEDSCOPE).validate(told)
    for each in told["profiles"]:
        assert len(each["samples"]) == len(each["weights"])
        assert sum(each["weights"]) == pytest.approx(each["endValue"] - each["startValue"])
        for stack in each["samples"]:
            assert all(0 <= frame < len(told["shared"]["frames"]) for frame in stack)
    return told


def test_speedscope(four: Job) -> None:
    told = check_speedscope(speedscope(four, None))
    names = [each["name"] for each in told["profiles"]]
    assert names == ["all 4 ranks", "rank 0", "rank 1", "rank 2", "tcp:1"]
    ends = [each["endValue"] for each in told["profiles"]]
    assert ends == pytest.approx([8e6, 2e6, 2e6, 2e6, 2e6])
    assert {"name": "train", "file": "/job/train.py", "line": 10} in told["shared"]["frames"]
    both = check_speedscope(speedscope(four, 2))["profiles"]
    assert [each["name"] for each in both] == ["rank 2", "median of the others"]
    many = job(*[recorded(50, 50)] * (MAX_APART + 1))
    assert len(check_speedscope(speedscope(many, None))["profiles"]) == 1


def check_perfetto(body: bytes) -> dict[str, float]:
    """What the Trace Event Format says of complete events, and that they nest. Times by track."""
    told = json.loads(body)
    assert told["displayTimeUnit"] in ("ms", "ns")
    names: dict[tuple[int, int], str] = {}
    tracks: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in told["traceEvents"]:
        assert {"ph", "name", "pid", "tid", "ts"} <= set(event)
        assert all(type(event[field]) is int for field in ("pid", "tid"))
        key = (event["pid"], event["tid"])
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "process_sort_index", "thread_name")
            if "name" in event["args"]:
                names[key] = event["args"]["name"]
            continue
        assert event["ph"] == "X"
        start, end = event["ts"], event["ts"] + event["dur"]
        open_ = tracks.setdefault(key, [])
        for other_start, other_end in open_:
            apart = end <= other_start + 0.01 or other_end <= start + 0.01
            inside = other_start - 0.01 <= start and end <= other_end + 0.01
            assert apart or inside
        open_.append((start, end))
    assert set(tracks) <= set(names)
    return {
        f"{names[pid, 0]}/{names[pid, tid]}": max(end for _, end in found)
        for (pid, tid), found in tracks.items()
    }


def test_perfetto(four: Job) -> None:
    tracks = check_perfetto(perfetto(four, None))
    assert tracks["all 4 ranks/MainThread"] == pytest.approx(4e6)
    assert tracks["rank 2/MainThread"] == pytest.approx(1e6)
    assert tracks["rank 1/ThreadPoolExecutor-N_N"] == pytest.approx(1e6)
    assert tracks["rank 0/idle threads"] == pytest.approx(1e6)
    assert check_perfetto(perfetto(four, 2)).keys() == {
        "rank 2/MainThread", "rank 2/idle threads", "median of the others/MainThread",
        "median of the others/idle threads",
    }  # fmt: skip


needs_go = pytest.mark.skipif(shutil.which("go") is None, reason="go is not installed")


def pprof(path: Path, *words: str) -> str:
    done = subprocess.run(
        ["go", "tool", "pprof", *words, str(path)],
        env={"PATH": "/usr/bin:/bin", "HOME": str(path.parent), "PPROF_TMPDIR": str(path.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@needs_go
def test_go_reads_a_job(four: Job, tmp_path: Path) -> None:
    path = tmp_path / "job.pb.gz"
    path.write_bytes(of_job(four, None))
    raw = pprof(path, "-raw")
    assert "cpu/nanoseconds wall/nanoseconds[dflt]" in raw
    assert "rank:[2]" in raw
    assert "rank:[tcp:1]" in raw
    assert "state:[idle] thread:[ThreadPoolExecutor-N_N]" in raw
    assert "step; now /job/train.py:30" in raw
    top = pprof(path, "-top", "-tagignore=state=idle", "-tagfocus=rank=^2$", "-unit=ms")
    assert re.search(r"^ +800ms .*alert", top, re.M), top
    assert re.search(r"^ +200ms .*step; now", top, re.M), top
    path.write_bytes(of_job(four, 2))
    top = pprof(path, "-top", "-unit=ms")
    assert re.search(r"^ +600ms .*alert", top, re.M), top
    assert re.search(r"^ +-600ms .*step; now", top, re.M), top


@needs_go
def test_go_reads_rank_sets(tmp_path: Path) -> None:
    path = tmp_path / "job.pb.gz"
    path.write_bytes(of_job(job(*[recorded(50, 50)] * (MAX_RANKS + 1)), None))
    assert f"ranks:[0-{MAX_RANKS - 1},tcp:1]" in pprof(path, "-raw")


def data(text: str) -> dict[str, Any]:
    (body,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    told: dict[str, Any] = json.loads(body)
    return told


@pytest.mark.parametrize("rank", [None, 2])
def test_the_page_is_closed_to_everything_else(four: Job, rank: int | None) -> None:
    text = page(four, rank).decode()
    ((policy,),) = (re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text),)
    rules = dict(rule.split(" ", 1) for rule in html.unescape(policy).split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for tag in ("script", "style"):
        (own,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.S)
        known = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{known}'"
    assert text.count("<script") == 2
    assert not re.search(r"""\s(src|href|style|on\w+)\s*=\s*["']""", text)
    assert "//" not in re.sub(r"// .*", "", text.replace("</", ""))  # no address
    assert data(text)["nodes"][0][:3] == [-1, "all ranks", ""]
    assert any(EVIL in node[1] for node in data(text)["nodes"])


def test_the_page_holds_the_graph(four: Job) -> None:
    told = data(page(four, 2).decode())
    nodes = told["nodes"]
    assert all(node[0] < number for number, node in enumerate(nodes))
    assert nodes[told["idle"]][1] == "idle threads"
    (load,) = (node for node in nodes if EVIL in node[1])
    assert load[2:] == [
        "/job/data.py:20", 1_500_000, 1_500_000, 0, "0-2,tcp:1", 250_000, 800_000, "2", 800_000,
        200_000,
    ]  # fmt: skip
    assert told["compared"] == "rank 2"


def test_of_too_many_calls_the_shortest_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_CALLS > 1000
    monkeypatch.setattr("workerserver.stacks.profiles.page.MAX_CALLS", 4)
    told = data(page(job(recorded(20, 80, 50)), None).decode())
    assert [node[1].partition(" (")[0] for node in told["nodes"]][:1] == ["all ranks"]
    assert 1 < len(told["nodes"]) < 7
    assert len(told["nodes"]) + told["leftOut"] == 7
    assert all(node[0] < number for number, node in enumerate(told["nodes"]))
