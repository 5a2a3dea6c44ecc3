"""Asks handlers that need torch without pause while the main thread imports torch.

Prints one JSON object: whether the import succeeded, the answers during the import and after it,
and the modules that a profile imported.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable

from workerserver.handlers.flight_recorder import fr_summary
from workerserver.handlers.profiler import torch_profile
from workerserver.handlers.torch_bridge import TorchBridge
from workerserver.handlers.wait_counters import wait_counter_values
from workerserver.process.loaded import imported
from workerserver.types import Response, WorkerServerError

QUESTIONS: dict[str, Callable[[], Response]] = {
    "torch_profile": lambda: torch_profile(0.001),
    "fr_summary": fr_summary,
    "wait_counter_values": wait_counter_values,
}


def ask(name: str) -> int | str:
    """The status of *name*'s answer, or the text of an exception that isn't ours."""
    try:
        return QUESTIONS[name]().status
    except WorkerServerError as error:
        return error.status
    except BaseException as error:
        return repr(error)


def main() -> None:
    seen: dict[str, set[int | str]] = {name: set() for name in QUESTIONS}
    names: set[int] = set()
    rounds = 0
    half = 0
    stop = threading.Event()
    bridge = TorchBridge()

    def go() -> None:
        nonlocal rounds, half
        while not stop.wait(0.002):
            answers = {name: ask(name) for name in QUESTIONS}
            listed = len(bridge.names())
            # The answers count for the import if it still runs now.
            if imported("torch") is None:
                rounds += 1
                half += "torch" in sys.modules
                names.add(listed)
                for name, answer in answers.items():
                    seen[name].add(answer)

    asking = threading.Thread(target=go)
    asking.start()
    result: float | str
    try:
        import torch

        result = float(torch.ones(3).sum())
    except BaseException as error:
        result = repr(error)
    finally:
        stop.set()
        asking.join()
    before = set(sys.modules)
    after = {name: ask(name) for name in QUESTIONS}
    print(
        json.dumps(
            {
                "import": result,
                "during": {name: sorted(answers, key=str) for name, answers in seen.items()},
                "names": sorted(names),
                "rounds": rounds,
                "half": half,
                "after": after,
                "imported": sorted(set(sys.modules) - before),
            }
        )
    )


if __name__ == "__main__":
    main()
