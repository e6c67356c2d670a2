"""The command line `neuroscope-fast`: one module for each command.

Exit codes: 0; 1 for a failure (a model that cannot be loaded, a torn run, records that `verify` finds bad);
2 for bad usage (options and hooks that cannot be); 130 after Ctrl-C. An error is one line on stderr that names
cause and mend. With `--json` stdout holds one JSON document and nothing else.

Starting up imports neither torch nor transformers: the commands that need them import them when they run.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from ..environment import package_version
from ..errors import HookError, NeuroscopeError, OptionError
from . import analyze, bench, capture, components, demo, doctor, plot, recover, report, show, verify, view
from .console import say

PROGRAM = "neuroscope-fast"

app = typer.Typer(
    name=PROGRAM,
    help="Capture what a transformer computes while it runs: attention, MLPs, residual stream, logits and more.",
    epilog="Begin with `neuroscope-fast demo`: it needs no network and no download.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    demo.demo,
    capture.capture,
    show.show,
    view.view,
    report.report,
    components.components,
    verify.verify,
    recover.recover,
    analyze.analyze,
    plot.plot,
    bench.bench,
    doctor.doctor,
):
    app.command()(command)


def _print_version(asked: bool) -> None:
    if asked:
        print(PROGRAM, package_version(PROGRAM) or "(run from its sources, not installed)")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (on `sys.argv` if no arguments are given); gives the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a generated text may hold what the terminal's encoding has not
            stream.reconfigure(errors="backslashreplace")
    command = typer.main.get_command(app)
    given = None if arguments is None else list(arguments)
    try:
        code = command.main(args=given, prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (HookError, OptionError) as error:
        return _fail(str(error), 2)
    except NeuroscopeError as error:
        return _fail(str(error), 1)
    except BrokenPipeError:  # `… | head`: nobody reads on, and nobody wants to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except MemoryError:
        return _fail("there is not enough memory", 1)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except Exception as error:
        if not hasattr(error, "format_message"):  # else a usage error; typer keeps its class to itself
            raise
        return _usage_error(error)


def _fail(message: str, code: int) -> int:
    say(f"error: {' '.join(message.split())}")
    return code


def _usage_error(error: Exception) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(context.get_help() if context is not None else error)
        return 2
    message = str(error.format_message()).rstrip(".")  # type: ignore[attr-defined]
    if "unexpected extra argument" in message and ":" in message:
        message += " (a pattern with braces needs quotes: --hook 'model.layers.{0..11}:residual')"
    name = PROGRAM if context is None else context.command_path
    return _fail(f"{message}; see `{name} --help`", 2)
