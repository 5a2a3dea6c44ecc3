"""The machine and the software of a measurement, without host names and paths."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

__all__ = ["describe", "load", "sentence"]

PACKAGES = (
    "workerserver",
    "torch",
    "uvloop",
    "httptools",
    "uvicorn",
    "granian",
    "numpy",
    "Cython",
)
ROOT = Path(__file__).resolve().parents[2]

Description = dict[str, str | int | float | bool | dict[str, str | None] | None]


def describe() -> Description:
    """The machine and the software; a package that isn't installed has the version None."""
    commit, modified = version()
    return {
        "cpu": processor("model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "virtual": "hypervisor" in (processor("flags") or "").split(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: installed(name) for name in PACKAGES},
        "commit": commit,
        "modified": modified,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def sentence(description: Description) -> str:
    """For people: ``2 virtual cores (AMD EPYC), Linux 6.18, CPython 3.11.7, torch 2.13``."""
    kind = "virtual cores" if description["virtual"] else "cores"
    packages = description["packages"]
    versions = packages.items() if isinstance(packages, dict) else ()
    return ", ".join(
        [
            f"{description['cores']} {kind} ({description['cpu']})",
            f"{description['kernel']}",
            f"{description['python']}",
            *(f"{name} {number or 'missing'}" for name, number in versions),
        ]
    )


def load() -> float:
    """Runnable tasks, averaged over the last minute."""
    return round(os.getloadavg()[0], 2)


def processor(field: str) -> str | None:
    """A field of the first processor that the kernel lists."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return None


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def version() -> tuple[str | None, bool | None]:
    """The commit, and whether the files differ from the commit; None outside of a checkout."""
    if not (ROOT / ".git").exists():
        return None, None
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(ROOT), *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                check=True,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit, bool(changes)
