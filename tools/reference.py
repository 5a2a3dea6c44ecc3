"""Write the pages of the reference that the program itself knows: ``reference.py FOLDER``.

commands.md   what each command's ``--help`` says
api.md        signatures and docstrings of what ``workerserver`` and its integrations export
variables.md  the tables of README's configuration
metrics.md    what a server that runs here answers to ``GET /metrics``
json.md       what docs/diagnose.md says of ``--json``, and the JSON Schemas

``make docs`` runs this; nothing of it is in the repository.
"""

from __future__ import annotations

import ast
import http.client
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import workerserver
from workerserver.cli.commands import COMMANDS, NAMES
from workerserver.cli.schema import schema_of

ROOT = Path(__file__).resolve().parents[1]
#: Docstrings say ``::`` where Markdown wants a colon and an indented block.
_LITERAL = re.compile(r"::$", re.M)
#: Sphinx's way to name a function: Markdown wants the name alone.
_ROLE = re.compile(r":\w+:(?=`)")
#: What Cython puts in front of a docstring.
_SIGNATURE = re.compile(r"\A.*\n--\n\n")
#: An annotation that was not evaluated, as ``inspect`` shows it.
_QUOTED = re.compile(r"(: |-> )'([^']*)'")


# ---- commands


def said(*words: str) -> str:
    """What ``workerserver WORDS`` prints for help."""
    done = subprocess.run(
        [sys.executable, "-m", "workerserver", *words],
        env={**os.environ, "COLUMNS": "90", "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.rstrip()


def commands() -> Iterator[str]:
    yield "# Commands"
    yield "`python -m workerserver` is the same as `workerserver`."
    yield f"```text\n{said('--help')}\n```"
    for command in NAMES:
        yield f"## {command}"
        yield f"```text\n{said(command, '--help')}\n```"


# ---- the Python API


def text_of(docstring: str | None) -> str:
    text = _SIGNATURE.sub("", inspect.cleandoc(docstring or ""))
    return _ROLE.sub("", _LITERAL.sub(":", text))


def signature(name: str, value: object) -> str:
    """As Python knows it, or as the stub of a compiled function has it."""
    try:
        return _QUOTED.sub(r"\1\2", str(inspect.signature(value)))  # type: ignore[arg-type]
    except ValueError:
        stub = ast.parse((ROOT / "workerserver/process/_pulse.pyi").read_text())
    for node in stub.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return signature_of(node)
    raise LookupError(name)


def signature_of(node: ast.FunctionDef) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    return f"({ast.unparse(node.args)}){returns}"


def described(name: str, value: object) -> Iterator[str]:
    """One name of ``workerserver``: a heading, its signature, its docstring, its methods'."""
    yield f"### {name}"
    if isinstance(value, str):
        yield f"The string `{value}`."
        return
    if not inspect.isclass(value) or not issubclass(value, Exception):
        yield f"```python\n{name}{signature(name, value)}\n```"
    yield text_of(inspect.getdoc(value))
    if not inspect.isclass(value):
        return
    for key, member in vars(value).items():
        if key.startswith("_") or not getattr(member, "__doc__", None):
            continue
        if inspect.isfunction(member):
            yield f"**`{key}{signature(key, member)}`**"
            yield text_of(member.__doc__)
        elif isinstance(member, property):
            yield f"**`{key}`**"
            yield text_of(member.__doc__)


def exported(path: Path, names: list[str]) -> Iterator[str]:
    """The same of a module that may not be importable here: it needs its framework."""
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name not in names:
            continue
        yield f"### {node.name}"
        if isinstance(node, ast.FunctionDef):
            yield f"```python\n{node.name}{signature_of(node)}\n```"
        yield text_of(ast.get_docstring(node))


def api() -> Iterator[str]:
    yield "# Python API"
    yield "## workerserver"
    yield text_of(workerserver.__doc__)
    for name in workerserver.__all__:
        yield from described(name, getattr(workerserver, name))
    from workerserver import integrations

    yield "## workerserver.integrations"
    # The first paragraphs: the list of names follows here in full.
    yield text_of(integrations.__doc__).partition("\n\nLightningCallback")[0]
    for path in sorted((ROOT / "workerserver/integrations").glob("*.py")):
        yield from exported(path, integrations.__all__)


# ---- parts of other pages


def section(page: str, title: str, *, links: str) -> str:
    """The text below the heading *title* of *page*. *links*: how the page's links to files in docs/
    begin. On the new page they begin with ``../``."""
    text = (ROOT / page).read_text()
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    if match is None:
        raise LookupError(f"{page} has no section {title!r}")
    return re.sub(rf"\]\({links}([\w-]+\.md)", r"](../\1", match[1].strip())


def variables() -> Iterator[str]:
    yield "# Variables and limits"
    yield section("README.md", "Configuration", links="docs/")


def json_output() -> Iterator[str]:
    yield "# JSON"
    yield section("docs/diagnose.md", "--json", links="")
    yield "## Schemas"
    yield "`workerserver schema COMMAND` prints the same."
    for command in COMMANDS:
        if command.json:
            yield f"### {command.name}"
            yield f"```json\n{json.dumps(schema_of(command.name), indent=1)}\n```"


# ---- metrics


def scraped() -> str:
    """The metrics of a server in this process that has made some steps."""
    for step in range(200):
        workerserver.heartbeat(step)
    server = workerserver.WorkerServer("127.0.0.1", 0)
    try:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        for method, target in (("POST", "/handler/ping"), ("GET", "/metrics")):
            connection.request(method, target)
            response = connection.getresponse()
            body = response.read().decode()
            if response.status != 200:
                raise RuntimeError(f"{target}: {response.status} {body}")
        connection.close()
        return body
    finally:
        server.shutdown()


def metrics() -> Iterator[str]:
    yield "# Metrics"
    yield (
        "`GET /metrics` gives these, in Prometheus' text form or as OpenMetrics. A metric without "
        "a value is left out. [Prometheus](../howto/prometheus.md) says how to scrape them, and "
        "[the page on metrics](../metrics.md) what they mean."
    )
    rows = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    text = scraped()
    for name, meaning in re.findall(r"^# HELP (\S+) (.*)$", text, re.M):
        (kind,) = re.findall(rf"^# TYPE {re.escape(name)} (\S+)$", text, re.M)
        labels = re.search(rf"^{re.escape(name)}(?:_bucket)?\{{(.*?)\}} ", text, re.M)
        names = re.findall(r'(\w+)="', labels[1]) if labels is not None else []
        rows.append(f"| `{name}` | {kind} | {', '.join(names)} | {meaning} |")
    yield "\n".join(rows)


PAGES = {
    "commands": commands,
    "api": api,
    "variables": variables,
    "metrics": metrics,
    "json": json_output,
}


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, parts in PAGES.items():
        (folder / f"{name}.md").write_text("\n\n".join(filter(None, parts())) + "\n")


if __name__ == "__main__":
    main()
