"""``python -m support.fuzz TARGET [OPTIONS] [FOLDER]``: one Python target under atheris.

Options and folder are libFuzzer's.
"""

from __future__ import annotations

import importlib
import sys

#: The target's function, and what of it is Python that atheris has to instrument. Compiled modules
#: bring their own counters (WORKERSERVER_SANITIZE=fuzz).
TARGETS = {
    "parser": ("support.fuzz.parsing", "one_parsed", []),
    "validator": ("support.fuzz.parsing", "one_validated", []),
    "boxes": (
        "support.fuzz.boxes",
        "one_box",
        ["workerserver.blackbox", "workerserver.cli", "workerserver.cluster"],
    ),
    "transports": ("support.fuzz.transports", "one_exchange", []),
}


def main() -> None:
    atheris = importlib.import_module("atheris")
    module, name, instrumented = TARGETS[sys.argv[1]]
    if instrumented:
        with atheris.instrument_imports(include=instrumented):
            found = importlib.import_module(module)
    else:
        found = importlib.import_module(module)
    atheris.Setup(
        [sys.argv[0], *sys.argv[2:]],
        getattr(found, name),
        enable_python_coverage=bool(instrumented),
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
