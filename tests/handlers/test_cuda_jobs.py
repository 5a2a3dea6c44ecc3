"""Whole NCCL jobs that hang, and what the commands say of them. They need a GPU (``make
test-cuda``), and have not been run anywhere yet."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import answer
from support.lifecycle import environment
from support.torchrun import training
from support.waiting import wait_until
from support.wire import ask, post

torch = pytest.importorskip("torch")
from torch._C import _distributed_c10d as c10d  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
    pytest.mark.skipif(not hasattr(c10d, "_dump_nccl_trace"), reason="this torch has no NCCL"),
]

RANK = Path(__file__).resolve().parent.parent / "programs/handlers/nccl_rank.py"
#: torch 2.15 builds NCCL2 unless it is told not to; older torch has only the first NCCL.
HAS_NCCL2 = hasattr(c10d, "_reset_fr_trace")
KINDS = [
    pytest.param("0", "nccl", id="nccl"),
    pytest.param(
        "1",
        "nccl2",
        id="nccl2",
        marks=pytest.mark.skipif(not HAS_NCCL2, reason="this torch has no NCCL2"),
    ),
]


@contextlib.contextmanager
def job(scene: str, ranks: int, folder: Path, nccl2: str) -> Iterator[str]:
    sockets = f"{folder}/rank{{rank}}.sock"
    settings = environment(
        TORCH_WORKER_SERVER_SOCKET=sockets,
        TORCH_DIST_USE_NCCL2=nccl2,
        WORKERSERVER_TORCH_FALLBACK="1",
        FOLDER=str(folder),
    )
    with training(["--standalone", str(RANK), scene], settings, folder, ranks):
        yield sockets


@pytest.mark.parametrize(("nccl2", "backend"), KINDS)
def test_one_of_two_processes_has_not_come(short_path: Path, nccl2: str, backend: str) -> None:
    with job("late", 2, short_path, nccl2) as sockets:
        found: list[int] = []

        def accused() -> bool:
            _, verdict = answer("diagnose", "--world-size", "2", sockets)
            found[:] = [each["rank"] for each in verdict["suspects"]]
            return bool(found)

        wait_until(accused, 60)
        assert found == [1]


@pytest.mark.parametrize(("nccl2", "backend"), KINDS)
def test_the_device_of_one_process_hangs(short_path: Path, nccl2: str, backend: str) -> None:
    with job("device", 1, short_path, nccl2) as sockets:
        status, fields = answer("fr", sockets)
        (group,) = [each for each in fields["process_groups"] if each["backend"] == backend]
        (position,) = group["positions"]
        assert (position["last_issued"]["seq"], position["last_retired"]["seq"]) == (4, 3)
        assert status in (0, 1)
        status, verdict = answer("diagnose", "--world-size", "1", sockets)
        assert status in (1, 2)
        assert verdict["progress"] == []


@pytest.mark.parametrize(("nccl2", "backend"), KINDS)
def test_the_teardown_is_seen_whoever_has_the_gil(
    short_path: Path, nccl2: str, backend: str
) -> None:
    with job("teardown", 1, short_path, nccl2) as sockets:
        path = sockets.format(rank=0)

        def in_teardown() -> bool:
            reply = ask(path, post("dump_traceback"))
            return reply.status == 200 and "destroy_process_group" in reply.text

        wait_until(in_teardown, 60)
        handler = "dump_nccl_trace_json" if backend == "nccl" else "fr_trace_json?backend=nccl2"
        reply = ask(path, post(handler))
        assert reply.status == 200
        assert len(json.loads(reply.body)["entries"]) == 4
        status, _ = answer("diagnose", "--world-size", "1", sockets)
        assert status in (1, 2)
