"""Adds the reference to the site: MkDocs calls this.

``make docs`` has written the pages (tools/reference.py). They are in no folder of the repository.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File


def on_files(files: Any, config: Any) -> Any:
    """Called by MkDocs once it has listed docs/."""
    for page in sorted(Path(os.environ["WORKERSERVER_REFERENCE"]).glob("*.md")):
        files.append(File.generated(config, f"reference/{page.name}", content=page.read_text()))
    return files
