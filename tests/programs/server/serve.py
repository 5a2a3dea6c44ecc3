"""Serve a few handlers of torch's registry with one of two servers, until stdin ends.

Run as ``serve.py KIND``: KIND is ``ours`` or ``torch`` (its C++ ``_WorkerServer``). Each line of
stdin is a JSON list of a server's arguments; the line of stdout that answers it is
``{"port": N}``, or ``{"error": TEXT}`` (the first line of a RuntimeError). Ends with ``os._exit``,
because torch's server may abort the process when it is destroyed.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch.distributed.debug._handlers  # noqa: F401 (registers torch_profile)
from torch._C import _distributed_c10d as c10d


def echo_body(request: Any, response: Any) -> None:
    response.set_content(request.body(), "text/plain")


def echo_params(request: Any, response: Any) -> None:
    names = ("a", "b", "missing")
    values = {name: request.get_param(name) for name in names}
    response.set_content(json.dumps(values), "application/json")


def describe(request: Any, response: Any) -> None:
    facts = {
        "request": isinstance(request, c10d._Request),
        "response": isinstance(response, c10d._Response),
        "body": type(request.body()).__name__,
        "param": type(request.get_param("a")).__name__,
    }
    response.set_content(json.dumps(facts), "application/json")


def fail(request: Any, response: Any) -> None:
    raise ValueError("the disk is on fire")


def leave(request: Any, response: Any) -> None:
    raise SystemExit(3)


def content_bytes(request: Any, response: Any) -> None:
    response.set_content(b"\x00\xff\xfe", "application/octet-stream")


def content_str(request: Any, response: Any) -> None:
    response.set_content("gr\u00fc\u00df", "text/plain")


def status_777(request: Any, response: Any) -> None:
    response.set_status(777)
    response.set_content("odd", "text/plain")


def nothing(request: Any, response: Any) -> None:
    pass


HANDLERS = (
    echo_body,
    echo_params,
    describe,
    fail,
    leave,
    content_bytes,
    content_str,
    status_777,
    nothing,
)


def main(kind: str) -> None:
    server: Any
    if kind == "ours":
        from workerserver import WorkerServer as server
    else:
        server = c10d._WorkerServer
    for function in HANDLERS:
        c10d._register_handler(function.__name__, function)
    c10d._register_handler("with space", nothing)
    running = []
    for line in sys.stdin:
        try:
            running.append(server(*json.loads(line)))
        except RuntimeError as error:
            print(json.dumps({"error": str(error).partition("\n")[0]}), flush=True)
        else:
            print(json.dumps({"port": running[-1].port}), flush=True)
    if kind == "ours":
        for one in running:
            one.shutdown()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
