"""A notebook whose last cell hangs, in a kernel of its own as Jupyter starts it."""

from __future__ import annotations

import nbclient
import nbformat

CELLS = (
    """import os, time
from pathlib import Path
import workerserver
workerserver.start()""",
    """def load_shard():
    time.sleep(10_000)
""",
    """for step in range(1_000_000):
    workerserver.heartbeat(step)
    time.sleep(0.02)
    if step == 20:
        Path(os.environ["BEGUN"], "0-0").write_text(str(os.getpid()))
        load_shard()
""",
)


def main() -> None:
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, CELLS)))
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=None).execute()


if __name__ == "__main__":
    main()
