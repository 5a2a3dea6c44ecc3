"""The page in a real browser: nothing of it fails, loads, or runs what a worker wrote."""

from __future__ import annotations

import base64
import http.server
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.jobs.pages import MARK, hostile_page, large_page, put, recorded_page
from support.requests import browser as browsers
from support.requests.browser import Browser
from support.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browsers.missing() is not None, reason=str(browsers.missing())),
]


BACKGROUNDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 20, 23)"}


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsers.browser(tmp_path_factory.mktemp("chromium")) as session:
        session.command("POST", "/timeouts", {"script": 60_000})
        yield session


def cdp(page: Browser, command: str, **params: Any) -> Any:
    """What Chromium's own protocol can, and WebDriver's can't."""
    return page.command("POST", "/goog/cdp/execute", {"cmd": command, "params": params})


def show(page: Browser, url: str, width: int, scheme: str = "light") -> None:
    cdp(page, "Emulation.setDeviceMetricsOverride", width=width, height=900,
        deviceScaleFactor=1, mobile=False)  # fmt: skip
    cdp(page, "Emulation.setEmulatedMedia",
        features=[{"name": "prefers-color-scheme", "value": scheme}])  # fmt: skip
    page.problems()  # those of earlier pages
    page.open(url)


def axe() -> str:
    """axe-core, as the package axe-playwright-python brings it along."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("needs axe-playwright-python")
    return (Path(found.origin).parent / "axe.min.js").read_text()


def violations(page: Browser, script: str) -> list[str]:
    """What axe-core calls serious or worse."""
    page.run(f"{script}; window.axe = axe;")
    found = page.run_async(
        "axe.run(document, {preload: false})"
        ".then((result) => done(result.violations), (error) => done([String(error)]))"
    )
    assert all(isinstance(each, dict) for each in found), found
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("ranks", [4, 4096])
def test_the_page_is_whole(width: int, ranks: int, chromium: Browser, tmp_path: Path) -> None:
    made = recorded_page("two_asleep-ours") if ranks == 4 else large_page(ranks)
    for scheme in ("light", "dark"):
        show(chromium, put(tmp_path, made), width, scheme)
        assert chromium.problems() == []
        assert chromium.run("return performance.getEntriesByType('resource').length") == 0
        assert chromium.run("return document.querySelectorAll('.cells i[data-r]').length") == ranks
        # The answer is the first thing seen, and nobody scrolls sideways to read.
        assert chromium.run("return document.querySelector('h1').getBoundingClientRect().top") < 120
        assert chromium.run("return document.documentElement.scrollWidth") <= width
        background = "return getComputedStyle(document.body).backgroundColor"
        assert chromium.run(background) == BACKGROUNDS[scheme]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(scheme: str, chromium: Browser, tmp_path: Path) -> None:
    script = axe()
    for made in (recorded_page("two_asleep-ours"), recorded_page("healthy-ours"), large_page(64)):
        show(chromium, put(tmp_path, made), 400, scheme)
        chromium.run("for (const each of document.querySelectorAll('details')) each.open = true;")
        assert violations(chromium, script) == []
    chromium.run("document.querySelector('h1').style.setProperty('color', '#ccc')")
    chromium.run("document.documentElement.removeAttribute('lang')")
    assert violations(chromium, script)  # the check itself


def test_a_click_shows_which_ranks_have_a_stack(chromium: Browser, tmp_path: Path) -> None:
    show(chromium, put(tmp_path, large_page(64, 9)), 1400)

    def ranks() -> list[str]:
        """Those that are not dimmed."""
        found: list[str] = chromium.run(
            "return [...document.querySelectorAll('.cells i[data-r]:not(.off)')]"
            ".map((each) => each.dataset.r)"
        )
        return found

    assert len(ranks()) == 64
    assert "hidden" in chromium.run("return document.getElementById('all').outerHTML")
    chromium.run("document.querySelector('.box.k[title*=load_batch]').click()")
    assert ranks() == ["5"]
    assert chromium.text("#said").startswith("1 rank: 5: ")
    chromium.click("#all")
    assert len(ranks()) == 64
    # A box above a branching has all ranks below it; the same click once more takes it back.
    chromium.run("document.querySelector('.cells i[data-r=\"7\"]').click()")
    assert ranks() == ["7"]
    chromium.run("document.querySelector('.classes [aria-pressed=true]').click()")
    assert len(ranks()) == 64
    chromium.run("[...document.querySelectorAll('.box')].find((b) => !b.matches('.k')).click()")
    assert len(ranks()) == 64
    assert chromium.problems() == []


def test_the_text_for_a_ticket(chromium: Browser, tmp_path: Path) -> None:
    show(chromium, put(tmp_path, recorded_page("two_asleep-ours")), 1400)
    ticket = chromium.run("return document.getElementById('ticket').value")
    assert ticket.startswith(chromium.text("h1"))
    assert "\n    /home/user/scenes.py:39 compute\n" in ticket
    chromium.click("#copy")
    # A browser may refuse the clipboard: then the text is shown and selected.
    wait_until(lambda: chromium.text("#copy") in ("Copied", "Selected: press Ctrl-C"), 60)


@pytest.mark.parametrize("redact", [False, True])
def test_hostile_texts_are_inert(redact: bool, chromium: Browser, tmp_path: Path) -> None:
    show(chromium, put(tmp_path, hostile_page(redact=redact)), 1400)
    assert chromium.problems() == []
    assert chromium.run("return document.title").startswith("Suspects found")
    assert chromium.run("return document.getElementById(arguments[0])", MARK) is None
    assert chromium.run("return document.querySelectorAll('img, b').length") == 0
    assert chromium.run("return document.scripts.length") == 1
    chromium.run("for (const each of document.querySelectorAll('details')) each.open = true;")
    shown = chromium.run("return document.body.innerText")
    assert not {"\u202e", "\x1b"} & set(shown)
    if not redact:  # there it is a host's name
        assert MARK in chromium.text("h1")
        assert "<script>" in shown
        assert "\\u202e" in shown


def test_nothing_is_asked_of_a_server(chromium: Browser, tmp_path: Path) -> None:
    """Served by HTTP, the page asks for nothing; and its policy keeps what is put into it from
    running and from being sent."""
    asked: list[str] = []
    body = recorded_page("two_asleep-ours").encode()

    class Served(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Served) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            show(chromium, f"http://127.0.0.1:{server.server_port}/report.html", 1400)
            assert chromium.run(
                "const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
                "document.body.append(s); const i = new Image(); i.src = '/stolen';"
                "document.body.append(i); return window.ran === undefined"
            )
            sent = "fetch('/sent').then(() => done('sent'), () => done('no'))"
            assert chromium.run_async(sent) == "no"
            assert [each for each in chromium.problems() if "Content Security" in each]
        finally:
            server.shutdown()
            thread.join()
    assert asked == ["/report.html"]


def text_of(chromium: Browser) -> str:
    """What a screen reader reads; Chromium makes the tree some time after the page."""
    nodes = cdp(chromium, "Accessibility.getFullAXTree")["nodes"]
    names = [node["name"]["value"] for node in nodes if node.get("name", {}).get("value")]
    return "\n".join(map(str, names))


def test_it_can_be_read_without_a_script(chromium: Browser, tmp_path: Path) -> None:
    cdp(chromium, "Emulation.setScriptExecutionDisabled", value=True)
    try:
        show(chromium, put(tmp_path, recorded_page("two_asleep-ours")), 1400)
        wait_until(lambda: "ranks 1,3 (absent)" in text_of(chromium))
        text = text_of(chromium)
    finally:
        cdp(chromium, "Emulation.setScriptExecutionDisabled", value=False)
    for word in ("Suspects found", "rank 3: lock", "futex_do_wait", "suspected: 1-3"):
        assert word in text, word
    assert "Copy text" not in text  # what needs a script is not shown


def test_a_picture_of_it(chromium: Browser, tmp_path: Path) -> None:
    """The page is painted: a map with the colours of its stacks."""
    show(chromium, put(tmp_path, recorded_page("two_asleep-ours")), 1400)
    colours = chromium.run(
        "return [...document.querySelectorAll('.cells i[data-r]')]"
        ".map((each) => getComputedStyle(each).backgroundColor)"
    )
    assert len(set(colours)) == 4  # three stacks, and one rank that is silent
    png = base64.b64decode(cdp(chromium, "Page.captureScreenshot")["data"])
    assert png.startswith(b"\x89PNG")
