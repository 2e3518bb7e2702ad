"""No message advises an option or a command that is not there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from test_commands import call

import cause_lite
from cause_lite.cli import app

PACKAGE = Path(cause_lite.__file__).parent
FOREIGN = {  # options of other programs that the package starts or names
    "--nproc-per-node": "torchrun",
    "--standalone": "torchrun",
    "--porcelain": "git",
    "--untracked-files": "git",
    "--host-resolver-rules": "Chromium",
    "--no-sandbox": "Chromium",
    "--config": "jupyter-book",
    "--path-output": "jupyter-book",
    "--keep-going": "jupyter-book",
    "--silent": "npm",
    "--quick": "tests/book/check.py",
    "--query-gpu": "nvidia-smi",
    "--format": "nvidia-smi",
}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
CALL = re.compile(r"(?<!library_name: )cause-lite ([a-z]+(?:-[a-z]+)*)((?:[^`.;]|\.(?=\w))*)")


def commands() -> dict[str, set[str]]:
    """Each command's options, and those of `cause-lite` itself under the empty name."""
    group = typer.main.get_command(app)
    found = {"": options_of(group)}
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        found[name] = options_of(command)
    return found


def options_of(command) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {
        "--help"
    }


def texts() -> Iterator[tuple[str, str]]:
    """Every string constant of the package with its place; the parts of an f-string are joined."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node.value


def faults(text: str, known: dict[str, set[str]]) -> list[str]:
    """What a text advises that is not there."""
    everywhere = set().union(*known.values()) | FOREIGN.keys()
    found = [option for option in OPTION.findall(text) if option not in everywhere]
    for command, rest in CALL.findall(text):
        if command not in known:
            found.append(f"cause-lite {command}")
            continue
        found += [f"cause-lite {command} {option}" for option in OPTION.findall(rest) if option not in known[command]]
    return found


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("run `cause-lite fit --data X`", []),
        ("run `cause-lite fit --frame 3`", ["cause-lite fit --frame"]),
        ("`cause-lite reproduce --list` shows all", ["--list", "cause-lite reproduce --list"]),
        ("use --windows LOW HIGH", ["--windows"]),
        ("cause-lite paint it", ["cause-lite paint"]),
        ("a dash -- and cause-lite, --help", []),
    ],
)
def test_the_walk_finds_what_is_wrong(text, wrong):
    assert faults(text, commands()) == wrong


def test_no_text_names_an_option_or_a_command_that_is_not_there():
    known, found = commands(), []
    for place, text in texts():
        if "cause-lite" in text or "--" in text:
            found += [f"{place}: {fault}" for fault in faults(" ".join(text.split()), known)]
    assert not found


def test_the_version_is_shown(monkeypatch, capsys):
    status, printed = call(monkeypatch, capsys, "--version")
    assert status == 0 and printed.strip() == version("cause-lite")
