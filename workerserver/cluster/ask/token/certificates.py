"""Whose certificates a client accepts, and the one that it shows."""

from __future__ import annotations

import ssl

from workerserver.cluster.errors import ClusterError

__all__ = ["tls_context"]


def tls_context(
    ca_file: str | None = None, certificate: str | None = None, key: str | None = None
) -> ssl.SSLContext:
    """A context that verifies against the authorities in *ca_file*, or else the system's, and shows
    *certificate* to workers that ask for one; its *key* is in the same file by default."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ClusterError(f"{ca_file}: no certificates: {error.strerror or error}") from None
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key)
        except OSError as error:
            reason = error.strerror or error
            raise ClusterError(f"{certificate}: no certificate with its key: {reason}") from None
    return context
