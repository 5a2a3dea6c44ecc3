"""The output can't be written: the verdict's exit status stands, or 74, and one line says why."""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

import pytest
from support.jobs.peers import make_socket
from support.lifecycle import environment
from support.parking import untraced
from support.served import Serve
from support.waiting import wait_until

from workerserver.cli.errors import OutputError
from workerserver.cli.output_file import is_plain, whole
from workerserver.http.registry import Registry

CLI = [sys.executable, "-m", "workerserver"]
SOON = ["--rounds", "1"]
COMMANDS = {
    "diagnose": ["diagnose", *SOON],
    "diagnose --json": ["diagnose", *SOON, "--json"],
    "stacks": ["stacks", *SOON],
    "fr": ["fr"],
    "ping": ["ping", "--count", "1"],
    "ls": ["ls"],
    "call": ["call", "dump_traceback"],
}
every_command = pytest.mark.parametrize("name", COMMANDS)


@pytest.fixture
def targets(serve: Serve, folder: Path) -> str:
    """A worker and one that is gone, so that no status is 0."""
    (folder / "rank0.sock").symlink_to(str(serve("unix").address))
    make_socket(folder / "rank1.sock")
    return str(folder / "rank{rank}.sock")


def shell(words: list[str], behind: str) -> subprocess.CompletedProcess[str]:
    """A command of ours with *behind* it, which is the shell's."""
    return subprocess.run(
        ["sh", "-c", f"{shlex.join([*CLI, *words])} {behind}"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@every_command
def test_the_status_stays(name: str, targets: str) -> None:
    words = [*COMMANDS[name], targets]
    usual = shell(words, "")
    assert usual.returncode != 0
    assert usual.stdout
    for behind in (">&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/null 2>/dev/full"):
        done = shell(words, behind)
        assert (done.returncode, done.stdout) == (usual.returncode, "")
    # A pipe without a reader.
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        ended = subprocess.run([*CLI, *words], env=environment(), stdout=pipe, timeout=60)
    assert ended.returncode == usual.returncode


@every_command
def test_a_full_disk(name: str, targets: str) -> None:
    words = [*COMMANDS[name], targets]
    usual = shell(words, ">/dev/null").stderr
    done = shell(words, ">/dev/full")
    said = "workerserver: the output could not be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (74, usual + said)
    assert shell(words, ">/dev/full 2>/dev/full").returncode == 74


@pytest.mark.parametrize("words", [["--help"], ["diagnose", "--help"]])
def test_help_on_a_full_disk(words: list[str]) -> None:
    done = shell(words, ">/dev/full")
    assert (done.returncode, done.stderr.count("\n")) == (74, 1)
    assert shell(words, ">&-").returncode == 0


@pytest.mark.parametrize("words", [["nonsense"], [], ["ls", "--nonsense"]])
def test_wrong_use_without_streams(words: list[str]) -> None:
    assert {shell(words, behind).returncode for behind in ("", "2>&-", ">&- 2>&-")} == {64}


def test_a_program_of_ones_own_is_left_alone(folder: Path) -> None:
    """``run`` gives the program the streams, and the errors, that Python gives it."""
    (folder / "own.py").write_text("import sys; sys.exit(3 if sys.stdout is None else 4)")
    words = ["run", "--socket", "./s", "own.py"]
    assert shell(words, ">&-").returncode == 3
    assert shell(words, "").returncode == 4


def full(words: list[str], blocks: int = 0) -> subprocess.Popen[str]:
    """A command of ours whose files hold so many blocks of 512 bytes at most: EFBIG, where a full
    disk gives ENOSPC."""
    return subprocess.Popen(
        ["sh", "-c", f"ulimit -S -f {blocks}; exec {shlex.join([*CLI, *words])}"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stream(found: IO[str] | None) -> IO[str]:
    assert found is not None
    return found


def test_watch_goes_on(targets: str, folder: Path) -> None:
    with full(["watch", "-v", "--every", "0.2", "--folder", "kept", targets]) as process:
        try:
            for _ in range(2):
                line = stream(process.stderr).readline()
                assert line == "workerserver: kept: File too large; this round's file is left out\n"
                assert stream(process.stdout).readline()
            assert not list((folder / "kept").glob("round-*.json"))
            _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
            wait_until(lambda: list((folder / "kept").glob("round-*.json")))
        finally:
            process.terminate()
    (kept, *_) = sorted((folder / "kept").glob("round-*.json"))
    assert json.loads(kept.read_text())["ranks"] == 2


def test_watch_outlives_its_reader(targets: str, folder: Path) -> None:
    words = ["watch", "--every", "0.05", "--count", "3", "--folder", "kept", targets]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = subprocess.run([*CLI, *words], env=environment(), stdout=pipe, timeout=60)
    assert done.returncode == shell([*words[:3], "--count", "1", *words[5:]], "").returncode
    assert len(list((folder / "kept").iterdir())) == 4


def test_top_ends_with_its_reader(targets: str) -> None:
    for more in ([], ["--json"]):
        shown = shell(["top", "--every", "0.05", *more, targets], "| head -n 1")
        assert len(shown.stdout.splitlines()) == 1


@untraced
def test_profile_says_what_is_full(serve: Serve, registry: Registry, folder: Path) -> None:
    registry.unregister("torch_profile")
    # If an earlier test has imported torch, torch has a handler of that name.
    traces = {"traceEvents": ["x"] * 10_000}
    registry.register("torch_profile", lambda duration: traces, shadow=True)
    path = str(serve("unix").address)
    words = ["profile", "--duration", "0.1", "-o", "all.json", path]
    for blocks, place, why in (
        (0, "temporary files", "No usable temporary directory found in "),
        (1, tempfile.gettempdir(), "File too large"),
    ):
        with full(words, blocks) as process:
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (74, "")
        (line,) = err.splitlines()
        begin = f"workerserver: {place} (see TMPDIR), where traces are kept: {why}"
        assert line.startswith(begin)
    done = shell(["profile", "--duration", "0.1", "-o", "/dev/full/all.json", path], "")
    assert (done.returncode, done.stdout) == (74, "")
    assert done.stderr == "workerserver: /dev/full/all.json: Not a directory\n"
    assert not list(folder.glob("all.json*"))


# --- the file of -o


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


def test_the_unfinished_file_is_never_somebody_elses(tmp_path: Path) -> None:
    """Who may write in the folder can guess its name."""
    path, part = tmp_path / "page.html", tmp_path / "page.html.part"
    victim = tmp_path / "victim"
    victim.write_text("mine")
    part.symlink_to(victim)
    with pytest.raises(OutputError), whole(str(path)) as file:
        file.write(b"page")
    assert victim.read_text() == "mine"
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")
def test_an_unfinished_file_of_a_stranger(tmp_path: Path) -> None:
    path, part = tmp_path / "page.html", tmp_path / "page.html.part"
    part.touch()
    os.chown(part, 65534, 65534)
    with open(part, "rb") as strangers:
        with pytest.raises(OutputError), whole(str(path)) as file:
            file.write(b"page")
        assert strangers.read() == b""


def test_an_unfinished_file_of_an_earlier_command(tmp_path: Path) -> None:
    (tmp_path / "page.html.part").write_text("half a page")
    with whole(str(tmp_path / "page.html")) as file:
        file.write(b"page")
    assert (tmp_path / "page.html").read_text() == "page"
