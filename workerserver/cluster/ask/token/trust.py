"""How the token is shown on a connection: by proof, which sends no secret, or as it is.

As it is (a bearer token), the token goes only to a Unix socket of this user or of root, and, with
``--send-token``, to any worker. Everybody else has to prove that the token is known there, and then
the client proves it too. A worker that knows no proof, since it is older than that, gets the token
as it is only where nobody else can listen:

* A Unix socket. The user of the process at the other end is told by the kernel (SO_PEERCRED), so a
  socket file that was replaced, moved or linked is no way around. Root has no reason to trust any
  other user, with one exception: in a folder that only one user may write, every socket is there by
  the will of that user, and root named the folder.
* https, if the operator has named the host, or the authority that vouches for it.

A proof holds on one connection. A reverse proxy sends each request on any connection to the worker,
so the worker proves itself and then refuses our proof. Over https such a proxy gets the token as it
is on the same terms as an older worker: the certificate vouches for it.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from workerserver.cluster.model import Worker

__all__ = ["NO_TOKEN", "Terms", "terms"]

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Terms(NamedTuple):
    """What a connection needs. *proves*: both ends prove the token. *bare*: the token may be sent
    as it is; with *proves*, if the worker knows no proof. *why_not*: why it may not be."""

    proves: bool
    bare: bool
    why_not: str = ""


NO_TOKEN = Terms(False, False)


def terms(worker: Worker, uid: int | None, *, in_clear: bool, authority: bool) -> Terms:
    """How the token is shown to *worker*, at the other end of a connection. *uid*: the user of a
    Unix socket's process. *in_clear*: the operator sends the token as it is. *authority*: the
    operator has named an authority for certificates."""
    if worker.unix:
        uid = _owner(worker.address) if uid is None else uid
        if uid in (0, os.geteuid()):
            return Terms(False, True)
        why = _distrust(worker.address, uid)
        return Terms(not in_clear, why is None, why or "")
    if in_clear:
        return Terms(False, True)
    return Terms(True, worker.tls and (authority or not worker.from_store))


def _owner(path: str) -> int | None:
    """Whose the socket file is; it has to do where the platform tells no more. None if nobody can
    tell."""
    try:
        return os.stat(path).st_uid
    except OSError:
        return None


def _distrust(path: str, uid: int | None) -> str | None:
    """Why no token may go to the socket at *path*, which belongs to another user *uid*; None if it
    may."""
    if uid is None:
        return "nobody can tell to whom the socket belongs, so the token was not sent"
    if os.geteuid() != 0:
        return f"the socket belongs to {_name(uid)}, so the token was not sent"
    if _only_writer(os.path.dirname(os.path.realpath(path)), uid):
        return None
    return (
        f"the socket belongs to {_name(uid)}, and others may write to its folder: root sends no "
        f"token there (ask as {_name(uid)})"
    )


def _only_writer(folder: str, uid: int) -> bool:
    """Whether nobody but user *uid*, and root, may write to *folder*."""
    try:
        status = os.stat(folder)
    except OSError:
        return False
    return status.st_uid in (0, uid) and not status.st_mode & _WRITABLE_BY_OTHERS


def _name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
