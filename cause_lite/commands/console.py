"""Options and output that the commands share: results go to the standard output, notes to the stream of errors."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.table import Table

from cause_lite.runtime.files import UserError

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
Crf = Annotated[bool, typer.Option(help="Also refine with the dense CRF (slow; needs pydensecrf2).")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting, such as head.epochs=4; may be repeated."),
]


def say(text: object) -> None:
    """Print a line as it is, without markup or breaks, so that a path in it can be used."""
    print(text, flush=True)


def note(text: object) -> None:
    """Print a line about the work, which is no result."""
    print(text, file=sys.stderr, flush=True)


def show(columns: Iterable[str], rows: Iterable[Iterable[object]], title: str | None = None) -> None:
    """Print a table."""
    table = Table(title=title)
    for name in columns:
        table.add_column(name)
    for row in rows:
        table.add_row(*map(str, row))
    Console(force_jupyter=False, markup=False).print(table)


def settings_of(assignments: list[str] | None) -> dict[str, object]:
    """Return the settings that `--set NAME=VALUE` asks for, by name; a value is read as YAML.

    Raises UserError when an assignment has no `=`, or its value is not valid YAML.
    """
    settings: dict[str, object] = {}
    for assignment in assignments or ():
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment}: expected NAME=VALUE, such as head.epochs=4")
        try:
            settings[name.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {assignment}: the value is not valid YAML") from error
    return settings
