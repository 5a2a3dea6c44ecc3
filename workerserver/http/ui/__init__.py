"""``GET /ui`` of a TCP server: a page for a browser. The page itself tells nothing of the job.

Its script asks the server as any client does, and sends the token that the person has typed in.
"""

from __future__ import annotations

import functools

from workerserver.types import Response

__all__ = ["UI", "page"]

UI = "/ui"


@functools.cache
def _page() -> tuple[bytes, str]:
    """The page and its Content-Security-Policy, which allows the page's own script and style by
    their hashes, and requests to the page's own server, and nothing else."""
    import importlib.resources  # not for the many who never ask for the page

    files = importlib.resources.files(__package__)
    style = (files / "page.css").read_text("utf-8")
    script = (files / "page.js").read_text("utf-8")
    html = (files / "page.html").read_text("utf-8")
    html = html.replace("/*style*/", style).replace("/*script*/", script)
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html.encode(), policy


def _hash(text: str) -> str:
    import base64
    import hashlib

    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def page(**ignored: str) -> Response:
    """The page. The first call reads its files, so it runs in a thread."""
    html, policy = _page()
    return Response(
        html,
        content_type="text/html; charset=utf-8",
        headers={
            "Content-Security-Policy": policy,
            "Cache-Control": "no-store",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        },
    )
