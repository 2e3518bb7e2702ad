"""The command line `cause-lite`: data | pretrain | fit | evaluate | segment | export | push | reproduce | ..."""

from __future__ import annotations

import io
import sys
import warnings
from importlib.metadata import version
from typing import Annotated

import typer

from cause_lite.commands import experiment, model
from cause_lite.commands.console import note, say
from cause_lite.runtime.files import UserError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False
)
for command in (*model.COMMANDS, *experiment.COMMANDS):
    app.command()(command)


def _show_version(asked: bool) -> None:
    if asked:
        say(version("cause-lite"))
        raise typer.Exit


@app.callback()
def describe(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Causal Unsupervised Semantic Segmentation (CAUSE, arXiv 2310.07379), explained and reproduced.

    A first tour, with no download: `cause-lite fit --head mlp --out runs/first`, then
    `cause-lite evaluate runs/first`, then `cause-lite segment photo.jpg`.
    """


def main() -> None:
    """Run the command line; an error that the user can mend is one line and exit status 1."""
    warnings.showwarning = lambda message, *where: note(f"Note: {message}")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # bytes of a file's name that are no text are printed as they are
            exact = stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(errors="surrogateescape" if exact else "backslashreplace")
    try:
        app(standalone_mode=False)
    except UserError as error:
        sys.exit(f"cause-lite: {' '.join(str(error).split())}")
    except typer.Abort:
        sys.exit("cause-lite: stopped")
    except Exception as error:
        if hasattr(error, "format_message"):  # click's usage errors
            sys.exit(f"cause-lite: {error.format_message()}")
        raise
