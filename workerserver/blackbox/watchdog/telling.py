"""Where a verdict goes: one line on the job's stderr, a file beside the boxes, a command, a URL."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from workerserver.blackbox.format import BoxError
from workerserver.blackbox.read import read_bytes
from workerserver.blackbox.watchdog.diagnosis import bounded, report_words
from workerserver.blackbox.watchdog.incident import Incident
from workerserver.job.printable import escape_line

__all__ = ["COMMAND", "WEBHOOK", "Teller"]

COMMAND = "WORKERSERVER_ON_VERDICT"
WEBHOOK = "WORKERSERVER_WEBHOOK"
#: A write to a pipe of so many bytes at most is whole, or is not made.
MAX_LINE_BYTES = 3500
STDERR_SECONDS = 1.0
COMMAND_SECONDS = 60.0
#: For each of TRIES.
WEBHOOK_SECONDS = 10.0
TRIES = 3
PAUSE_SECONDS = 2.0
#: In the folder of the boxes.
INCIDENT = "incident.json"
PAGE_SECONDS = 60.0
#: Verdicts that are kept in the folder, each with its page.
KEEP = 100
_NAME = re.compile(r"verdict-\d{8}T\d{6}(?:\.\d{3})?Z[^/]{0,200}\.(?:json|html)\Z")


class Teller:
    """*folder*: of the verdicts; "" if there is none. *cwd*: where the job was started, for the
    command. *label*: in the file's name, since hosts of a job may write to one folder."""

    def __init__(self, folder: str, cwd: str, label: str, stderr: int | None) -> None:
        self._folder = folder
        self._cwd = cwd
        self._label = label
        self._lock = threading.Lock()
        self._stderr = stderr
        self._busy: list[threading.Thread] = []

    def wait(self, seconds: float) -> None:
        """Until the file is written, and the command and the URL are told."""
        give_up = time.monotonic() + seconds
        for thread in self._busy:
            thread.join(max(0.0, give_up - time.monotonic()))

    def close_stderr(self) -> None:
        """For good: whoever reads the job's output sees its end as without us."""
        with self._lock:
            descriptor, self._stderr = self._stderr, None
            if descriptor is not None:
                os.close(descriptor)

    def tell(
        self, line: str, document: dict[str, Any], name: str = "", targets: Sequence[str] = ()
    ) -> str:
        """Write the *line*, and *document* to a file: to the file *name* of an earlier call, or to
        a new one. The file's path; "" if there is none. *targets*: whose page is written. Names in
        the line are chosen by strangers, and a chat or a log shows the line as it is."""
        path = name or self._path()
        line = escape_line(line)
        document = {**document, "line": line}
        self.say(f"{line}; {path}" if path else line)
        if path:
            # A folder that blocks keeps nobody from the line, the command and the URL.
            self._apart(lambda: self._save(path, document, targets))
        command, url = os.environ.get(COMMAND), os.environ.get(WEBHOOK)
        if command:
            data = json.dumps(document).encode("ascii") + b"\n"
            self._apart(lambda: bounded(command, data, COMMAND_SECONDS, cwd=self._cwd))
        if url:
            self._apart(lambda: _post(url, {"text": line}))
        return path

    def _apart(self, work: Callable[[], object]) -> None:
        """In a thread: no look at the job waits for any of this."""
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._busy = [*(each for each in self._busy if each.is_alive()), thread]

    # ---- what the watchdog of the job's next attempt has to know

    def remember(self, boxes: str, incident: Incident) -> None:
        """In the folder *boxes*: torchrun may start the workers again, and then another keeper
        tells that the job goes on."""
        if incident.restart is None:
            return  # of this one, nobody counts the attempts
        with contextlib.suppress(OSError):
            _write(os.path.join(boxes, INCIDENT), {"label": self._label, **asdict(incident)})

    def remembered(self, boxes: str) -> Incident | None:
        with contextlib.suppress(
            OSError, ValueError, TypeError, KeyError, AttributeError, BoxError
        ):
            value = json.loads(read_bytes(os.path.join(boxes, INCIDENT)))
            if value.pop("label") == self._label:  # one process may start one job after the other
                return Incident(**value)
        return None

    def forget(self, boxes: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(boxes, INCIDENT))

    def say(self, line: str) -> None:
        """The stream is training's too. So it is not made non-blocking, and a reader who does not
        read keeps nobody: what has no room is left out."""
        data = escape_line(line).encode("utf-8", "backslashreplace")[:MAX_LINE_BYTES] + b"\n"
        with self._lock, contextlib.suppress(OSError):
            if self._stderr is None:
                return
            poll = select.poll()
            poll.register(self._stderr, select.POLLOUT)
            if any(event & select.POLLOUT for _, event in poll.poll(STDERR_SECONDS * 1000)):
                os.write(self._stderr, data)

    # ---- files

    def _path(self) -> str:
        if not self._folder:
            return ""
        now = time.time()
        second = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now))
        name = f"verdict-{second}.{int(now % 1 * 1000):03}Z-{self._label}.json"
        return os.path.join(self._folder, name)

    def _save(self, path: str, document: dict[str, Any], targets: Sequence[str]) -> None:
        with contextlib.suppress(OSError):
            _write(path, document)
        if targets:  # a page is of a look of its own, a moment later
            words = report_words(f"{path.removesuffix('.json')}.html", targets)
            bounded(words, b"", PAGE_SECONDS, umask=0o077)  # as private as the rest of the folder
        with contextlib.suppress(OSError):
            owner = os.lstat(path).st_uid  # others may write here, with names of years to come
            names = sorted(name for name in os.listdir(self._folder) if _NAME.match(name))
            found = [os.path.join(self._folder, name) for name in names]
            for each in [each for each in found if os.lstat(each).st_uid == owner][: -2 * KEEP]:
                os.unlink(each)


def _write(path: str, document: dict[str, Any]) -> None:
    """Whole or not at all. OSError."""
    part = f"{path}.{threading.get_native_id()}.part"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(part, flags, 0o600), "w", encoding="ascii") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def _post(url: str, value: dict[str, Any]) -> bool:
    """Whether the URL took it."""
    from urllib.error import HTTPError  # few jobs need these, and they are large
    from urllib.request import Request, urlopen

    if not url.startswith(("https://", "http://")):
        return False
    data = json.dumps(value).encode("ascii")
    for number in range(TRIES):
        if number:
            time.sleep(PAUSE_SECONDS)
        try:
            request = Request(url, data, {"Content-Type": "application/json"})
            with urlopen(request, timeout=WEBHOOK_SECONDS) as answer:
                answer.read(1024)
                return True
        except HTTPError as refusal:
            refusal.close()  # it is an answer, too
        except Exception:
            continue
    return False
