"""What a person meets first: help, guesses, completion, manual pages, one set of options."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.lifecycle import ROOT, environment
from support.served import Serve

import workerserver
from workerserver.cli import completion, main
from workerserver.cli.commands import COMMANDS, NAMES, USAGE, parser_of
from workerserver.cli.parser import guess

#: What says where the workers are, and how they are asked.
TARGET_OPTIONS = {
    "--job",
    "--store",
    "--hosts",
    "--dns",
    "--collectors",
    "--slurm",
    "--port",
    "--world-size",
    "--deadline",
    "--timeout",
    "--token-file",
    "--cacert",
}
OTHERS = ("run", "blackbox", "collector", "help", "schema", "completion", "man")
ASKING = [name for name in NAMES if name not in OTHERS]


def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workerserver", *words],
        env={**environment(), **more},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


# --- help --------------------------------------------------------------------------------------


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"workerserver {workerserver.__version__}\n"


@pytest.mark.parametrize("name", NAMES)
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", name]) == 0
    text = capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out == text
    assert text.startswith(f"usage: workerserver {name} ")
    assert "\nexamples:\n  " in text


@pytest.mark.parametrize("name", NAMES)
def test_examples_can_be_typed(name: str) -> None:
    """Each example that is a line of ours is understood by the parser of its command."""
    examples = parser_of(name).examples
    assert any(f"workerserver {name}" in line for line, _ in examples)
    for line, _ in examples:
        for part in re.split(r"[|>]", line):
            words = shlex.split(part)
            if words[:1] != ["workerserver"]:
                continue
            _, strange = parser_of(words[1]).parse_known_intermixed_args(words[2:])
            assert not strange or words[1] == "run", line  # those are the program's


def test_lines_of_the_skill_can_be_typed() -> None:
    """What docs/skills tells an agent to type."""
    text = (ROOT / "docs/skills/hung-training-job/SKILL.md").read_text()
    head = re.match(r"---\nname: ([a-z-]+)\ndescription: (.+)\n---\n", text)
    assert head is not None
    assert head[1] == "hung-training-job"
    assert len(head[2]) <= 1024
    blocks = re.findall(r"```\n(.*?)```", text, re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(workerserver [a-z]+[^`]*)`", text)
    assert len(lines) > 8
    for line in lines:
        _, name, *words = shlex.split(line.replace("COMMAND", "diagnose"))
        _, strange = parser_of(name).parse_known_intermixed_args(words)
        assert not strange, line


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def typed(page: Path) -> list[str]:
    """What the blocks of a page let a person type, without comments, pipes and redirections."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", page.read_text(), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    command = re.compile(r"(?:\$ )?(workerserver [a-z]+(?: .*?)?)(?: [|>#&].*)?$")
    found = map(command.match, lines)
    return [each[1] for each in found if each is not None]


def test_lines_of_the_docs_can_be_typed() -> None:
    lines = [(page, line) for page in PAGES for line in typed(page)]
    assert len(lines) > 40
    for page, line in lines:
        _, name, *words = shlex.split(line)
        _, strange = parser_of(name).parse_known_intermixed_args(words)
        assert not strange or name == "run", (page.name, line)  # those are the program's


def test_all_commands_are_in_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help"]) == main(["--help"]) == 0
    assert capsys.readouterr().out == USAGE * 2
    for command in COMMANDS:
        assert f"\n  {command.name} {command.arguments}" in USAGE
        assert command.summary in USAGE
    assert max(map(len, USAGE.splitlines())) <= 100


def test_help_of_nothing_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "stack"]) == 64
    assert capsys.readouterr().err == "workerserver: no such command: stack; did you mean stacks?\n"


# --- wrong words -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["diagnos"], "no such command: diagnos; did you mean diagnose?"),
        (["pign"], "no such command: pign; did you mean ping?"),
        (["qqq"], "no such command: qqq\n"),
        (["--verson"], "no such option: --verson; did you mean --version?"),
        (["diagnose", "--jbo", "x"], "no such option: --jbo; did you mean --job?"),
        (["call", "ping", "./a", "--js"], "no such option: --js; did you mean --json?"),
        (["ls", "--tokn-file=x"], "no such option: --tokn-file; did you mean --token-file?"),
        (["top", "--qqq"], "no such option: --qqq\n"),
        (["run", "--sockt", "x.py"], "no such option: --sockt; did you mean --socket?"),
        (["help", "ls", "top"], "one argument too many: top"),
        (["bench", "./a", "ping", "pong"], "one argument too many: pong"),
    ],
)
def test_a_guess(words: list[str], said: str, folder: Path) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (64, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_an_option_that_nobody_sees_is_no_guess() -> None:
    assert "--starter" not in parser_of("collector").option_names()
    assert "--starter" not in guess("--starte", parser_of("collector").option_names())


# --- one set of options ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ASKING)
def test_target_options(name: str) -> None:
    assert set(parser_of(name).option_names()) >= TARGET_OPTIONS


@pytest.mark.parametrize(
    "words", [("ls",), ("call", "ping"), ("ping",), ("stacks",), ("bench", "--requests=2")]
)
def test_the_token_in_a_file(
    words: tuple[str, ...], serve: Serve, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "w.sock").symlink_to(str(serve("unix", token="s3cret").address))
    (folder / "right").write_text("s3cret\nmore\n")
    (folder / "wrong").write_text("s3cre\n")
    (folder / "empty").write_text("")
    target = ("./w.sock",)
    assert main([*words, *target, "--token-file", "right"]) == 0
    capsys.readouterr()
    assert main([*words, *target, "--token-file", "wrong"]) == 2
    assert "the token in wrong" in "".join(capsys.readouterr())
    for name, why in (("empty", "the first line is empty"), ("none", "no such file")):
        assert main([*words, *target, "--token-file", name]) == 64
        assert f"--token-file {name}: {why}" in capsys.readouterr().err


def test_bench_finds_its_worker_as_all_do(
    serve: Serve, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ports = [serve("tcp").address[1] for _ in range(2)]
    (folder / "one").write_text(f"127.0.0.1:{ports[0]}\n")
    (folder / "two").write_text("".join(f"127.0.0.1:{port}\n" for port in ports))
    assert main(["bench", "--hosts", "one", "--requests", "2"]) == 0
    assert f"POST /handler/ping at 127.0.0.1:{ports[0]}, " in capsys.readouterr().out
    name = "dump_traceback?mode=nogil"
    assert main(["bench", name, "--hosts", "one", "--requests", "2"]) == 0
    assert f"POST /handler/{name} at " in capsys.readouterr().out
    assert main(["bench", "--hosts", "two"]) == 64
    assert "bench asks one worker, and what the options name stands for 2" in (
        capsys.readouterr().err
    )
    assert main(["bench", "--job", "nobody's"]) == 3


# --- completion --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("shtab")
    folder = tmp_path_factory.mktemp("completion")
    made = {}
    for shell in ("bash", "zsh", "fish"):
        done = run("completion", shell)
        assert (done.returncode, done.stderr) == (0, "")
        made[shell] = folder / shell
        made[shell].write_text(done.stdout)
    return made


def needs(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"needs {program}")
    return found


#: Runs the completion function of a line as bash does at a Tab, and prints what it offers.
ASK_BASH = """
source "$1"
COMP_LINE="$2"; COMP_POINT=${#COMP_LINE}
read -ra COMP_WORDS <<< "$2"
[[ "$2" == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
spec=$(complete -p workerserver)
function=$(sed -E 's/.* -F ([^ ]+) .*/\\1/' <<< "$spec")
"$function" workerserver "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def offered(script: Path, line: str, cwd: Path) -> list[str]:
    done = subprocess.run(
        [needs("bash"), "--norc", "-c", ASK_BASH, "bash", str(script), line],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return [word.strip() for word in done.stdout.splitlines() if word.strip()]


def test_bash_completes(scripts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "rank0.sock").touch()
    (tmp_path / "verdicts").mkdir()
    assert offered(scripts["bash"], "workerserver dia", tmp_path) == ["diagnose"]
    assert set(NAMES) <= set(offered(scripts["bash"], "workerserver ", tmp_path))
    assert offered(scripts["bash"], "workerserver diagnose --inter", tmp_path) == ["--interval"]
    assert offered(scripts["bash"], "workerserver completion f", tmp_path) == ["fish"]
    assert offered(scripts["bash"], "workerserver help dia", tmp_path) == ["diagnose"]
    assert "run" in offered(scripts["bash"], "workerserver man r", tmp_path)
    assert "run" not in offered(scripts["bash"], "workerserver schema r", tmp_path)
    assert "rank0.sock" in offered(scripts["bash"], "workerserver diagnose r", tmp_path)
    assert "rank0.sock" in offered(scripts["bash"], "workerserver ls --hosts r", tmp_path)
    folders = offered(scripts["bash"], "workerserver watch --folder v", tmp_path)
    assert [name.rstrip("/") for name in folders] == ["verdicts"]


def test_fish_completes(scripts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "rank0.sock").touch()
    lines = ("dia", "diagnose --inter", "completion f", "help dia", "diagnose rank", "--vers")
    ask = f"source {scripts['fish']}"
    for line in lines:
        ask += f"; complete -C 'workerserver {line}' | head -1"
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "TERM": "dumb"}
    done = subprocess.run(
        [needs("fish"), "--no-config", "-c", ask],
        cwd=tmp_path,
        env={**os.environ, **home},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert found == ["diagnose", "--interval", "fish", "diagnose", "rank0.sock", "--version"]
    assert "which rank is to blame" in done.stdout.splitlines()[0]


#: zsh completes only in a terminal: zpty is one. Reads until the word is whole.
ASK_ZSH = r"""
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PS1=; fpath=($1 \$fpath); autoload -U compinit; compinit -u -D; print REA''DY"
zpty -r shell text '*READY*'
shift
for line whole; do
    zpty -w -n shell "workerserver $line"$'\t'
    zpty -r shell text "*workerserver $whole*"
    print -r -- "$text"
    zpty -w shell $'\x15'  # the next line is a new one
done
zpty -d shell
"""


def test_zsh_completes(scripts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "_workerserver").write_text(scripts["zsh"].read_text())
    (tmp_path / "rank0.sock").touch()
    lines = {
        "diagno": "diagnose",
        "diagnose --inter": "diagnose --interval",
        "completion fi": "completion fish",
        "help diagno": "help diagnose",
        "diagnose rank": "diagnose rank0.sock",
    }
    asked = [word for line in lines.items() for word in line]
    done = subprocess.run(
        [needs("zsh"), "-f", "-c", ASK_ZSH, "zsh", str(tmp_path), *asked],
        cwd=tmp_path,
        env={**os.environ, "TERM": "dumb", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for whole in lines.values():
        assert f"workerserver {whole}" in done.stdout


def test_whatever_takes_a_path_completes_paths() -> None:
    _, parsers = completion.whole_parser()
    for parser in parsers:
        for action in parser._actions:
            if action.metavar == "FILE":
                assert action.dest in completion.PATHS, (parser.prog, action.dest)
            if action.metavar == "DIR":
                assert action.dest in completion.FOLDERS, (parser.prog, action.dest)


def test_completion_without_shtab(tmp_path: Path) -> None:
    (tmp_path / "shtab.py").write_text("raise ImportError\n")
    path = os.pathsep.join([str(tmp_path), environment().get("PYTHONPATH", "")])
    done = run("completion", "bash", PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'workerserver[completion]'" in done.stderr


# --- manual pages ------------------------------------------------------------------------------


def test_man_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groff = needs("groff")
    assert main(["man", "--folder", str(tmp_path / "man1")]) == 0
    pages = sorted(path.name for path in (tmp_path / "man1").iterdir())
    assert pages == sorted(["workerserver.1", *(f"workerserver-{name}.1" for name in NAMES)])
    for name in pages:
        path = tmp_path / "man1" / name
        shown = subprocess.run(
            [groff, "-man", "-ww", "-Tascii", "-P-cbou", str(path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert shown.stderr == "", name
        command = name.removesuffix(".1").removeprefix("workerserver-")
        if command in NAMES:
            assert main(["man", command]) == 0
            assert capsys.readouterr().out == path.read_text()
            for option in parser_of(command).option_names():
                assert option in shown.stdout
            for line, _ in parser_of(command).examples:
                assert "".join(line.split()) in "".join(shown.stdout.split())


def test_man_of_nothing_known(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["man", "nothing"]) == 64
    (folder / "file").touch()
    assert main(["man", "--folder", "file/man1"]) == 74
    assert "file/man1: Not a directory" in capsys.readouterr().err
