"""A certificate for servers under test."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def make_certificate(folder: Path) -> tuple[str, str]:
    """A key and its self-signed certificate for localhost; skips without the openssl program."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program")
    key, certificate = str(folder / "key.pem"), str(folder / "certificate.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", key, "-out", certificate]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    return key, certificate
