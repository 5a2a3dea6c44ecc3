"""docs/tutorial.md, done to the letter: its script, its command, and what ``diagnose`` then says.

The script prints one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
from pathlib import Path

from support.jobs.machine import Jobs, Said, isolate, until, workerserver
from support.lifecycle import ROOT


def main() -> None:
    text = (ROOT / "docs/tutorial.md").read_text()
    isolate()
    script, command = Path("/tmp/train.py"), re.search(r"^torchrun (.*)$", text, re.M)
    written = re.search(r"^```python\n(.*?)^```$", text, re.M | re.S)
    assert command is not None
    assert written is not None
    script.write_text(written[1])
    words = [str(script) if word == script.name else word for word in shlex.split(command[1])]
    with contextlib.ExitStack() as stack:
        _, folder = Jobs(stack).start(["-m", "torch.distributed.run", *words])
        said: Said = {"healthy": until(0, "diagnose", seconds=250), "hung": until(1, "diagnose")}
        said |= {"fr": workerserver("fr"), "stacks": workerserver("stacks")}
        said["log"] = (folder / "log").read_text(errors="replace")
        said["ls"] = workerserver("ls")
        (socket,) = (line.split()[0] for line in said["ls"]["said"] if "/rank2-" in line)
        said["call"] = workerserver("call", "dump_traceback", socket)
    said["ended"] = workerserver("diagnose")
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
