"""What real jobs' recorders held, as files: the verdict on them is the one on the live job."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.jobs.recordings import NAMES, flights, recording, rounds
from support.lifecycle import PROGRAMS, environment, free_port
from support.torchrun import end

from workerserver.cli import main
from workerserver.cluster.judge.diagnose import diagnose

PROGRAM = PROGRAMS / "dumps" / "dumping_rank.py"
RANKS = 3
TIMEOUT = 12


def put_recording(name: str, folder: Path, *, as_json: bool) -> None:
    """Each rank's trace in the last look, in a file that was written then."""
    written = recording(name)["rounds"][-1]["time"]
    for rank, flight in flights(name).items():
        path = folder / f"trace_{rank}"
        path.write_bytes(json.dumps(flight).encode() if as_json else pickle.dumps(flight, 2))
        os.utime(path, (written, written))


@pytest.mark.parametrize("name", NAMES)
def test_dumps_accuse_no_other_rank_than_the_live_job_does(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_recording(name, tmp_path, as_json=NAMES.index(name) % 2 == 0)
    status = main(["diagnose", "--json", str(tmp_path)])
    told = json.loads(capsys.readouterr().out)
    live = diagnose(rounds(name))
    accused = {each["rank"] for each in told["suspects"]}
    assert (status == 1) == bool(accused)
    assert accused <= {each.rank for each in live.suspects}, told["verdict"]
    if (
        any(each.reason in ("mismatch", "order") for each in live.suspects)
        and "crossed" not in name
    ):
        assert status == 1
        assert live.sentence.startswith(told["verdict"])


#: Names whose rank that has not come is late for longer than a pause may last.
@pytest.mark.parametrize("name", ["asleep-torch", "gil-torch", "lock-ours", "subgroup-torch"])
def test_who_has_not_come_for_long(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_recording(name, tmp_path, as_json=False)
    for path in tmp_path.iterdir():  # a minute later, nothing has moved
        about = path.stat()
        os.utime(path, (about.st_mtime + 60, about.st_mtime + 60))
    status = main(["diagnose", "--json", str(tmp_path)])
    told = json.loads(capsys.readouterr().out)
    assert status == 1, told["verdict"]
    assert re.sub(r";.*", "", diagnose(rounds(name)).sentence) == told["verdict"]


@pytest.mark.torch
@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
@pytest.mark.timeout(300)
def test_torchs_own_files_after_a_time_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = tmp_path / "comm_lib_trace_rank_"
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    log = (tmp_path / "log").open("wb")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(prefix), str(TIMEOUT)],
            env=environment(OMP_NUM_THREADS="1", RANK=str(rank), WORLD_SIZE=str(RANKS), **place),
            stdout=log,
            stderr=log,
        )
        for rank in range(RANKS)
    ]
    try:
        for each in ranks:
            assert each.wait(200) == 0, (tmp_path / "log").read_text()
    finally:
        log.close()
        for each in ranks:
            end(each)
    for target in (str(prefix), f"{prefix}{{rank}}.json"):
        assert main(["diagnose", "--json", target]) == 1
        told = json.loads(capsys.readouterr().out)
        assert told["verdict"] == "rank 1 has not entered all_reduce #6 of default_pg"
        assert main(["fr", "--json", target]) == 1
        told_by_fr = json.loads(capsys.readouterr().out)
        (wait,) = told_by_fr["process_groups"][0]["waits"]
        assert (wait["seq"], wait["waiting"], wait["absent"]) == (6, "0,2", "1")
    # The pickle has stacks, of when each operation was issued.
    assert main(["diagnose", "--json", str(prefix)]) == 1
    told = json.loads(capsys.readouterr().out)
    line = PROGRAM.read_text().splitlines().index("    dist.all_reduce(torch.ones(4))") + 1
    where = f"step(), {PROGRAM.name}:{line}"
    assert f"all_reduce #6 of default_pg was issued in {where}" in told["notes"]
    assert f"it issued all_reduce #5 of default_pg in {where}" in told["suspects"][0]["evidence"]
