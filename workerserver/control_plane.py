"""The face that torch users know: ``worker_main``, the environment, and ``install()``."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from workerserver.process.loaded import imported
from workerserver.process.threads import why_no_real_threads
from workerserver.registration import StoreRegistration
from workerserver.server import WorkerServer, serving

__all__ = [
    "TORCH_WORKER_SERVER_SOCKET",
    "WORKERSERVER_COLLECTOR",
    "WORKERSERVER_TCP",
    "expand_placeholders",
    "install",
    "serve_from_environment",
    "worker_main",
]

P = ParamSpec("P")
R = TypeVar("R")
logger = logging.getLogger("workerserver")

TORCH_WORKER_SERVER_SOCKET = "TORCH_WORKER_SERVER_SOCKET"
WORKERSERVER_TCP = "WORKERSERVER_TCP"
WORKERSERVER_COLLECTOR = "WORKERSERVER_COLLECTOR"

PLACEHOLDERS = {"rank": "RANK", "local_rank": "LOCAL_RANK"}


def expand_placeholders(template: str) -> str:
    """Fill in ``{rank}``, ``{local_rank}`` (from the launcher's RANK, LOCAL_RANK) and ``{pid}``.

    Raises ValueError, naming it, for any other placeholder and for a variable that isn't set.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name == "pid":
            return str(os.getpid())
        if name not in PLACEHOLDERS:
            raise ValueError(
                f"unknown placeholder {{{name}}} in {template!r}; "
                "there are {rank}, {local_rank} and {pid}"
            )
        variable = PLACEHOLDERS[name]
        if not os.environ.get(variable):
            raise ValueError(f"{{{name}}} in {template!r} needs {variable}, which isn't set")
        return os.environ[variable]

    return re.sub(r"\{([^{}]*)\}", value, template)


def parse_host_port(text: str) -> tuple[str, int]:
    """``host:port`` or ``[host]:port``; an empty host is every interface. Raises ValueError."""
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host and host != "::":
        separator = ""  # an IPv6 host without brackets: which colon is the port's?
    if not separator or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host, int(port)


@contextlib.contextmanager
def serve_from_environment(
    socket: str | None = None, tcp: str | None = None
) -> Iterator[list[WorkerServer]]:
    """Serve on *socket* (a path that may hold placeholders) and on *tcp* (``host:port``) while
    the block runs.

    With neither, the environment says: TORCH_WORKER_SERVER_SOCKET, WORKERSERVER_TCP; nothing set
    serves nothing. A TCP server announces itself in the job's TCPStore, in the background. With
    WORKERSERVER_COLLECTOR (``host:port``) the worker of LOCAL_RANK 0 starts its host's collector.
    Raises what WorkerServer and expand_placeholders raise, before the block begins. Where gevent or
    eventlet has replaced threads, it warns, and the block runs without a server.
    """
    if socket is None and tcp is None:
        socket = os.environ.get(TORCH_WORKER_SERVER_SOCKET)
        tcp = os.environ.get(WORKERSERVER_TCP) or None
    servers: list[WorkerServer] = []
    why_not = why_no_real_threads()
    if why_not is not None and (socket is not None or tcp is not None):
        logger.warning("this worker runs without a server: %s", why_not)
        yield servers
        return
    with contextlib.ExitStack() as stack:
        path = None if socket is None else expand_placeholders(socket)
        # Under "workerserver run" the address is served already when the script's own
        # worker_main() comes here.
        if path is not None and not serving(path):
            servers.append(stack.enter_context(WorkerServer(path)))
        host, port = (None, 0) if tcp is None else parse_host_port(expand_placeholders(tcp))
        if host is not None and not serving(host, port):
            servers.append(stack.enter_context(WorkerServer(host, port)))
            server = servers[-1]
            registration = StoreRegistration.from_environment(host, server.port, server.tls)
            if registration is not None:
                stack.callback(registration.stop)
                registration.start()
        collector = os.environ.get(WORKERSERVER_COLLECTOR)
        if collector and servers and os.environ.get("LOCAL_RANK", "0") == "0":
            host, port = parse_host_port(collector)
            if socket is None or path is None:
                logger.warning(
                    "no collector was started: WORKERSERVER_COLLECTOR needs this process to serve "
                    "on a Unix socket too (TORCH_WORKER_SERVER_SOCKET)"
                )
            else:
                from workerserver.collector.process import started

                stack.enter_context(started(host, port, socket, path))
        yield servers


class worker_main:
    """Serve this worker while its main function runs.

    A context manager and a decorator::

        @worker_main()
        def main(): ...

    Serves as the environment says (see ``serve_from_environment``), and applies torch's
    ``record``, so that a failure lands in the file that torchrun names in
    ``TORCHELASTIC_ERROR_FILE``.
    """

    def __init__(self) -> None:
        self._serving: list[contextlib.AbstractContextManager[Any]] = []  # the innermost last

    def __call__(self, function: Callable[P, R]) -> Callable[P, R | None]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R | None:
            @functools.wraps(function)
            def serve(*args: P.args, **kwargs: P.kwargs) -> R:
                with serve_from_environment():
                    return function(*args, **kwargs)

            record = _torch_record()
            if record is not None:
                return record(serve)(*args, **kwargs)
            with _recorded():
                return serve(*args, **kwargs)

        return wrapper

    def __enter__(self) -> None:
        with _recorded():
            serving = serve_from_environment()
            serving.__enter__()
            self._serving.append(serving)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # As an ExitStack does: the server stops first, then the error is recorded.
        try:
            self._serving.pop().__exit__(kind, error, trace)
        finally:
            if error is not None:
                _record_error(error)


@contextlib.contextmanager
def _recorded() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        _record_error(error)
        raise


def _record_error(error: BaseException) -> None:
    """Raise *error* inside a recorded function, so that torch's ``record`` writes its file."""
    record = _torch_record(importing=True)
    if record is None:
        return

    def reraise() -> None:
        raise error

    with contextlib.suppress(BaseException):
        record(reraise)()


def _torch_record(
    importing: bool = False,
) -> Callable[[Callable[P, R]], Callable[P, R | None]] | None:
    """torch's ``record``, or None.

    torch has to be imported already. With *importing* (the main function has failed) it is
    imported now, if torchrun waits for the file that ``record`` writes.
    """
    wanted = importing and "TORCHELASTIC_ERROR_FILE" in os.environ
    if imported("torch") is None and not wanted:
        return None
    try:
        from torch.distributed.elastic.multiprocessing.errors import record
    except Exception as error:  # not only ImportError: a CUDA library may be missing
        logger.debug("torch's record isn't there: %s", error)
        return None
    return record  # type: ignore[no-any-return, unused-ignore]


def install() -> Callable[[], None]:
    """Put ours in place of torch's, and give back a function that undoes it.

    Replaces ``worker_main`` in ``torch.distributed.elastic.control_plane`` and ``_WorkerServer``
    in ``torch._C._distributed_c10d``. ``torch.distributed.debug`` uses the latter, whether it is
    imported already or later. After several calls, ours stays until all of them are undone. Raises
    RuntimeError if torch is missing or was built without distributed.
    """
    try:
        import torch
        import torch.distributed.elastic.control_plane as control_plane
    except ImportError as error:
        raise RuntimeError("install() needs torch, which can't be imported") from error
    bindings = getattr(torch._C, "_distributed_c10d", None)
    if bindings is None or not hasattr(bindings, "_WorkerServer"):
        raise RuntimeError("install() needs a torch with torch.distributed and its _WorkerServer")
    with _install_lock:
        _replace(control_plane, "worker_main", worker_main)
        _replace(bindings, "_WorkerServer", WorkerServer)
        debug = sys.modules.get("torch.distributed.debug")
        if debug is not None:
            _replace(debug, "_WorkerServer", WorkerServer)
        token = object()
        _installs.append(token)

    def undo() -> None:
        with _install_lock:
            if token not in _installs:
                return
            _installs.remove(token)
            if not _installs:
                _restore()

    return undo


_install_lock = threading.RLock()
_installs: list[object] = []
_replaced: list[tuple[Any, str, Any, Any]] = []  # (where, name, ours, theirs)


def _replace(place: Any, name: str, ours: Any) -> None:
    theirs = getattr(place, name)
    if theirs is not ours:
        setattr(place, name, ours)
        _replaced.append((place, name, ours, theirs))


def _restore() -> None:
    originals = {ours: theirs for _, _, ours, theirs in _replaced}
    debug = sys.modules.get("torch.distributed.debug")  # it may have been imported meanwhile
    if getattr(debug, "_WorkerServer", None) is WorkerServer and WorkerServer in originals:
        _replaced.append((debug, "_WorkerServer", WorkerServer, originals[WorkerServer]))
    while _replaced:
        place, name, ours, theirs = _replaced.pop()
        if getattr(place, name) is ours:  # not what somebody else put there since
            setattr(place, name, theirs)
