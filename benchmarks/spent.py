"""``python -m benchmarks.spent COMMAND...``: run a command of ``workerserver`` and report its cost.

Output and exit status are the command's own. A last line of JSON on stderr has ``cpu``, seconds of
processor time, and ``peak``, the most bytes of memory that the process had.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

from workerserver.cli import main


def peak() -> int:
    """The peak memory of this process in bytes. wait4() in the parent would not do: its figure
    also counts the parent's memory, up to the exec."""
    match = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError("the kernel doesn't say how much memory there was")
    return int(match[1]) * 1024


if __name__ == "__main__":
    status = main(sys.argv[1:])
    print(json.dumps({"cpu": time.process_time(), "peak": peak()}), file=sys.stderr)
    sys.exit(status)
