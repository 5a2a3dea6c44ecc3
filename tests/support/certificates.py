"""A certificate for servers under test."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

#: An authority has to say that it is one: CPython 3.13 checks what RFC 5280 demands.
USAGE = "keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign"
#: So has whoever is certified by one.
CERTIFIED = """\
basicConstraints=CA:FALSE
keyUsage=digitalSignature,keyEncipherment
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
"""


def make_certificate(folder: Path) -> tuple[str, str]:
    """A key and its self-signed certificate for localhost; skips without the openssl program."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program")
    key, certificate = str(folder / "key.pem"), str(folder / "certificate.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", USAGE]
    files = ["-keyout", key, "-out", certificate]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    return key, certificate


class Authority:
    """A certificate authority of a test, in *folder*; skips without the openssl program."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self._key, self.certificate = make_certificate(folder)

    def issue(self, name: str, *names: str) -> tuple[str, str]:
        """A key and its certificate for the common name *name*, with *names* beside it."""
        key, request, certificate, more = (
            str(self._folder / f"{name}.{end}") for end in ("key", "csr", "pem", "ext")
        )
        command = ["openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"]
        _run(*command, "-keyout", key, "-out", request)
        text = f"subjectAltName={','.join(names)}\n" if names else ""
        Path(more).write_text(CERTIFIED + text)
        signed = ["openssl", "x509", "-req", "-in", request, "-CA", self.certificate]
        _run(*signed, "-CAkey", self._key, "-CAcreateserial", "-extfile", more, "-out", certificate)
        return key, certificate


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
