"""torch's own handler registry, as a Source: our server also serves the handlers in it.

This module never imports torch. torch counts as present once the process has imported it to the
end. Facts on torch's interface (checked on torch 2.10 to 2.15): a Python handler gets exactly the
objects that we pass. A C++ handler calls ``set_content`` and ``set_status`` on those objects. Its
``getParam`` can't be served from Python (no conversion from a dict to a multimap), and its content
has to be UTF-8. What a C++ handler can't do over its binding, it does on torch's own server, if
this process has one beside ours (``own_server``).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from workerserver.http.registry import Handler
from workerserver.process.loaded import imported
from workerserver.types import NotImplementedHere, Request, Response, WorkerServerError

__all__ = [
    "BinaryContent",
    "OwnServer",
    "OwnServerFailed",
    "ParametersNotPassed",
    "TorchBridge",
    "answer_through",
    "call",
    "control_plane",
    "distributed",
]

FORM = "application/x-www-form-urlencoded"

#: For responses.failure(): a frame of this module tells the author of a handler nothing.
_passes_calls_on = True


class BinaryContent(WorkerServerError):
    """A C++ handler of torch's answered with bytes, which its binding can't hand to Python."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        super().__init__(
            f"torch's C++ handler {name} answered with content that is not UTF-8 text, which torch "
            f"can't pass on to Python: {reason}"
        )


class ParametersNotPassed(NotImplementedHere):
    """A C++ handler of torch's read its parameters, which its binding can't take from Python."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"torch's C++ handler {name} reads its parameters, which torch can't take from Python; "
            "torch's own server could answer, but this process has none beside ours "
            "(see WORKERSERVER_TORCH_FALLBACK)"
        )


class OwnServerFailed(WorkerServerError):
    """torch's own server was asked for a C++ handler of torch's, and gave no proper answer."""

    status = 502

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        super().__init__(f"torch's own server, which was asked for {name}, failed: {reason}")


class OwnServer(Protocol):
    """torch's own server in this process. Safe to ask from any thread."""

    def ask(self, name: str, params: Mapping[str, str]) -> Response | None:
        """What it answers for its handler *name*; None if there is no such server.

        Gives up the GIL while it waits. Raises OwnServerFailed.
        """


_own_server: OwnServer | None = None
#: C++ handlers that were found to do what their binding can't. A name stays torch's for good.
_beyond_binding: set[str] = set()


def answer_through(server: OwnServer) -> None:
    """From now on *server* answers for the C++ handlers whose binding can't."""
    global _own_server
    _own_server = server


def distributed() -> Any | None:
    """The module ``torch._C._distributed_c10d``.

    None without torch, while torch is being imported, and in a torch without distributed.
    """
    core = getattr(imported("torch"), "_C", None)
    return getattr(core, "_distributed_c10d", None)


def control_plane() -> Any | None:
    """The same module if it has a handler registry; older torch has none."""
    module = distributed()
    return module if hasattr(module, "_get_handler_names") else None


class _Adapters(NamedTuple):
    request: Any
    response: Any


@functools.lru_cache(maxsize=1)
def _adapters(module: Any) -> _Adapters:
    """Subclasses of *module*'s ``_Request`` and ``_Response``, made once, when torch is present."""
    base_request: Any = module._Request
    base_response: Any = module._Response

    class TorchRequest(base_request):  # type: ignore[misc]
        """Our request, in the form that torch's handlers expect."""

        def __init__(self, request: Request) -> None:
            super().__init__()
            self._request = request

        def body(self) -> str:
            """The body; UnicodeDecodeError if it isn't UTF-8, as on torch's own server."""
            return self._request.body.decode()

        def params(self) -> Mapping[str, str]:
            return dict(self._request.params)

        def get_param(self, name: str) -> str:
            return self._request.get_param(name)

    class TorchResponse(base_response):  # type: ignore[misc]
        """Collects what a handler sets. The default is status 200, no content and no type."""

        def __init__(self) -> None:
            super().__init__()
            self.content: bytes | str = b""
            self.content_type = ""
            self.status = 200

        def set_content(self, content: bytes | str, content_type: str) -> None:
            if not isinstance(content, (bytes, str)):
                raise TypeError(f"content must be str or bytes, not {type(content).__name__}")
            if not isinstance(content_type, str):
                raise TypeError(f"content_type must be str, not {type(content_type).__name__}")
            self.content = content
            self.content_type = content_type

        def set_status(self, status: int) -> None:
            if not isinstance(status, int):
                raise TypeError(f"status must be int, not {type(status).__name__}")
            self.status = status

    return _Adapters(TorchRequest, TorchResponse)


def call(name: str, request: Request) -> Response:
    """What torch's handler *name* answers to *request*.

    Raises NotImplementedHere if torch has no such handler, and ValueError for a status or a content
    type that HTTP can't carry. An exception of a Python handler passes unchanged. A C++ handler
    that reads its parameters or answers with bytes is asked at torch's own server. The first such
    request runs the handler's beginning twice: here up to the place where the binding fails, and
    then there.
    """
    module = control_plane()
    if module is None:
        raise NotImplementedHere(
            f"{name} needs torch with torch.distributed's control plane, imported to the end"
        )
    try:
        function = module._get_handler(name)
    except ValueError:
        raise NotImplementedHere(f"this torch has no handler {name}") from None
    if name in _beyond_binding:
        answer = _ask_own_server(name, request)
        if answer is not None:
            return answer
    adapters = _adapters(module)
    response = adapters.response()
    try:
        function(adapters.request(request), response)
    except (UnicodeDecodeError, RuntimeError) as error:
        translated = _translated(name, error)
        if translated is None:
            raise
        _beyond_binding.add(name)
        answer = _ask_own_server(name, request)
        if answer is None:
            raise translated from error
        return answer
    return Response(response.content, response.status, response.content_type)


def _ask_own_server(name: str, request: Request) -> Response | None:
    """What torch's own server answers in the handler's place; None if it can't be asked this."""
    media_type = (request.header("content-type") or "").partition(";")[0].strip().lower()
    if _own_server is None or (request.body and media_type != FORM):
        return None  # the parameters hold the fields of a form; another body has no way there
    return _own_server.ask(name, request.params)


def _translated(name: str, error: Exception) -> WorkerServerError | None:
    """The error to raise instead of *error*, if the binding raised *error* and no handler did.

    An error of a Python handler has frames below ours in its traceback. An error that the binding
    raises for a C++ handler has none.
    """
    trace = error.__traceback__
    if trace is not None and trace.tb_next is not None:
        return None
    if isinstance(error, UnicodeDecodeError):
        return BinaryContent(name, str(error))
    if "Unable to cast Python instance" in str(error):
        return ParametersNotPassed(name)
    return None


class TorchBridge:
    """The Source of torch's registry. Thread-safe. Keeps one Handler per name, with its limit."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """The names that torch's registry has now and that a path can hold; none without torch."""
        module = control_plane()
        if module is None:
            return []
        try:
            names = module._get_handler_names()
        except UnicodeDecodeError:
            # One name that isn't text hides all names: torch converts the whole list at once.
            return []
        return [name for name in names if _is_segment(name)]

    def find(self, name: str) -> Handler | None:
        """The handler that calls torch's handler *name*; None if torch has no such handler."""
        with self._lock:
            if not _has(name):
                self._handlers.pop(name, None)
                return None
            handler = self._handlers.get(name)
            if handler is None:
                handler = self._handlers[name] = Handler(name, _caller(name))
            return handler

    def after_fork(self) -> None:
        """In a forked child: no request is inside any handler, and no lock is held."""
        self._lock = threading.Lock()
        for handler in self._handlers.values():
            handler.after_fork()


def _is_segment(name: str) -> bool:
    """Whether *name* can be the last segment of a path; torch registers any string."""
    if not name or "/" in name:
        return False
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has(name: str) -> bool:
    module = control_plane()
    if module is None or not _is_segment(name):
        return False
    try:
        module._get_handler(name)
    except ValueError:
        return False
    return True


def _caller(name: str) -> Any:
    def bridged(request: Request) -> Response:
        return call(name, request)

    return bridged
