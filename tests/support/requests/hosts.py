"""Host fields, and whether a server of ours answers to them."""

from __future__ import annotations

import socket

HOSTS = [
    ("127.0.0.1", True),
    ("127.0.0.1:80", True),
    ("10.1.2.3:25999", True),
    ("[::1]:80", True),
    ("[fe80::1]", True),
    ("localhost", True),
    ("LOCALHOST:1234", True),
    ("localhost.:1234", True),
    (socket.gethostname(), True),
    (socket.gethostname().upper() + ":80", True),
    ("evil.example", False),
    ("evil.example:80", False),
    ("127.0.0.1.evil.example", False),
    ("localhost.evil.example", False),
    ("evil-localhost", False),
    # Only an address in brackets has a zone.
    ("[fe80::1%eth0]:80", True),
    ("127.0.0.1%25.evil.example", False),
    ("127.0.0.1%2e.evil.example:80", False),
    ("localhost%2eevil.example", False),
    # Numbers that a resolver takes for 127.0.0.1, and no browser sends.
    ("2130706433", False),
    ("127.1", False),
    ("0x7f.0.0.1", False),
    (socket.gethostname().partition(".")[0] + ".evil.example", False),
]
