"""Whom the watchdog tells besides the job's stderr."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from support.waiting import wait_until

from workerserver.blackbox.watchdog import telling
from workerserver.blackbox.watchdog.telling import Teller

LINE = "workerserver watchdog: rank 2 is gone"


def test_a_command_gets_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(telling.COMMAND, "cat > told.json")
    teller = Teller("", str(tmp_path), "job@host-1", None)
    assert teller.tell(LINE, {"status": 1}) == ""
    teller.wait(60)
    assert json.loads((tmp_path / "told.json").read_bytes()) == {"status": 1, "line": LINE}


EVIL = "rank 2 (\x1b[2Jhost\u202e\n\x9b) is gone"
SPELLED = "rank 2 (\\x1b[2Jhost\\u202e\\n\\x9b) is gone"


def test_names_in_a_line_are_spelled_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """For the command, for the URL, in the file and on stderr: all of them are for people."""
    posted: list[dict[str, str]] = []
    monkeypatch.setattr(telling, "_post", lambda url, value: posted.append(value))
    monkeypatch.setenv(telling.COMMAND, "cat > told.json")
    monkeypatch.setenv(telling.WEBHOOK, "http://nowhere.invalid/")
    teller = Teller(str(tmp_path), str(tmp_path), "job@host-1", os.dup(2))
    path = teller.tell(EVIL, {"status": 1, "host": "\u202e"})
    teller.wait(60)
    teller.close_stderr()
    document = {"status": 1, "host": "\u202e", "line": SPELLED}  # data stays as it was
    assert json.loads((tmp_path / "told.json").read_bytes()) == document
    assert json.loads(Path(path).read_bytes()) == document
    assert posted == [{"text": SPELLED}]
    assert capfdbinary.readouterr().err.decode() == f"{SPELLED}; {path}\n"


def test_a_command_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it has started, too."""
    monkeypatch.setenv(telling.COMMAND, "sleep 1000 & echo $! > pid; wait")
    monkeypatch.setattr(telling, "COMMAND_SECONDS", 1.0)
    teller = Teller("", str(tmp_path), "job@host-1", None)
    teller.tell(LINE, {})
    teller.wait(60)
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: ended(pid), 60)


def ended(pid: int) -> bool:
    """Whether the process is gone, or nobody has asked for its exit status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("refused", [0, 1, 3])
def test_a_url_is_tried_three_times(refused: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(503 if len(bodies) <= refused else 200)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    monkeypatch.setattr(telling, "PAUSE_SECONDS", 0.01)
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            monkeypatch.setenv(telling.WEBHOOK, f"http://127.0.0.1:{server.server_port}/hook")
            teller = Teller("", "/", "job@host-1", None)
            teller.tell(LINE, {"status": 1})
            teller.wait(60)
        finally:
            server.shutdown()
            serving.join()
    assert [json.loads(body) for body in bodies] == [{"text": LINE}] * min(refused + 1, 3)


def test_stderr_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line is left out, and no mode of the stream is changed: the stream is training's too."""
    monkeypatch.setattr(telling, "STDERR_SECONDS", 0.1)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):  # it is full
        while os.write(writer, bytes(4096)):
            pass
    os.set_blocking(writer, True)
    teller = Teller("", "/", "job@host-1", writer)
    teller.tell(LINE, {})
    assert os.get_blocking(writer)
    teller.close_stderr()
    with open(reader, "rb") as stream:
        assert LINE.encode() not in stream.read()
