"""The ``respipe`` command: its commands, its logging, and how errors are shown."""

from __future__ import annotations

import logging
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from respipe import __version__
from respipe.cli.bench import bench
from respipe.cli.console import logs_on_stderr, show_error, write_line
from respipe.cli.data import convert, export, index, inspect, merge, split, verify
from respipe.cli.doctor import doctor
from respipe.cli.evaluate import evaluate
from respipe.cli.plan import plan
from respipe.cli.plot import plot
from respipe.cli.train import recipe, train
from respipe.errors import RespipeError
from respipe.printable import not_there

DAMAGED, WRONG_USAGE = 1, 2


def _show_version(asked: bool) -> None:
    if asked:
        write_line(f"respipe {__version__}")
        raise typer.Exit


class Commands(TyperGroup):
    """Commands whose errors, where raised on purpose, are shown as one line: status 2 for wrong arguments, else 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # a reader such as `head` has seen enough; typer ends quietly
        except (RespipeError, ValueError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            show_error(_one_line(error))
            raise typer.Exit(WRONG_USAGE if isinstance(error, ValueError) else DAMAGED) from error


def _one_line(error: RespipeError | ValueError | OSError) -> str:
    if isinstance(error, FileNotFoundError) and isinstance(error.filename, (str, Path)):
        return f"{not_there(Path(error.filename))}."
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or repr(error)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (convert, export, index, merge, split, verify, inspect, plan, recipe, train, evaluate, bench, doctor):
    app.command()(command)
app.add_typer(plot, name="plot")


@app.callback()
def respipe(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, and detailed logs.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Resolution scheduling in the data loader: convert data, plan schedules, train, evaluate, measure, draw.

    First: respipe convert images/train train.beton

    Then: respipe bench train.beton, and respipe plan trd_imagenet

    And: respipe train trd_imagenet --data train.beton --val val.beton --output run

    Where something does not work: respipe doctor
    """
    ctx.with_resource(logs_on_stderr(logging.DEBUG if debug else logging.INFO))


def main() -> None:
    """Entry point of the ``respipe`` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that the terminal cannot show must not end a report
    app(prog_name="respipe")
