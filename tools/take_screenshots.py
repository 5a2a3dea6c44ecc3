"""Takes the pictures of ``workerserver report`` in docs/images: ``make screenshots``.

The job of the demo hangs under torchrun, and the report on it is opened in Chromium (Debian:
chromium, chromium-driver). The large job is made up: nobody here has 4,096 ranks.
"""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import demo
from PIL import Image
from support.jobs.pages import large_page, put
from support.requests import browser as browsers
from support.requests.browser import Browser

IMAGES = Path(__file__).parents[1] / "docs" / "images"
RANKS = 4
#: So that a page of the documentation stays light.
MAX_BYTES = 120_000


def hung_report(folder: Path) -> Path:
    """The report on the demo's job, four ranks of which one hangs."""
    paths = [folder / f"rank{rank}.sock" for rank in range(RANKS)]
    target = str(folder / "rank{rank}.sock")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(RANKS), str(demo.SCRIPT), "--epochs", "100000"]
    command += ["--hang-rank", "2", "--hang-step", "40"]
    settings = os.environ | {
        "TORCH_WORKER_SERVER_SOCKET": target,
        "TORCH_FR_BUFFER_SIZE": "2000",
        "OMP_NUM_THREADS": "1",
        "WORKERSERVER_JOB": "train-digits",
    }
    page = folder / "report.html"
    pids: list[int] = []
    with (folder / "job.log").open("wb") as log:
        job = subprocess.Popen(command, env=settings, stdout=log, stderr=log)
    try:
        pids = [each["pid"] for each in demo.wait_until_stalled(job, paths)]
        # Without this machine's paths and name.
        words = ["report", "--redact", "-o", str(page), target]
        done = subprocess.run([sys.executable, "-m", "workerserver", *words], check=False)
        if done.returncode != 1:
            raise RuntimeError(f"the report's status is {done.returncode}: no suspect was found")
    finally:
        demo.end(job, pids)
    return page


def take(browser: Browser, url: str, name: str, width: int, height: int, scheme: str) -> None:
    def cdp(command: str, **params: object) -> dict[str, str]:
        answer: dict[str, str] = browser.command(
            "POST", "/goog/cdp/execute", {"cmd": command, "params": params}
        )
        return answer

    features = [{"name": "prefers-color-scheme", "value": scheme}]
    cdp("Emulation.setEmulatedMedia", features=features)
    size = {"width": width, "height": height}
    cdp("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=False)
    browser.open(url)
    clip = {"x": 0, "y": 0, **size, "scale": 1}
    shot = cdp("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    path = IMAGES / f"{name}.png"
    image.quantize(96, dither=Image.Dither.NONE).save(path, optimize=True)
    count = path.stat().st_size
    print(f"{path.relative_to(IMAGES.parents[1])}: {width} x {height}, {count} bytes")
    if count > MAX_BYTES:
        raise RuntimeError(f"{name}: more than {MAX_BYTES} bytes")


def main() -> int:
    why = browsers.missing()
    if why is not None:
        print(why, file=sys.stderr)
        return 1
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ws-shots-", dir="/tmp") as name:
        folder = Path(name)
        hung = hung_report(folder).as_uri()
        (folder / "large").mkdir()
        large = put(folder / "large", large_page())
        with browsers.browser(folder / "profile") as browser:
            take(browser, hung, "report", 1100, 1500, "light")
            take(browser, hung, "report-dark", 400, 1100, "dark")
            take(browser, large, "report-large", 1400, 1500, "light")
    return 0


if __name__ == "__main__":
    sys.exit(main())
