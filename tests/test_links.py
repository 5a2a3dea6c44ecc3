"""Links between the pages of the documentation: each one leads to a file and a heading.

``make docs`` checks the pages of the site too. This also has README and CONTRIBUTING, and needs
nothing that is not here.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.lifecycle import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
if not PAGES[-1].exists():
    pytest.skip("needs the documentation", allow_module_level=True)

#: What `make docs` writes.
GENERATED = {
    ROOT / f"docs/reference/{name}.md"
    for name in ("commands", "api", "variables", "metrics", "json")
}
LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The anchors of *page*'s headings, as GitHub makes them."""
    text = FENCE.sub("", page.read_text())
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    plain = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", title) for title in titles)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}


def broken(page: Path) -> list[str]:
    wrong = []
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = (page.parent / path).resolve() if path else page
        if target in GENERATED:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


def not_on_the_site(page: Path, docs: Path) -> list[str]:
    """Links that leave *docs*: they lead nowhere on the site, and MkDocs does not say so."""
    links = (link.partition("#")[0] for link in LINK.findall(FENCE.sub("", page.read_text())))
    return [
        link
        for link in links
        if link and "://" not in link and not (page.parent / link).resolve().is_relative_to(docs)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    assert not broken(page)
    docs = ROOT / "docs"
    assert not page.is_relative_to(docs) or not not_on_the_site(page, docs)


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `title`\n[a](#a-title) [b](#none) [c](gone.md) [d](page.md#a-title)\n")
    assert broken(page) == ["#none", "gone.md"]
