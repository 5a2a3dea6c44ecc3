"""A folder of black boxes in which other users may write: what they put there does no harm.

A stranger's file is played by one of another owner, so most of this needs the superuser.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workerserver.blackbox.keeper import Keeper
from workerserver.blackbox.watchdog import telling
from workerserver.blackbox.watchdog.telling import Teller

STRANGER = 65534
superuser = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
LABEL = "job@host-1"


def boxes(folder: Path, name: str) -> Path:
    run = folder / name
    run.mkdir()
    (run / "rank0-1.box").write_bytes(b"box")
    return run


def keeper(tmp_path: Path, keep: int = 1) -> Keeper:
    tmpfs = tmp_path / "run" / "blackbox-job"
    tmpfs.mkdir(parents=True)
    shared = tmp_path / "shared"
    shared.mkdir(exist_ok=True)
    return Keeper(str(tmpfs), str(shared), keep, LABEL)


@superuser
def test_runs_of_strangers_push_no_run_out(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    mine = boxes(tmp_path / "shared", f"20200101T000000-{LABEL}")
    older = boxes(tmp_path / "shared", f"20190101T000000-{LABEL}")
    for year in range(3000, 3010):
        os.chown(boxes(tmp_path / "shared", f"{year}0101T000000-{LABEL}"), STRANGER, STRANGER)
    keeper(tmp_path, keep=2).begin()
    assert (mine / "rank0-1.box").exists()
    assert not older.exists()  # two of ours are kept: this run, and the one before


def test_links_are_no_runs(tmp_path: Path) -> None:
    """What a link leads to is not deleted, and the link counts for none of the runs to keep."""
    (tmp_path / "shared").mkdir()
    mine = boxes(tmp_path / "shared", f"20200101T000000-{LABEL}")
    elsewhere = boxes(tmp_path, "elsewhere")
    for name in ("2010", "3000"):
        (tmp_path / "shared" / f"{name}0101T000000-{LABEL}").symlink_to(elsewhere)
    keeper(tmp_path, keep=2).begin()
    assert (mine / "rank0-1.box").exists()
    assert (elsewhere / "rank0-1.box").exists()


def test_a_link_in_place_of_the_runs_folder(tmp_path: Path) -> None:
    """Its name can be guessed: it is a time, the job, the host and a pid."""
    made = keeper(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.symlink(elsewhere, made.run_folder)
    with pytest.raises(FileExistsError):
        made.begin()


@superuser
def test_a_folder_of_a_stranger_in_place_of_the_runs(tmp_path: Path) -> None:
    made = keeper(tmp_path)
    os.mkdir(made.run_folder)
    os.chown(made.run_folder, STRANGER, STRANGER)
    with pytest.raises(FileExistsError):
        made.begin()


def test_a_folder_of_ours_is_taken_again(tmp_path: Path) -> None:
    made = keeper(tmp_path)
    os.mkdir(made.run_folder)
    made.begin()


@superuser
def test_verdicts_of_strangers_push_no_verdict_out(tmp_path: Path) -> None:
    for number in range(2 * telling.KEEP):
        path = tmp_path / f"verdict-30000101T000000.{number:03}Z-{LABEL}.json"
        path.touch()
        os.chown(path, STRANGER, STRANGER)
    teller = Teller(str(tmp_path), "/", LABEL, None)
    told = teller.tell("rank 2 is gone", {"status": 1})
    teller.wait(60)
    assert os.path.exists(told)
