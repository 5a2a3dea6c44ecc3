"""The environment of a process that we start in another folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workerserver.blackbox.keeping import _environment
from workerserver.process.environment import with_absolute_paths


def test_files_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {
        "WORKERSERVER_TOKEN_FILE": "a:b/token",
        "WORKERSERVER_TLS_CERT": "/tls/cert",
        "WORKERSERVER_TLS_KEY": "",
        "PYTHONPATH": os.pathsep.join(("one", "/two", "")),
        "OTHER": "./x",
    }
    assert with_absolute_paths(given) == {
        **given,
        "WORKERSERVER_TOKEN_FILE": f"{tmp_path}/a:b/token",
        "PYTHONPATH": os.pathsep.join((f"{tmp_path}/one", "/two")),
    }


def test_a_watchdog_finds_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs in the root folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKERSERVER_TOKEN_FILE", "token")
    assert _environment(True)["WORKERSERVER_TOKEN_FILE"] == f"{tmp_path}/token"
    assert "WORKERSERVER_TOKEN_FILE" not in _environment(False)
