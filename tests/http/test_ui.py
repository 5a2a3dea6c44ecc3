"""``GET /ui``: the page, who gets it, what its own requests may do, and the page in a browser."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.requests import browser as browsers
from support.served import Connect, Kind, Ours, Serve
from support.waiting import wait_until
from support.wire import ask, message, post

from workerserver import heartbeat
from workerserver._parser import RequestParser
from workerserver.http.access import AccessPolicy, BearerToken, NoWebPages, standard_rules
from workerserver.http.ui import UI
from workerserver.types import Forbidden, Unauthorized

TCP: tuple[Kind, ...] = ("tcp", "uvloop-tcp", "tls")
UNIX: tuple[Kind, ...] = ("unix", "uvloop-unix")
TOKEN = "s3cret"
PAGE = message("GET", UI)
BEARER = [("Authorization", f"Bearer {TOKEN}")]


def from_page(scheme: str, host: str, site: str = "same-origin") -> list[tuple[str, str]]:
    """The fields by which a browser tells of the page that makes a request."""
    return [("Origin", f"{scheme}://{host}"), ("Sec-Fetch-Site", site)]


def call(
    name: str, fields: list[tuple[str, str]], host: str = "localhost", body: bytes = b""
) -> bytes:
    return message("POST", f"/handler/{name}", body, fields, host=host)


# --- the page ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TCP)
def test_the_page(serve: Serve, kind: Kind) -> None:
    reply = ask(serve(kind).address, PAGE)
    assert (reply.status, reply.header("Content-Type")) == (200, "text/html; charset=utf-8")
    policy = reply.header("Content-Security-Policy") or ""
    allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    for kind_of_code, tag in (("script-src", "script"), ("style-src", "style")):
        (code,) = re.findall(f"<{tag}>(.*?)</{tag}>", reply.text, re.S)
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert allowed[kind_of_code] == f"'sha256-{digest}'"
    assert allowed["default-src"] == allowed["form-action"] == allowed["base-uri"] == "'none'"
    assert allowed["connect-src"] == "'self'"
    assert allowed["frame-ancestors"] == "'none'"
    assert not re.search(r"(src|href)=|https?://|innerHTML|eval\(|localStorage", reply.text)
    assert reply.header("Cache-Control") == "no-store"
    assert reply.header("X-Content-Type-Options") == "nosniff"


@pytest.mark.parametrize("kind", TCP)
def test_only_get(serve: Serve, connect: Connect, kind: Kind) -> None:
    client = connect(serve(kind).address)
    for target in (f"{UI}?x=1", UI):
        assert client.ask(message("GET", target)).status == 200
    refused = client.ask(message("POST", UI, b""))
    assert (refused.status, refused.header("Allow")) == (405, "GET, HEAD")
    assert client.ask(message("GET", f"{UI}/")).status == 404
    assert client.ask(message("GET", "/")).text.startswith("<h1>torch.distributed.WorkerServer")


@pytest.mark.parametrize("kind", UNIX)
def test_no_page_on_a_unix_socket(serve: Serve, kind: Kind) -> None:
    assert ask(serve(kind).address, PAGE).status == 404
    assert ask(serve(kind, token=TOKEN).address, PAGE).status == 401


# --- its own requests --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "uvloop-tcp", "asyncio-tcp", "tls"])
def test_requests_of_the_page(serve: Serve, connect: Connect, kind: Kind) -> None:
    """In each way: a handler and a page, alone and one behind the other, with a body and without,
    the same bytes again."""
    served = serve(kind)
    ran: list[str] = []

    def act() -> str:
        ran.append("act")
        return "done"

    served.registry.register("act", act, inline=True)
    scheme, other = ("https", "http") if kind == "tls" else ("http", "https")
    client = connect(served.address)
    good = from_page(scheme, "localhost:8900")
    requests: dict[str, Callable[[list[tuple[str, str]]], bytes]] = {
        "handler": lambda fields: call("act", fields, "localhost:8900"),
        "body": lambda fields: call("act", fields, "localhost:8900", b"x" * 70_000),
        "page": lambda fields: message("GET", "/healthz", None, fields, host="localhost:8900"),
        "names": lambda fields: message("GET", "/handler/", None, fields, host="localhost:8900"),
    }
    bad = {
        "another scheme": from_page(other, "localhost:8900"),
        "another port": from_page(scheme, "localhost:8901"),
        "another host": from_page(scheme, "127.0.0.1:8900"),
        "no port": from_page(scheme, "localhost"),
        "an opaque origin": [("Origin", "null"), good[1]],
        "no site": good[:1],
        "same-site": from_page(scheme, "localhost:8900", "same-site"),
        "cross-site": from_page(scheme, "localhost:8900", "cross-site"),
        "none": from_page(scheme, "localhost:8900", "none"),
        "two origins": [*good, good[0]],
        "two sites": [*good, ("Sec-Fetch-Site", "cross-site")],
        "a path": [("Origin", f"{scheme}://localhost:8900/ui"), good[1]],
        "more behind": [("Origin", f"{scheme}://localhost:8900.evil.example"), good[1]],
    }
    for make in requests.values():
        for _ in range(2):
            assert client.ask(make(good)).status == 200
        client.send(make(good) * 3)
        assert [client.reply().status for _ in range(3)] == [200] * 3
    ran.clear()
    for make in requests.values():
        for name, fields in bad.items():
            assert connect(served.address).ask(make(fields)).status == 403, name
    assert not ran
    # A Host that is no name of this server, though the Origin is the same.
    evil = from_page(scheme, "evil.example")
    assert client.ask(call("act", evil, "evil.example")).status == 403
    assert not ran


@pytest.mark.parametrize("kind", UNIX)
def test_a_unix_socket_has_no_page_that_could_ask(serve: Serve, kind: Kind) -> None:
    for scheme in ("http", "https"):
        fields = from_page(scheme, "localhost")
        assert ask(serve(kind).address, call("ping", fields)).status == 403


def test_case_and_brackets() -> None:
    policy = AccessPolicy(standard_rules(unix=False))
    for host, origin in (("LOCALHOST:1", "http://localhost:1"), ("[::1]:1", "http://[::1]:1")):
        parser = RequestParser()
        fields = [("Origin", origin), ("Sec-Fetch-Site", "same-origin")]
        parser.receive_data(message("GET", "/", None, fields, host=host))
        request = parser.next_request()
        assert request is not None
        policy.check(request)
        with pytest.raises(Forbidden):
            NoWebPages().check(request)
        with pytest.raises(Forbidden):
            NoWebPages("https").check(request)


# --- the token ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TCP)
def test_the_page_needs_no_token(serve: Serve, connect: Connect, kind: Kind) -> None:
    """The page, where the token is typed in; nothing else, and by no other name of it."""
    client = connect(serve(kind, token=TOKEN).address)
    for request in (PAGE, message("GET", f"{UI}?x"), message("HEAD", UI)):
        assert client.ask(request, request.startswith(b"HEAD")).status == 200
    for request in (
        message("POST", UI, b""),
        message("GET", "/%75i"),
        message("GET", f"{UI}/"),
        message("GET", "/uix"),
        message("GET", "/"),
        message("GET", "/healthz"),
        post("ping"),
    ):
        assert client.ask(request).status == 401
    fields = from_page("https" if kind == "tls" else "http", "localhost")
    assert client.ask(call("ping", fields)).status == 401
    assert client.ask(call("ping", [*fields, *BEARER])).body == b"pong"


@pytest.mark.parametrize("kind", TCP)
def test_who_asks_for_the_page_has_shown_no_secret(
    serve: Serve, connect: Connect, kind: Kind
) -> None:
    """Clients without the token have few places, and the page takes nobody out of these."""
    served = serve(kind, token=TOKEN)
    assert isinstance(served, Ours)
    client = connect(served.address)

    def unproven() -> int:
        return served.server.places.unproven

    assert client.ask(PAGE).status == 200
    assert client.ask(message("GET", UI, None, [("Authorization", "Bearer wrong")])).status == 200
    assert served.call(unproven) == 1
    assert client.ask(post("ping", b"", BEARER)).status == 200
    assert served.call(unproven) == 0


def test_a_rule_without_a_page() -> None:
    parser = RequestParser()
    parser.receive_data(PAGE)
    request = parser.next_request()
    assert request is not None
    BearerToken(TOKEN, UI).check(request)
    with pytest.raises(Unauthorized):
        BearerToken(TOKEN).check(request)


# --- in a browser ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(browsers.missing() is not None, reason=str(browsers.missing()))
def test_in_chromium(serve: Serve, tmp_path: Path) -> None:
    served, stranger = serve("tcp", token=TOKEN), serve("tcp", token=TOKEN)
    evil = "<img src=x onerror='document.title=1'><script>document.title=2</script>"

    def tell(depth: int = 1) -> dict[str, object]:
        return {"text": evil, "depth": depth}

    served.registry.register("evil", tell)
    heartbeat(1234)
    port, other = served.address[1], stranger.address[1]
    with browsers.browser(tmp_path) as page:
        page.open(f"http://localhost:{port}/ui")
        wait_until(lambda: page.text("#state") == "needs a token")
        assert not page.run("return document.querySelectorAll('#handlers button').length")
        page.type("#token", "wrong")
        page.click("#access button")
        wait_until(lambda: page.text("#state") == "needs a token")
        page.type("#token", TOKEN)
        page.click("#access button")
        wait_until(lambda: page.text("#state") == "ok")
        wait_until(lambda: page.run("return document.querySelectorAll('li button').length") > 3)
        assert page.text("#fact-step") == "1234"
        assert page.text("#fact-step_age_s").endswith(" s")
        assert page.text("#fact-rank") == "-"  # no launcher has started this process
        page.click("button[data-handler=ping]")
        wait_until(lambda: page.text("#body") == "pong")
        page.type("li input[aria-label='parameters of evil']", "depth=7")
        page.click("button[data-handler=evil]")
        wait_until(lambda: '"depth": 7' in page.text("#body"))
        # A worker's text is text, and the token is in no store of the browser.
        assert "<img src=x" in page.text("#body")
        assert page.run("return document.querySelectorAll('#body *').length") == 0
        assert page.run("return [document.cookie, localStorage.length, location.search]") == [
            "", 0, "",
        ]  # fmt: skip
        assert page.text("#title") == page.run("return document.title")
        assert not [each for each in page.problems() if "Content Security" in each]
        # The policy holds: nothing else may run, and nothing be sent to another server.
        assert page.run(
            "const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
            "document.body.append(s); return window.ran === undefined"
        )
        away = f"fetch('http://localhost:{other}/ui').then(() => done('sent'), () => done('no'))"
        assert page.run_async(away) == "no"
        assert [each for each in page.problems() if "Content Security" in each]
        # Another server's page: this one refuses what it asks for.
        page.open(f"http://localhost:{other}/handler/")
        ran = page.run_async(
            f"fetch('http://localhost:{port}/handler/evil', {{method: 'POST', mode: 'no-cors',"
            "headers: {}}).then((a) => done(a.type), () => done('no'))"
        )
        assert ran in ("opaque", "no")
        assert ("", 403) in served.state.requests
