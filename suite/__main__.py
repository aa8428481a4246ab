"""The command line, `python -m suite`: its commands, and what becomes of their errors
and of signals."""

import os
import sys
from importlib import metadata
from typing import NoReturn

import click

from suite import env
from suite.cli import instruments, network, results
from suite.cli.refusals import in_one_line
from suite.cli.run import run
from suite.errors import InputError
from suite.files import printable, secure_standard_streams, terminal_width, wrap
from suite.interrupt import end_on_signals


def _version(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    if asked:
        try:
            version = metadata.version("crelu-norm-suite")
        except metadata.PackageNotFoundError:  # run from a checkout that was not installed
            version = "of a checkout that is not installed"
        click.echo(f"crelu-norm-suite {version}")
        ctx.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def suite() -> None:
    """Residual networks with ReLU or CReLU under six normalisations: train, export to
    ONNX, check, time, tabulate.

    A first try, of two rows: run --table 4 --rows 'resnet50_*_bn'
    """


for command in (
    run,
    results.init,
    results.show,
    results.status_,
    results.report_,
    results.list_,
    results.verify,
    results.clean,
    results.compare,
    instruments.time,
    network.export,
    instruments.parity,
    network.explain,
    network.figure,
):
    suite.add_command(command)


def main() -> NoReturn:
    """Run the command line; exit code 0, 1 (a stage failed), 2 (bad input), 129 (the
    terminal was closed), 130 (interrupted) or 143 (terminated)."""
    end_on_signals()
    secure_standard_streams()
    try:
        env.require_own_models()
        sys.exit(suite.main(standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        _say_error(in_one_line(error))
        sys.exit(2)
    except InputError as error:
        _say_error(str(error))
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        kept = command == "run" and "--dry-run" not in sys.argv
        more = "; what is finished is kept, and the same `run` goes on from there" if kept else ""
        click.echo(f"interrupted{more}", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        # A disk that is full or a folder that is gone, where nobody had more to say.
        _say_error(f"{error.filename or 'input or output'}: {error.strerror or error}")
        sys.exit(2)


def _say_error(text: str) -> None:
    """In one line, which a terminal gets broken between words."""
    click.echo(wrap(printable(f"error: {text}"), terminal_width(errors=True)), err=True)


if __name__ == "__main__":
    main()
