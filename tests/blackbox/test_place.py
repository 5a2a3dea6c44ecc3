"""Where a box lies, how large it may be, and what of the process it tells."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.lifecycle import run_isolated

from workerserver.blackbox import place
from workerserver.blackbox.format import LEAST_BYTES, MAX_BYTES
from workerserver.blackbox.identity import (
    MAX_RECORD_BYTES,
    cgroup_files,
    identity_bytes,
    without_secrets,
)
from workerserver.job.identity import own

MIB = 1 << 20


def sized(monkeypatch: pytest.MonkeyPatch, mib: int) -> None:
    """Every file system has so many MiB."""
    told = SimpleNamespace(f_blocks=mib * 256, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: told)


@pytest.mark.parametrize(
    ("mib", "ranks", "size"),
    [
        (65536, 8, MAX_BYTES),
        (64, 4, MAX_BYTES),
        (64, 8, MIB),
        (64, None, MIB),
        (64, 16, LEAST_BYTES),
        (64, 17, None),
        (1, 1, None),
    ],
)
def test_the_boxes_of_a_host_share_an_eighth(
    mib: int, ranks: int | None, size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized(monkeypatch, mib)
    if size is None:
        with pytest.raises(place.NoPlace, match=f"/dev/shm has {mib} MiB, which is too little"):
            place.size_for("/dev/shm", ranks)
    else:
        assert place.size_for("/dev/shm", ranks) == size
        assert size * (ranks or 8) <= mib * MIB // 8


def test_the_boxes_of_a_user_share_a_quarter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized(monkeypatch, 16)
    folders = [tmp_path / f"blackbox-{job}" for job in "abc"]
    for folder in folders:
        folder.mkdir()
    made = []
    for folder in folders:
        try:
            path, descriptor = place.create(str(folder), "1-1.box", MAX_BYTES, str(tmp_path))
        except place.NoPlace:
            continue
        os.close(descriptor)
        made.append(path)
    assert len(made) == 2  # of 4 MiB


def test_a_new_file_for_the_user_alone_whose_room_is_there(tmp_path: Path) -> None:
    path, descriptor = place.create(str(tmp_path), "1-1.box", LEAST_BYTES, str(tmp_path))
    status = os.fstat(descriptor)
    os.close(descriptor)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size == LEAST_BYTES
    assert status.st_blocks * 512 >= LEAST_BYTES
    # The same process after an exec: its former box goes, whoever has it open.
    with open(path, "rb") as former:
        os.close(place.create(str(tmp_path), "1-1.box", LEAST_BYTES, str(tmp_path))[1])
        assert not os.path.samestat(os.fstat(former.fileno()), os.stat(path))
    (tmp_path / "2-2.box").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        place.create(str(tmp_path), "2-2.box", LEAST_BYTES, str(tmp_path))
    assert not (tmp_path / "elsewhere").exists()
    assert path == str(tmp_path / "1-1.box")


@pytest.mark.skipif(sys.platform != "linux", reason="black boxes need Linux")
def test_without_a_tmpfs_there_is_no_box_and_one_warning(tmp_path: Path) -> None:
    done = run_isolated("blackbox/no_place.py", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "trained\n"
    lines = done.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("this worker keeps no black box: ")
    assert not list(tmp_path.glob("*/*/*.box"))


def test_what_looks_like_a_secret_is_hidden() -> None:
    words = [
        *(
            "python",
            "train.py",
            "--lr=0.1",
            "--hub-token=abc1",
            "--wandb-key",
            "abc2",
            "--steps",
            "3",
        ),
        *("api_key:abc3", '{"password": "abc4"}', "optimizer.SECRET = abc5", "--keep-secrets"),
        *("--verbose", "https://me:abc6@host/data", "--passwd", "abc7"),
    ]
    shown = without_secrets(words)
    assert "abc" not in " ".join(shown)
    for kept in ("train.py", "--lr=0.1", "--steps", "3", "--verbose", "--hub-token=***"):
        assert kept in shown
    assert "https://me:***@host/data" in shown


def test_the_record_of_who_it_is_always_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "x" * 100_000, "\U0001f9e8" * 5000])
    data = identity_bytes(own(), {"memory.max": "/sys/fs/cgroup/" + "y" * 300}, 5.0)
    assert len(data) <= MAX_RECORD_BYTES
    assert json.loads(data)["pid"] == os.getpid()


V2 = "0::/job/rank0\n"
V1 = "5:cpu:/x\n4:memory,hugetlb:/slurm/job_7\n0::/\n"


@pytest.mark.parametrize(
    ("lines", "folder", "names"),
    [
        (V2, "job/rank0", ["memory.current", "memory.events"]),
        (V2, ".", ["memory.max"]),  # a container sees its own as the root: nothing of its path
        (V1, "memory/slurm/job_7", ["memory.usage_in_bytes", "memory.oom_control"]),
        (V1, "memory", ["memory.limit_in_bytes"]),
        ("", ".", []),
    ],
)
def test_the_files_of_the_cgroup(lines: str, folder: str, names: list[str], tmp_path: Path) -> None:
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/cgroup").write_text(lines)
    there = tmp_path / "sys/fs/cgroup" / folder
    there.mkdir(parents=True, exist_ok=True)
    for name in names:
        (there / name).write_text("7\n")
    found = cgroup_files(1, str(tmp_path))
    seen = {name: os.path.realpath(path) for name, path in found.items()}
    assert seen == {name: os.path.realpath(there / name) for name in names}


def test_labels_are_plain_names() -> None:
    assert place.label_of("a/../b c", "node.7", "12:34") == "a_.._b_c@node.7-12"
    assert "/" not in place.label_of("/" * 100, "/", "1:2")
