"""Which file systems may hang: by the table of mounts, and without a look at what may."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from workerserver.process import run_folder

TABLE = r"""
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:5 / /tmp rw - tmpfs tmpfs rw
23 21 0:40 / /home rw - nfs4 server:/home rw
24 21 0:41 / /scratch rw shared:2 master:1 - lustre 10.0.0.1@tcp:/scratch rw
25 24 8:2 / /scratch/local rw - xfs /dev/sdb1 rw
26 21 0:42 / /mnt/two\040words rw - fuse.sshfs host: rw
27 21 0:43 / /over rw - ext4 /dev/sdc1 rw
28 21 0:44 / /over rw - nfs server:/over rw
29 21 0:45 / /auto rw - autofs systemd-1 rw
a line that is none
"""


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    table = tmp_path / "mounts"
    table.write_text(TABLE)
    monkeypatch.setattr(run_folder, "_MOUNTS", str(table))
    return run_folder._mounts()


@pytest.mark.parametrize(
    ("path", "remote"),
    [
        ("/", False),
        ("/tmp/x", False),
        ("/home/me/tmp", True),
        ("/homes", False),
        ("/scratch", True),
        ("/scratch/local/tmp", True),  # the way there leads over it
        ("/mnt/two words/x", True),
        ("/mnt/two", False),
        ("/over/x", True),  # what was mounted last
        ("/auto/me", True),
        ("/tmp/../home", True),
        ("/tmp/./x//y", False),
    ],
)
def test_the_kind_of_a_file_system(path: str, remote: bool, mounts: dict[str, str]) -> None:
    assert run_folder._is_remote(path, mounts) is remote


def test_links_are_followed_as_far_as_they_are_local(
    tmp_path: Path, mounts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "away").symlink_to("/scratch/me")
    (tmp_path / "near").symlink_to("plain")
    (tmp_path / "round").symlink_to("round")
    looked = []
    readlink = os.readlink

    def look(path: str) -> str:
        looked.append(path)
        return readlink(path)

    monkeypatch.setattr(os, "readlink", look)
    assert run_folder._is_remote(f"{tmp_path}/away/x", mounts)
    assert run_folder._is_remote(f"{tmp_path}/round", mounts)
    assert not run_folder._is_remote(f"{tmp_path}/near/x", mounts)
    assert not any(path.startswith("/scratch") for path in looked)


def test_where_the_run_folder_is(mounts: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/home/me")
    assert run_folder.may_hang()
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    assert not run_folder.may_hang()
    monkeypatch.setattr("tempfile.tempdir", None)  # nobody has asked yet
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    assert not run_folder.may_hang()
    monkeypatch.setenv("TMPDIR", "/scratch/me")
    assert run_folder.may_hang()
    monkeypatch.setattr(run_folder, "_MOUNTS", "/nonexistent")  # no /proc
    assert not run_folder.may_hang()


class Taken:
    """A lock that nobody gets, as in a process that was forked while another thread had it."""

    def acquire(self) -> None:
        raise AssertionError("this would wait for ever")

    def release(self) -> None:
        raise AssertionError


def test_tempfile_may_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "_once_lock", Taken())
    monkeypatch.setattr(tempfile, "_name_sequence", None)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    monkeypatch.setenv("TEMP", str(tmp_path))
    assert run_folder.run_folder() == f"{tmp_path}/workerserver-{os.geteuid()}"
    fresh = Path(run_folder.fresh_folder("of-ours-", str(tmp_path)))
    assert (fresh.parent, fresh.stat().st_mode & 0o777) == (tmp_path, 0o700)
    assert run_folder.fresh_folder("of-ours-", str(tmp_path)) != str(fresh)


def test_no_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(FileNotFoundError, match="no folder for temporary files"):
        run_folder.temporary_folder()


@pytest.mark.parametrize("named", [["TMPDIR"], ["TEMP", "TMP"], ["TMP"], []])
def test_the_folder_is_that_of_tempfile(
    named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    for name in named:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(tempfile, "tempdir", None)
    found = run_folder.temporary_folder()
    assert found == tempfile.gettempdir()
