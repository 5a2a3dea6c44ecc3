"""A real browser, driven by the WebDriver protocol (W3C): headless Chromium with chromedriver."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Browser", "browser", "missing"]

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def missing() -> str | None:
    """Why there is no browser; None if there is one."""
    names = ("chromedriver", "chromium")
    gone = [name for name in names if shutil.which(name) is None]
    return f"needs {' and '.join(gone)} (Debian: chromium, chromium-driver)" if gone else None


class Browser:
    """One session. A command that fails raises HTTPError."""

    def __init__(self, base: str) -> None:
        self._base = base

    def command(self, method: str, path: str, body: Any = None) -> Any:
        data = None if method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(f"{self._base}{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        self.command("POST", "/url", {"url": url})

    def run(self, script: str, *args: Any) -> Any:
        """What *script*, the body of a function, returns in the page."""
        return self.command("POST", "/execute/sync", {"script": script, "args": args})

    def run_async(self, script: str) -> Any:
        """What *script* gives to ``done``."""
        script = f"const done = arguments[arguments.length - 1];\n{script}"
        return self.command("POST", "/execute/async", {"script": script, "args": []})

    def element(self, selector: str) -> str:
        found = self.command("POST", "/element", {"using": "css selector", "value": selector})
        name: str = found[ELEMENT]
        return name

    def text(self, selector: str) -> str:
        text: str = self.command("GET", f"/element/{self.element(selector)}/text")
        return text

    def click(self, selector: str) -> None:
        self.command("POST", f"/element/{self.element(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        self.command("POST", f"/element/{self.element(selector)}/value", {"text": text})

    def problems(self) -> list[str]:
        """What the browser's console says: refused requests, violations of the policy."""
        logs = self.command("POST", "/se/log", {"type": "browser"})
        return [each["message"] for each in logs]


@contextlib.contextmanager
def driver(folder: Path) -> Iterator[str]:
    """The URL of a chromedriver, which takes one port of IPv4 and IPv6: it ends at once if another
    program has that port of one of them, and is started again."""
    said = []
    for tried in range(10):
        time.sleep(tried / 4)
        with subprocess.Popen(
            ["chromedriver", "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "HOME": str(folder)},
        ) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    said.append(line)
                    if "was started successfully on port" in line:
                        port = line.split("port ")[1].split(".")[0].strip()
                        yield f"http://127.0.0.1:{port}"
                        return
            finally:
                process.terminate()
    raise AssertionError(f"chromedriver does not start: {''.join(said)}")


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with a new profile in *folder*, ended with all its processes."""
    with driver(folder) as base:
        options = {
            "args": [
                "--headless=new",
                "--no-sandbox",  # tests may run as root, in a container
                "--disable-dev-shm-usage",
                "--disable-gpu",
                f"--user-data-dir={folder / 'profile'}",
            ]
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = Browser(base).command("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        session = Browser(f"{base}/session/{made['sessionId']}")
        try:
            yield session
        finally:
            with contextlib.suppress(urllib.error.URLError, OSError):
                session.command("DELETE", "")
