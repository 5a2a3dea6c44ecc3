"""What the simulator says of a job against what real ranks answered, which did the same.

``recorded/record.py`` ran the programs with gloo, torch 2.13 and CPython 3.11. Compared is all but
the moments, the numbers of processes and threads, and the user's own lines.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from .job.program import from_dict
from .job.truth import play
from .told.answers import Answers, Told, stacks_json, tell, text_of
from .told.frames import LIBRARY, USER
from .told.recorder import trace

FOLDER = Path(__file__).with_name("recorded")
CORPUS = Path(__file__).parents[1] / "faults" / "recorded"
PROGRAMS = sorted(path.name.partition("-")[0] for path in FOLDER.glob("[0-9]*-ours.json.gz"))

Json = dict[str, Any]


def recorded(name: str) -> Json:
    loaded: Json = json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))
    return loaded


#: The simulator's word for a thread of recorded/waits.py.
KINDS = {
    "event": "await",
    "fifo": "open",
    "save": "write",
    "monitored_barrier": "monitored",
    "irecv": "wait",
    "isend": "wait",
    "batch": "wait",
}
#: Not simulated, or told otherwise: what computes or polls is seen waiting for the GIL, too.
OTHERS = {"broadcast_object_list", "compute", "MainThread"}


def above(frames: list[Json]) -> list[tuple[str, int, str, str]]:
    """The libraries' frames above the user's."""
    found = []
    for frame in frames:
        if frame["file"].startswith("/home/user/"):
            break
        found.append((frame["file"], frame["line"], frame["function"], frame["qualname"]))
    return found


def test_waits_have_the_frames_of_real_ones() -> None:
    threads = recorded("waits-ours")["answers"][0]["stacks"]["threads"]
    seen = set()
    for thread in threads:
        kind = KINDS.get(thread["name"], thread["name"])
        if thread["name"] in OTHERS or kind not in LIBRARY:
            continue
        seen.add(kind)
        library, kernel = LIBRARY[kind]
        assert above(thread["frames"]) == list(library), kind
        if kind not in ("poll", "store_wait"):  # its store's client is in another thread's hands
            assert (thread["state"], thread["wchan"]) == kernel, kind
    # On CUDA alone, or seen elsewhere: nobody was left in the second half of all_gather_object.
    missing = {"synchronize", "event", "item", "gil", "ended", "all_gather_object data"}
    assert seen == LIBRARY.keys() - missing


def test_texts_of_stock_workers_have_the_form_of_real_ones() -> None:
    text = recorded("waits-torch")["answers"][0]["text"]
    head = "Current thread 0x00007f0000000000 (most recent call first):\n  <no Python frame>\n\n"
    assert re.sub("0x[0-9a-f]{16}", "0x00007f0000000000", text).startswith(head)
    played = play(from_dict(recorded(f"{PROGRAMS[0]}-ours")["job"]), tell)
    mine = text_of(played.looks[0][1][0])
    assert re.sub("0x[0-9a-f]{16}", "0x00007f0000000000", mine).startswith(head)
    form = re.compile(
        r"(?:(?:Current thread|Thread) 0x[0-9a-f]{16} \(most recent call first\):\n"
        r'(?:  <no Python frame>\n|(?:  File "[^"]+", line \d+ in [^\n]+\n)+)(?:\n|\Z))+\Z'
    )
    assert form.match(text)
    assert form.match(mine)


Call = tuple[str, str]
Frames = tuple[tuple[str, int, str, str], ...]


def call(frames: Frames) -> Call:
    """The library's function that the user's line has called."""
    outermost = next((each for each in reversed(frames) if each[2] != "wrapper"), frames[-1])
    return outermost[0], outermost[2]


def test_waits_of_the_corpus_stand_where_simulated_ones_do() -> None:
    """tests/faults/recorded has what the ranks of real jobs answered."""
    known: dict[Call, set[Frames]] = {}
    for frames, _ in LIBRARY.values():
        if frames:
            known.setdefault(call(frames), set()).add(frames)
    seen = set()
    for path in sorted(CORPUS.glob("*.json.gz")):
        jobs = json.loads(gzip.decompress(path.read_bytes()))
        for name, looks in jobs.items():
            ranks = [rank for look in looks for rank in look["ranks"]]
            stacks = [
                rank["stacks"]["threads"] for rank in ranks if "threads" in rank.get("stacks", "")
            ]
            for thread in (each for threads in stacks for each in threads):
                frames = tuple(above(thread["frames"]))
                if not frames or len(frames) == len(thread["frames"]) or call(frames) not in known:
                    continue
                assert frames in known[call(frames)], (name, frames)
                seen.add(call(frames)[1])
    assert seen >= {"all_reduce", "recv", "send"}


# --- whole programs

#: "completed": gloo's threads end asynchronous operations in any order; the last one counts.
TIMES = (
    "completed", "last_completed_collective", "created_ns", "started_ns", "completed_ns",
    "time_created_ns", "timeout_ms", "thread_id",
)  # fmt: skip
#: Groups that the program makes as an operation, and that the simulator does not follow up.
UNNAMED = "undefined"


def timeless(value: Any) -> Any:
    """Without moments; what they stand for is told by other fields."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [timeless(each) for each in value]
    return value


def types(value: Any) -> Any:
    """The names and types of all fields."""
    if isinstance(value, dict):
        return {key: types(each) for key, each in value.items()}
    return "number" if isinstance(value, (int, float)) else type(value).__name__


@pytest.fixture(params=PROGRAMS)
def pair(request: pytest.FixtureRequest) -> tuple[list[Json], list[Answers]]:
    """What real ranks answered, and what simulated ones do."""
    found = recorded(f"{request.param}-ours")
    return found["answers"], play(from_dict(found["job"]), tell).looks[0][1]


def test_health(pair: tuple[list[Json], list[Answers]]) -> None:
    for real, mine in zip(*pair, strict=True):
        assert mine.healthz is not None
        del mine.healthz["step_median_s"]  # recorded before workers told it
        assert types(mine.healthz) == types(real["healthz"])
        assert list(mine.healthz) == list(real["healthz"])
        for name in ("status", "rank", "step"):
            assert mine.healthz[name] == real["healthz"][name]


def test_summaries(pair: tuple[list[Json], list[Answers]]) -> None:
    for real, mine in zip(*pair, strict=True):
        groups = [each for each in real["fr_summary"]["groups"] if each["desc"] != UNNAMED]
        for group in groups:  # recorded before fr_summary named the recorder's backend
            group.setdefault("backend", "gloo" if group["recorder"] == "fr" else None)
        real["fr_summary"]["groups"] = groups
        assert timeless(mine.summary) == timeless(real["fr_summary"])


def test_traces(pair: tuple[list[Json], list[Answers]]) -> None:
    for real, mine in zip(*pair, strict=True):
        assert mine.recorded is not None
        made = trace(mine.recorded, "gloo")
        assert timeless(made) == timeless(real["flight"])
        for entry, other in zip(
            made.get("entries", ()), real["flight"].get("entries", ()), strict=True
        ):
            assert types(entry) == types(other)


def test_stacks(pair: tuple[list[Json], list[Answers]]) -> None:
    for real, mine in zip(*pair, strict=True):
        told = stacks_json(mine)
        for described in told["threads"]:  # recorded before workers told it
            del described["switches"]
        if "children" not in real["stacks"]:  # this too
            told.pop("children", None)
        assert types(told) == types(real["stacks"])
        threads = {thread["name"]: thread for thread in real["stacks"]["threads"]}
        assert mine.threads is not None
        for each, described in zip(mine.threads, told["threads"], strict=True):
            name = "MainThread" if each.main else each.thread.strand.name
            same_thread(each, described, threads[name])


def same_thread(told: Told, mine: Json, real: Json) -> None:
    assert types({**mine, "wchan": ""}) == types({**real, "wchan": ""})
    op = told.thread.op
    moves = op is not None and told.thread.state == "on"
    if moves or (op is not None and op.kind in ("compute", "poll")):
        return  # it is elsewhere each time
    assert above(mine["frames"]) == above(real["frames"])
    assert (mine["state"], mine["wchan"]) == (real["state"], real["wchan"])
    assert any(frame["file"] == USER for frame in mine["frames"])
    assert mine["frames"][-1]["function"] == real["frames"][-1]["function"]
