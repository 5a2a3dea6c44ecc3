"""The one reader of the token: the same for a server, a collector and the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workerserver import WorkerServer
from workerserver.cli.errors import UsageError
from workerserver.cli.token import shown_token
from workerserver.process.credentials import token_from_environment

FILE = "WORKERSERVER_TOKEN_FILE"


@pytest.fixture
def file(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the variable names; not there yet."""
    path = short_path / "token"
    monkeypatch.delenv("WORKERSERVER_TOKEN", raising=False)
    monkeypatch.setenv(FILE, str(path))
    return path


@pytest.mark.parametrize(
    ("content", "token"),
    [
        ("s3cret", "s3cret"),
        ("s3cret\n", "s3cret"),
        (" s3cret \r\n", "s3cret"),
        ("s3cret\nsecond line\n", "s3cret"),
        ("s3cret\n\n\n", "s3cret"),
    ],
)
def test_all_read_the_same(file: Path, content: str, token: str) -> None:
    file.write_text(content, newline="")
    assert token_from_environment() == token
    assert shown_token().secret == token


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"", "the first line is empty, so there is no token"),
        (b" \nsecond line", "the first line is empty, so there is no token"),
        (b"\xff\xfe\n", "not a text file in UTF-8"),
        (b"a\0b\n", "the token holds a line break or another control character"),
        ("folder", "a folder, not a file"),
    ],
)
def test_one_plain_reason(file: Path, content: bytes | str | None, reason: str) -> None:
    """The variable, the file and why; no error number, and the path once."""
    if isinstance(content, str):
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    text = f"{FILE} {file}: {reason}"
    for failing, error in (
        (token_from_environment, ValueError),
        (shown_token, UsageError),
        (lambda: WorkerServer(str(file.parent / "worker.sock")), ValueError),
    ):
        with pytest.raises(error) as caught:
            failing()
        assert str(caught.value) == text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_of_somebody_else(file: Path) -> None:
    file.write_text("s3cret")
    file.chmod(0)
    with pytest.raises(ValueError, match=f"^{FILE} {file}: permission denied$"):
        token_from_environment()


def test_the_variable_wins(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKERSERVER_TOKEN", " from-variable ")
    assert token_from_environment() == shown_token().secret == "from-variable"
    monkeypatch.setenv("WORKERSERVER_TOKEN", "two\nlines")
    with pytest.raises(ValueError, match=r"^WORKERSERVER_TOKEN: the token holds a line break"):
        token_from_environment()
    monkeypatch.delenv(FILE)
    monkeypatch.setenv("WORKERSERVER_TOKEN", "")
    assert token_from_environment() is None
    assert shown_token().secret is None
