"""Forked children: they hold nothing of their parent's servers and end as they like."""

from __future__ import annotations

import json
import os
import signal
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.lifecycle import Address, ask, run_isolated, talking
from support.waiting import wait_until

from workerserver import WorkerServer
from workerserver.process.sockets import close_accepted


def scene(tmp_path: Path, name: str) -> list[dict[str, Any]]:
    done = run_isolated("server/fork_scene.py", name, str(tmp_path), seconds=100)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr or name == "block", done.stderr
    assert os.listdir(tmp_path) == []
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_child_holds_no_socket_of_ours(tmp_path: Path) -> None:
    child, parent = scene(tmp_path, "descriptors")
    assert child == {"child": [], "running": 0, "heartbeat": None}
    # Two listeners and three connections. The parent's descriptors and those of its clients stay.
    assert parent == {"code": 0, "before": 5, "after": True, "unix": 2, "heartbeat": 7}


def refused(address: Address) -> bool:
    """Whether nobody listens at *address*; a connection that is made must get no answer."""
    try:
        ask(address)
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        return False
    pytest.fail(f"{address} answers")


def test_parent_is_killed_while_the_child_lives(tmp_path: Path) -> None:
    """Nothing listens any more, although a child that was forked from the server goes on."""
    path = tmp_path / "s.sock"
    with talking("server/fork_scene.py", "killed", str(tmp_path)) as talker:
        said = json.loads(talker.hear())
        assert ask(str(path)) == (200, "pong")
        assert ask(("127.0.0.1", said["port"])) == (200, "pong")
        talker.process.kill()
        talker.process.wait()
        try:
            os.kill(said["child"], 0)  # lives
            # The child closes what it inherited with its first instruction.
            wait_until(lambda: refused(str(path)) and refused(("127.0.0.1", said["port"])))
            with WorkerServer(str(path)), WorkerServer("127.0.0.1", said["port"]):
                assert ask(str(path)) == (200, "pong")
        finally:
            os.kill(said["child"], signal.SIGKILL)


def test_however_a_child_ends_the_server_goes_on(tmp_path: Path) -> None:
    """os._exit, multiprocessing, shutdown() of the inherited servers, sys.exit and atexit."""
    multiprocessing, child, parent = scene(tmp_path, "endings")
    assert (multiprocessing, child) == ({}, {"atexit": True})
    assert parent == {"codes": [0, 0, 0, 5], "file": True, "tcp": [200, "pong"]}


def test_child_and_grandchild_serve_on_their_own(tmp_path: Path) -> None:
    (said,) = scene(tmp_path, "child_serves")
    assert said == {"code": 0, "ping": [200, "pong"], "parent": True, "left": ["s.sock"]}


def test_child_leaves_through_the_block_of_worker_main(tmp_path: Path) -> None:
    assert scene(tmp_path, "block") == [{"codes": [4, 6, 0]}, {"removed": True}]


def test_200_forks_under_load(tmp_path: Path) -> None:
    """Also none of the connections that were accepted but not yet known to Python."""
    (said,) = scene(tmp_path, "load")
    assert said == {"bad": [], "count": 0, "errors": [], "answered": True}


def test_fork_while_a_server_cannot_close(tmp_path: Path) -> None:
    child, parent = scene(tmp_path, "while_closing")
    assert child == {"child": 0}
    assert parent == {"code": 0, "parent": True, "alive": False}


@pytest.mark.torch
@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
def test_data_loader_with_forked_workers(tmp_path: Path) -> None:
    done = run_isolated("server/fork_loader.py", str(tmp_path / "s.sock"))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout) == {
        "sums": [2016] * 4,
        "held": 0,
        "workers": 8,
        "answers": [[200, "pong"]],
        "pinged": True,
    }


@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
def test_only_connections_of_the_listener_are_closed(host: str) -> None:
    """close_accepted() finds accepted connections, and no other socket."""
    if host == "::" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    family = socket.AF_INET6 if host == "::" else socket.AF_INET
    with socket.socket(family) as listener, socket.socket(type=socket.SOCK_DGRAM) as same_number:
        if host == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, 0))
        listener.listen()
        port = listener.getsockname()[1]
        name = listener.getsockname()
        same_number.bind(("127.0.0.1", port))
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = listener.accept()
            listener.close()
            number = accepted.detach()
            close_accepted([name])
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(number)
            assert client.recv(1) == b""
            assert same_number.getsockname()[1] == port
