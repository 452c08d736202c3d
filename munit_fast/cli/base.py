"""The command line application, to which the other modules add their commands, and its entry point."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer

from munit_fast.cli.options import print_error
from munit_fast.utils.env import traceback_wanted
from munit_fast.utils.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="MUNIT (multimodal unsupervised image-to-image translation) on today's PyTorch.",
)
prepare = typer.Typer(no_args_is_help=True, help="Make a training set in the trainA, trainB, testA, testB layout.")
app.add_typer(prepare, name="prepare")


def _version(show: bool) -> None:
    if show:
        typer.echo(f"munit-fast {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. An error becomes one line on standard error and exit code 1."""
    # Pillow warns from its own limit on; ours is checked before anything is decoded, and says what to do.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit", module="PIL")
    try:
        app()
    except KeyboardInterrupt:
        print_error("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if traceback_wanted():
            raise
        # Unforeseen errors too: a user should not have to read a traceback to learn which file is at fault.
        print_error(str(error) or type(error).__name__)
        sys.exit(1)
