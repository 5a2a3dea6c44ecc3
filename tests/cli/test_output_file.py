"""The file of ``-o`` is a whole one or none, and nothing that is no file is replaced by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from workerserver.cli.errors import OutputError
from workerserver.cli.output_file import is_plain, whole


def test_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with whole(str(path)) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with whole(str(path)) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """As root, ``-o /dev/stdout`` replaced the machine's link by a file."""
    there, link = tmp_path / "there", tmp_path / "link"
    link.symlink_to(there)
    with whole(str(link)) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert there.read_bytes() == b"new"
    assert not is_plain("/dev/null")


def test_no_room() -> None:
    with pytest.raises(OutputError, match="No space left on device"), whole("/dev/full") as file:
        file.write(b"new")


def test_no_folder(tmp_path: Path) -> None:
    path = str(tmp_path / "none" / "out")
    with pytest.raises(OutputError, match="No such file or directory"), whole(path):
        pass
