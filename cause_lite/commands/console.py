"""Options and output that the commands share."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from cause_lite.runtime.files import UserError

class PlainConsole(Console):
    """A console that prints text as it is, a line each, whatever characters it holds; tables are laid out."""

    def __init__(self) -> None:
        super().__init__(force_jupyter=False, markup=False, highlight=False, emoji=False)  # plain in a notebook too

    def print(self, *objects: Any, **how: Any) -> None:
        """Print objects; text is neither wrapped nor cut."""
        super().print(*objects, **({"soft_wrap": True} if all(isinstance(each, str) for each in objects) else {}) | how)


def _as_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace what an output's encoding lacks: bytes of a file's name by themselves, characters by their escape."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error("exact", _as_bytes)
console = PlainConsole()

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps; auto takes the fastest that is there.")]
Out = Annotated[Path, typer.Option(help="The folder to write to; made if absent.")]
Window = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="LOW HIGH",
        help="Values to show as black and white. Left out: as in the fit; there, by percentiles of each image.",
    ),
]
Bands = Annotated[
    str | None,
    typer.Option(
        help="Bands to show as red, green and blue, such as 3,2,1. Left out: as in the fit; there, the first."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting, such as head.epochs=4; may be repeated."),
]


def settings_of(assignments: list[str] | None) -> dict[str, object]:
    """Return the settings that `--set NAME=VALUE` asks for, by name; a value is read as YAML.

    Raises
    ------
    UserError
        When an assignment has no `=`, or its value is not valid YAML.
    """
    settings: dict[str, object] = {}
    for assignment in assignments or ():
        name, equals, text = assignment.partition("=")
        try:
            settings[name.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {assignment}: the value is not valid YAML") from error
        if not equals:
            raise UserError(f"--set {assignment}: expected NAME=VALUE, such as head.epochs=4")
    return settings
