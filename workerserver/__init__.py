"""An HTTP control plane inside every PyTorch training process.

A drop-in for torch's ``worker_main`` and C++ ``_WorkerServer``. docs/protocol.md says what a server
answers, and docs/threading.md how a server lives beside training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workerserver.process import FREE_THREADED
from workerserver.process.free_threaded.beats import heartbeat
from workerserver.process.lazy import lazy_names
from workerserver.types import Range, Request, Response, WorkerServerError

if TYPE_CHECKING:
    from workerserver.control_plane import (
        TORCH_WORKER_SERVER_SOCKET,
        install,
        start,
        worker_main,
    )
    from workerserver.handlers import (
        get_handler_names,
        handler,
        register_handler,
        unregister_handler,
    )
    from workerserver.http.limits import Limits
    from workerserver.server import WorkerServer

__all__ = [
    "TORCH_WORKER_SERVER_SOCKET",
    "Limits",
    "Range",
    "Request",
    "Response",
    "WorkerServer",
    "WorkerServerError",
    "get_handler_names",
    "handler",
    "heartbeat",
    "install",
    "register_handler",
    "start",
    "unregister_handler",
    "worker_main",
]

__version__ = "0.1.0"

# Imported when first asked for: "import workerserver" in a training script costs next to nothing
# until it serves.
_LAZY = {
    "TORCH_WORKER_SERVER_SOCKET": f"{__name__}.control_plane",
    "install": f"{__name__}.control_plane",
    "start": f"{__name__}.control_plane",
    "worker_main": f"{__name__}.control_plane",
    "get_handler_names": f"{__name__}.handlers",
    "handler": f"{__name__}.handlers",
    "register_handler": f"{__name__}.handlers",
    "unregister_handler": f"{__name__}.handlers",
    "Limits": f"{__name__}.http.limits",
    "WorkerServer": f"{__name__}.server",
}

if FREE_THREADED:
    _STAND_IN = f"{__name__}.process.free_threaded.stand_ins"
    _LAZY.update(
        dict.fromkeys(
            (
                "Limits", "WorkerServer", "get_handler_names", "handler", "install",
                "register_handler", "unregister_handler",
            ),
            _STAND_IN,
        )
    )  # fmt: skip

__getattr__, __dir__ = lazy_names(__name__, _LAZY)
