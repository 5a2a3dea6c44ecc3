"""Which files a TARGET names, and which of them count."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.jobs.flight_entries import entry, pending, trace

from workerserver.cli import main
from workerserver.cli.dumps import dumps_among
from workerserver.cli.errors import UsageError
from workerserver.cluster.ask.dumps.files import find_dumps, read_dumps

#: When the recorded operations were issued, in seconds since the epoch.
BEGAN = 1_700_000_000.0
TIMEOUT_MS = 600_000


def at(seconds: float, **more: Any) -> dict[str, Any]:
    return {"time_created_ns": int((BEGAN + seconds) * 1e9), "timeout_ms": TIMEOUT_MS, **more}


def put(path: Path, value: Mapping[str, Any], written: float, *, as_json: bool = False) -> Path:
    """*written*: seconds after BEGAN."""
    path.write_bytes(json.dumps(value).encode() if as_json else pickle.dumps(value, protocol=2))
    os.utime(path, (BEGAN + written, BEGAN + written))
    return path


Told = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Told:
    """The exit status of a command, and the object that it printed."""

    def ask(command: str, *words: str) -> tuple[int, dict[str, Any]]:
        status = main([command, "--json", *words])
        return status, json.loads(capsys.readouterr().out)

    return ask


def hung(folder: Path, *, written: float = 610.0, ranks: str = "[0, 1, 2]") -> None:
    """Rank 2 has not come to #4, which ranks 0 and 1 have waited in since second 10."""
    done = [entry(number, number + 1, **at(number)) for number in range(3)]
    for rank in range(2):
        put(folder / f"trace_{rank}", trace(*done, pending(3, 4, **at(10)), ranks=ranks), written)
    put(folder / "trace_2", trace(*done, ranks=ranks), written)


def test_what_a_target_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = trace(entry(0, 1))
    names = [put(tmp_path / f"nccl_trace_rank_{rank}", value, 1) for rank in (0, 1, 11)]
    paths = sorted(map(str, names))
    (tmp_path / "nccl_trace_rank_2x").write_bytes(b"\x80\x02}.")
    (tmp_path / "nccl_trace_rank_3").write_text("no dump")
    os.mkfifo(tmp_path / "nccl_trace_rank_4")
    common = f"{tmp_path}/nccl_trace_rank_{{rank}}"
    for target in (f"{tmp_path}/nccl_trace_rank_", str(tmp_path), common):
        assert find_dumps(target) == {common: paths}, target
    assert find_dumps(f"{tmp_path}/nccl_trace_rank_[01]") == {common: paths[:2]}
    assert find_dumps(paths[0]) == {paths[0]: [paths[0]]}
    assert dumps_among([*paths, "localhost:25000"]) == (paths, ["localhost:25000"])
    put(tmp_path / "rank7.json", value, 1, as_json=True)
    with pytest.raises(UsageError, match="dumps of 2 prefixes"):
        dumps_among([str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "4711", value, 1)
    for other in ("47", "localhost:25000", "https://node:25000", "/nowhere/", str(tmp_path / "no")):
        assert dumps_among([other]) == ([], [other])


def test_a_file_that_does_not_count_is_said_in_one_line(tmp_path: Path) -> None:
    paths = [
        put(tmp_path / "old0", trace(entry(0, 1)), 1),
        put(tmp_path / "new0", trace(entry(0, 1)), 2),
        put(tmp_path / "a1", {"version": "3.0", "entries": []}, 1),
        put(tmp_path / "a2", {"version": 2, "entries": []}, 1),
        put(tmp_path / "a3", {"version": "2.10"}, 1),
        put(tmp_path / "nobody", trace(entry(0, 1)), 1),
        tmp_path / "a4",
    ]
    (tmp_path / "a5").write_bytes(b"\x80\x02cposix\nsystem\n.")
    dumps, unread = read_dumps([*map(str, paths), str(tmp_path / "a5")])
    assert [(dump.rank, dump.path) for dump in dumps] == [(0, str(tmp_path / "new0"))]
    said = {Path(each.path).name: each.text for each in unread}
    assert said["old0"].endswith("new0 is newer")
    assert "version '3.0'" in said["a1"]
    assert "version '2'" in said["a2"]
    assert said["a3"] == "no dump of a flight recorder"
    assert said["nobody"] == "its name does not end in a rank"
    assert "No such file" in said["a4"]
    assert "more than plain data" in said["a5"]


def test_who_has_not_come_is_named(tmp_path: Path, answer: Told) -> None:
    hung(tmp_path)
    status, told = answer("diagnose", str(tmp_path / "trace_"))
    assert (status, told["verdict"]) == (1, "rank 2 has not entered all_reduce #4 of default_pg")
    assert told["suspects"][0]["rank"] == 2
    assert "ranks 0-2: no stacks" in told["not_looked_at"]
    assert told["unreadable"] == []
    status, told = answer("fr", str(tmp_path))
    assert status == 1
    (wait,) = told["process_groups"][0]["waits"]
    assert (wait["waiting"], wait["absent"], wait["hangs"]) == ("0-1", "2", True)


def test_gloo_calls_ended_what_has_timed_out(tmp_path: Path, answer: Told) -> None:
    gloo = {"profiling_name": "gloo:all_reduce", "state": "scheduled"}
    done = [entry(number, number + 1, **gloo, **at(number)) for number in range(3)]
    for written, status in ((611, 1), (550, 2), (90_000, 2)):
        for rank in range(2):
            failed = entry(3, 4, **gloo, **at(10))
            put(tmp_path / f"trace_{rank}", trace(*done, failed), written)
        put(tmp_path / "trace_2", trace(*done), written)
        found, told = answer("diagnose", str(tmp_path))
        assert found == status, told
        notes = [note for note in told["notes"] if "so it failed" in note]
        if status == 1:
            assert told["verdict"] == "rank 2 has not entered all_reduce #4 of default_pg"
            assert notes == [
                "ranks 0-1 have ended #4 of default_pg without all ranks in it: so it failed, "
                "as by a time-out"
            ]
        else:
            assert (told["suspects"], notes) == ([], [])


def test_what_is_only_counted_may_be_a_wait_too(tmp_path: Path, answer: Told) -> None:
    """gloo's recorder has no send and no receive, but torch counts them."""
    for counted, status in ((3, 1), (4, 2)):
        counts = {"0": {"last_enqueued_collective": counted, "last_completed_collective": 3}}
        for rank in range(3):
            done = [entry(n, n + 1, profiling_name="gloo:all_reduce", **at(n)) for n in range(3)]
            waits = pending(3, 4, profiling_name="gloo:all_reduce", **at(10))
            value = trace(*done, *([waits] if rank < 2 else []), pg_status=counts)
            put(tmp_path / f"trace_{rank}", value, 610)
        found, told = answer("diagnose", str(tmp_path))
        assert found == status, told["verdict"]
    assert "in what no recorder holds" in told["verdict"]


def test_a_short_ring_may_have_lost_a_wait(tmp_path: Path, answer: Told) -> None:
    done = [entry(100 + number, number + 1, **at(number)) for number in range(3)]
    for rank in range(2):
        put(tmp_path / f"trace_{rank}", trace(*done, pending(103, 4, **at(10))), 610)
    put(tmp_path / "trace_2", trace(*done), 610)
    status, told = answer("diagnose", str(tmp_path))
    assert (status, told["suspects"]) == (2, []), told
    assert "in what no recorder holds" in told["verdict"]


@pytest.mark.parametrize("written", [10.1, 14.0, 19.0])
def test_a_rank_that_may_only_be_late_is_not_accused(
    written: float, tmp_path: Path, answer: Told
) -> None:
    hung(tmp_path, written=written)
    status, told = answer("diagnose", str(tmp_path))
    assert status != 1, told
    assert told["suspects"] == []


def test_a_copy_tells_no_age(tmp_path: Path, answer: Told) -> None:
    hung(tmp_path, written=90_000)
    status, told = answer("diagnose", str(tmp_path))
    assert (status, told["suspects"]) == (2, [])
    assert "nothing tells when the dumps were written" in told["verdict"]
    assert any("times of a copy" in note for note in told["notes"])


def test_a_missing_dump_accuses_nobody(tmp_path: Path, answer: Told) -> None:
    hung(tmp_path)
    for gone in ("trace_2", "trace_1"):
        (tmp_path / gone).unlink()
        status, told = answer("diagnose", str(tmp_path))
        assert (status, told["suspects"]) == (2, []), told
        assert any("no dump that counts" in line for line in told["not_looked_at"])
    hung(tmp_path, ranks="[0, 1, 2, 3]")  # rank 2 may wait for rank 3
    status, told = answer("diagnose", str(tmp_path))
    assert (status, told["suspects"]) == (2, []), told


def test_a_dump_of_another_moment_or_run_does_not_count(tmp_path: Path, answer: Told) -> None:
    hung(tmp_path)
    early = trace(*(entry(number, number + 1, **at(number)) for number in range(3)))
    put(tmp_path / "trace_2", early, 5)
    other = trace(*(entry(number, number + 1, **at(number - 9000)) for number in range(3)))
    put(tmp_path / "trace_1", other, 610)
    status, told = answer("diagnose", str(tmp_path))
    assert (status, told["suspects"]) == (2, []), told
    said = {each["rank"]: each["text"] for each in told["unreadable"]}
    assert "s before rank 0 issued all_reduce #4" in said[2]
    assert "of another run" in said[1]
    # Others have ended what it has not issued, so its file is older, whatever its time is.
    hung(tmp_path)
    put(tmp_path / "trace_2", trace(entry(0, 1, **at(0))), 610)
    status, told = answer("diagnose", str(tmp_path))
    assert (status, told["suspects"]) == (2, []), told
    (said_of,) = told["unreadable"]
    assert "rank 0 has ended all_reduce #3" in said_of["text"]


def test_nothing_that_hangs_is_no_health(tmp_path: Path, answer: Told) -> None:
    done = [entry(number, number + 1, **at(number)) for number in range(3)]
    for rank in range(3):
        put(tmp_path / f"trace_{rank}", trace(*done), 2.5)
    status, told = answer("diagnose", str(tmp_path))
    assert (status, told["verdict"]) == (3, "no rank was stuck when the dumps were written")
    for rank in range(3):
        put(tmp_path / f"trace_{rank}", trace(*done), 500)
    status, told = answer("diagnose", str(tmp_path))
    assert status == 2


def test_dumps_are_judged_by_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hung(tmp_path)
    for command in ("diagnose", "fr"):
        assert main([command, str(tmp_path), "localhost:1"]) == 64
        assert "name nothing else" in capsys.readouterr().err


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hung(tmp_path)
    (tmp_path / "trace_3").write_bytes(b"\x80\x02cposix\nsystem\n.")
    assert main(["diagnose", str(tmp_path)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("could not tell: rank 2 has not entered all_reduce #4 of default_pg")
    assert any(line.startswith("torch's dumps of ranks 0-2, written ") for line in lines)
    assert any("trace_3: it holds more than plain data" in line for line in lines)
    (tmp_path / "trace_3").unlink()
    assert main(["diagnose", str(tmp_path)]) == 1
    assert main(["fr", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "all_reduce #4: ranks 0-1 wait for 2; it hangs" in out
