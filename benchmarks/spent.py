"""``python -m benchmarks.spent COMMAND...``: a command of ``workerserver``, and what it took.

Its output and exit status are the command's own. A line of JSON on stderr comes behind: ``cpu``,
seconds of processor time, and ``peak``, the bytes of memory that the process had at most.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

from workerserver.cli import main


def peak() -> int:
    """What wait4() tells of a child counts its parent's memory, up to the exec; this doesn't."""
    match = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError("the kernel doesn't say how much memory there was")
    return int(match[1]) * 1024


if __name__ == "__main__":
    status = main(sys.argv[1:])
    print(json.dumps({"cpu": time.process_time(), "peak": peak()}), file=sys.stderr)
    sys.exit(status)
