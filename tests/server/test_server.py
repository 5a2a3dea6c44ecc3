"""Where a server listens: socket files and ports, from the first moment to the last."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.lifecycle import alive, ask, free_port, run_isolated, talking
from support.waiting import wait_until

from workerserver.process.sockets import MAX_PATH_BYTES, UnixListener
from workerserver.server import Limits, WorkerServer

PONG = (200, "pong")


@contextlib.contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def current_umask() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        (line,) = [line for line in file if line.startswith("Umask:")]
    return int(line.split()[1], 8)


# --- the socket file -----------------------------------------------------------------------------


def test_serves_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")
    with WorkerServer(path) as server:
        assert server.port == -1
        assert server.address == path
        assert ask(path) == PONG
        assert server.requests == {("ping", 200): 1}
        assert repr(server) == f"<WorkerServer {path}>"
    assert repr(server) == f"<WorkerServer {path} closed>"
    assert not os.path.lexists(path)
    assert not alive(path)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_mode_is_0600_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    path = tmp_path / "s.sock"
    with umask(mask), WorkerServer(str(path)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert current_umask() == mask


def test_mode_is_0600_from_the_first_moment(tmp_path: Path) -> None:
    """The file as it is when bind() has made it, before anybody could connect."""
    path = tmp_path / "s.sock"
    seen: list[int] = []
    real = socket.socket.listen

    def listen(self: socket.socket, *backlog: int) -> None:
        seen.append(stat.S_IMODE(path.stat().st_mode))
        real(self, *backlog)

    with umask(0), pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "listen", listen)
        patch.setattr(os, "chmod", None)  # after bind() it would be too late
        UnixListener(str(path)).socket.close()
    assert seen == [0o600]


def dead_socket(path: Path) -> None:
    """The socket file that a server leaves behind after SIGKILL."""
    with talking("server/server_scene.py", "serve", str(path)) as other:
        assert other.hear() == "serving"
        other.process.kill()
        other.process.wait()
    assert stat.S_ISSOCK(path.lstat().st_mode)


def test_stale_socket_of_a_killed_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    dead_socket(path)
    with WorkerServer(str(path)):
        assert ask(str(path)) == PONG


@pytest.mark.parametrize("backlog", ["free", "full"])
def test_live_socket_is_refused(tmp_path: Path, backlog: str) -> None:
    path = str(tmp_path / "s.sock")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(0)
        if backlog == "full":
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                if client.connect_ex(path) == errno.EAGAIN:
                    break
        with pytest.raises(RuntimeError) as caught:
            WorkerServer(path)
        assert str(caught.value) == f"{path} already exists"
        assert os.path.lexists(path)


def test_own_live_socket_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")
    with WorkerServer(path):
        with pytest.raises(RuntimeError, match="already exists"):
            WorkerServer(path)
        assert ask(path) == PONG


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link", "link to stale"])
def test_what_is_no_stale_socket_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s.sock"
    target = tmp_path / "target"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        if kind == "link":
            target.write_text("precious")
        elif kind == "link to stale":
            dead_socket(target)
        path.symlink_to(target)
    before = (path.lstat().st_ino, path.lstat().st_mtime_ns, target.exists())
    with pytest.raises(RuntimeError) as caught:
        WorkerServer(str(path))
    assert str(caught.value) == f"{path} already exists"
    assert (path.lstat().st_ino, path.lstat().st_mtime_ns, target.exists()) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_stale_socket_of_another_user_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    dead_socket(path)
    os.chown(path, 12345, -1)
    with pytest.raises(RuntimeError, match="already exists"):
        WorkerServer(str(path))
    assert path.lstat().st_uid == 12345


@pytest.mark.parametrize(
    ("name", "cause", "number"),
    [
        ("x" * (MAX_PATH_BYTES + 1), "at most", errno.ENAMETOOLONG),
        ("\N{SNOWMAN}" * 36, "at most", errno.ENAMETOOLONG),  # 108 bytes, 36 characters
        ("{folder}/missing/s.sock", "missing", errno.ENOENT),
        ("{folder}/file/s.sock", "file", errno.ENOTDIR),
        ("{folder}/s\0.sock", "NUL", errno.EINVAL),
        ("\0abstract", "NUL", errno.EINVAL),
        ("", "empty", errno.EINVAL),
    ],
)
def test_impossible_paths(tmp_path: Path, name: str, cause: str, number: int) -> None:
    (tmp_path / "file").touch()
    path = name.replace("{folder}", str(tmp_path))
    with pytest.raises(RuntimeError) as caught:
        WorkerServer(path)
    assert str(caught.value) == f"Error binding to {path}"
    reason = caught.value.__cause__
    assert isinstance(reason, OSError)
    assert reason.errno == number
    assert cause in str(reason)
    assert os.listdir(tmp_path) == ["file"]


def test_path_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Error binding to") as caught:
        WorkerServer(f"{tmp_path}/\ud800")
    assert isinstance(caught.value.__cause__, UnicodeEncodeError)


def test_path_of_the_greatest_length(tmp_path: Path) -> None:
    path = f"{tmp_path}/".ljust(MAX_PATH_BYTES, "x")
    with WorkerServer(path):
        assert ask(path) == PONG


def test_folder_without_write_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        folder = Path("/proc/self")  # where no user may make a file
    else:
        folder = tmp_path
        folder.chmod(0o500)
    with pytest.raises(RuntimeError, match="Error binding to") as caught:
        WorkerServer(str(folder / "s.sock"))
    assert isinstance(caught.value.__cause__, OSError)


def test_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(RuntimeError, match=r"Error binding to s\.sock") as caught:
        WorkerServer("s.sock")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


@pytest.mark.parametrize("replacement", ["server", "file", "nothing"])
def test_only_its_own_file_is_removed(tmp_path: Path, replacement: str) -> None:
    path = tmp_path / "s.sock"
    with contextlib.ExitStack() as stack:
        with WorkerServer(str(path)):
            path.unlink()
            if replacement == "server":
                stack.enter_context(WorkerServer(str(path)))
            elif replacement == "file":
                path.write_text("precious")
        assert path.exists() == (replacement != "nothing")
        if replacement == "server":
            assert ask(str(path)) == PONG


def test_relative_path_outlives_chdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    server = WorkerServer("s.sock")
    monkeypatch.chdir(tmp_path / "b")
    (tmp_path / "b" / "s.sock").write_text("another file of that name")
    assert ask(str(tmp_path / "a" / "s.sock")) == PONG
    server.shutdown()
    assert os.listdir(tmp_path / "a") == []
    assert os.listdir(tmp_path / "b") == ["s.sock"]


def test_relative_path_in_a_deep_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is on the path that bind() gets, not on the absolute path."""
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with WorkerServer("s.sock"):
        assert ask("s.sock") == PONG
    assert os.listdir(folder) == []


def test_failed_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that was asked for and can't be read: no server without it."""
    monkeypatch.setenv("WORKERSERVER_TOKEN_FILE", str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="WORKERSERVER_TOKEN_FILE"):
        WorkerServer(str(tmp_path / "s.sock"))
    assert os.listdir(tmp_path) == []


def test_one_of_two_starters_wins(tmp_path: Path) -> None:
    """Two processes find the same stale socket at the same moment."""
    path = tmp_path / "s.sock"
    with (
        talking("server/server_scene.py", "race", str(path)) as first,
        talking("server/server_scene.py", "race", str(path)) as second,
    ):
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(path))  # and never listens, so its file is stale
            both = (first, second)
            for each in both:
                each.say("start")
            heard = [each.hear() for each in both]
            assert sorted(heard) == sorted(["served", f"{path} already exists"])
            winner = both[heard.index("served")]
            assert ask(str(path))[0] == 200
            assert asked_pid(str(path)) == winner.pid
            winner.say("stop")
            assert winner.hear() == "stopped"
            assert not path.exists()
        for each in both:
            assert each.end() == (0, "")


def asked_pid(path: str) -> int:
    return int(json.loads(ask(path, "/healthz", "GET")[1])["pid"])


# --- TCP -----------------------------------------------------------------------------------------


def test_ephemeral_port() -> None:
    with WorkerServer("127.0.0.1", 0) as server:
        assert 0 < server.port < 65536
        assert server.address == f"127.0.0.1:{server.port}"
        assert ask(("127.0.0.1", server.port)) == PONG
    assert not alive(("127.0.0.1", server.port))


def test_given_port_can_be_served_again_at_once() -> None:
    port = free_port()
    for _ in range(3):
        with WorkerServer("127.0.0.1", port) as server:
            assert server.port == port
            assert ask(("127.0.0.1", port)) == PONG


@pytest.mark.parametrize("by", ["a server", "somebody else"])
def test_port_that_is_taken(by: str) -> None:
    with contextlib.ExitStack() as stack:
        if by == "a server":
            port = stack.enter_context(WorkerServer("127.0.0.1", 0)).port
        else:
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            port = sock.getsockname()[1]
        with pytest.raises(RuntimeError) as caught:
            WorkerServer("127.0.0.1", port)
        assert str(caught.value) == f"Error binding to 127.0.0.1:{port}"
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.EADDRINUSE


@pytest.mark.parametrize("host", ["", "::"])
def test_every_interface(host: str) -> None:
    with WorkerServer(host, 0) as server:
        assert server.address == f"[::]:{server.port}"
        assert ask(("127.0.0.1", server.port)) == PONG
        if socket.has_dualstack_ipv6():
            assert ask(("::1", server.port)) == PONG


def test_ipv6_host_alone() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    others = 0
    for _ in range(5):
        with WorkerServer("::1", 0) as server:
            assert server.address == f"[::1]:{server.port}"
            assert ask(("::1", server.port)) == PONG
            # Another program may have this port of 127.0.0.1.
            others += alive(("127.0.0.1", server.port))
    assert others < 5


def test_named_host() -> None:
    with WorkerServer("localhost", 0) as server:
        assert ask(("localhost", server.port)) == PONG


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("no-such-host.invalid", 0),
        ("192.0.2.1", 0),  # TEST-NET-1: nobody's own
        ("999.1.1.1", 0),
        ("x" * 70, 0),  # no DNS label is that long
        ("127.0.0.1", 65536),
        ("127.0.0.1", -2),
    ],
)
def test_bad_host_or_port(host: str, port: int) -> None:
    with pytest.raises(RuntimeError) as caught:
        WorkerServer(host, port)
    assert str(caught.value) == f"Error binding to {host}:{port}"
    assert isinstance(caught.value.__cause__, (OSError, UnicodeError))


def test_open_port_without_a_token(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WORKERSERVER_TOKEN", raising=False)
    with WorkerServer("127.0.0.1", 0), WorkerServer("localhost", 0):
        assert caplog.records == []
    with WorkerServer("0.0.0.0", 0):
        assert "without a token" in caplog.text
    monkeypatch.setenv("WORKERSERVER_REQUIRE_TOKEN", "1")
    with WorkerServer("127.0.0.1", 0):
        pass
    with pytest.raises(RuntimeError, match=r"Error binding to 0\.0\.0\.0:0") as caught:
        WorkerServer("0.0.0.0", 0)
    assert isinstance(caught.value.__cause__, PermissionError)
    caplog.clear()
    with WorkerServer("0.0.0.0", 0, token="secret") as server:
        assert ask(("127.0.0.1", server.port))[0] == 401
    assert caplog.records == []


# --- many, and again ------------------------------------------------------------------------------


def loop_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "workerserver-loop"]


def test_many_servers_share_one_thread(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(WorkerServer(str(tmp_path / f"{i}"))) for i in range(20)]
        servers += [stack.enter_context(WorkerServer("127.0.0.1", 0)) for _ in range(5)]
        assert len(loop_threads()) == 1
        for server in servers[:20]:
            assert ask(server.address) == PONG
        servers[0].shutdown()
        assert not alive(servers[0].address)
        assert ask(servers[1].address) == PONG
        assert len(loop_threads()) == 1
    assert loop_threads() == []


def test_shutdown_twice(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    server = WorkerServer(str(path))
    server.shutdown()
    with WorkerServer(str(path)):
        server.shutdown()
        with server:
            pass
        assert ask(str(path)) == PONG


def test_shutdown_from_many_threads(tmp_path: Path) -> None:
    with WorkerServer(str(tmp_path / "other")):
        server = WorkerServer(str(tmp_path / "s.sock"))
        threads = [threading.Thread(target=server.shutdown) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert ask(str(tmp_path / "other")) == PONG


def test_servers_from_many_threads(tmp_path: Path) -> None:
    """The last release() of the loop's thread and the next acquire() meet all the time."""
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(20):
                with WorkerServer(str(tmp_path / str(number))) as server:
                    assert ask(server.address) == PONG
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert not any(thread.is_alive() for thread in threads)
    assert os.listdir(tmp_path) == []
    wait_until(lambda: not loop_threads())


def test_start_and_stop_200_times_leaks_nothing(tmp_path: Path) -> None:
    done = run_isolated("server/server_scene.py", "leaks", str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing leaked\n", "")
    assert os.listdir(tmp_path) == []


def test_limits_are_kept(tmp_path: Path) -> None:
    with WorkerServer(str(tmp_path / "s"), limits=Limits(max_connections=1)) as server:
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            first.connect(server.address)
            wait_until(lambda: server.connections == 1)
            second.connect(server.address)
            assert second.recv(1000).startswith(b"HTTP/1.1 503 ")
        wait_until(lambda: server.connections == 0)
        assert ask(server.address) == PONG
