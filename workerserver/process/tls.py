"""TLS: a listener's certificate.

With TLS, a worker whose GIL is held does not answer: TLS runs on uvloop's transports.
"""

from __future__ import annotations

import os
import ssl

from workerserver.process.credentials import plain_reason

__all__ = ["tls_from_environment"]

CERTIFICATE, KEY = "WORKERSERVER_TLS_CERT", "WORKERSERVER_TLS_KEY"


def tls_from_environment() -> ssl.SSLContext | None:
    """A context from the file WORKERSERVER_TLS_CERT (the certificate and its chain) and the file
    WORKERSERVER_TLS_KEY (the key; by default in the first file). None if neither variable is set.

    Raises ValueError if the files can't be used: if somebody asked for TLS, no server is better
    than a server without TLS.
    """
    certificate, key = os.environ.get(CERTIFICATE, ""), os.environ.get(KEY, "")
    if not certificate:
        if key:
            raise ValueError(f"{KEY} is set, but not {CERTIFICATE}")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key or None, password=_no_password)
    except (OSError, ValueError) as error:
        files = f"{CERTIFICATE} {certificate}" + (f", {KEY} {key}" if key else "")
        if isinstance(error, (ssl.SSLError, ValueError)):
            reason = str(error)
        else:
            reason = plain_reason(error)
        raise ValueError(f"{files}: no certificate with its key: {reason}") from error
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted, and nobody is there to be asked for its password")
