"""The ``cvdask`` command: one subcommand for every stage.

What did the user ask for, and what is to be told? Each subcommand does three things:

1. it turns its options into the keywords of the Python function of the same name, which checks
   them (``cli.options``);
2. it calls the function, which shows its progress on standard error (``cli.volume``,
   ``cli.training``, ``cli.segmentation``, ``cli.fields``, ``cli.objects``, ``cli.meshes``,
   ``cli.synthesis``, ``cli.ensembles``, ``cli.ordering``, ``cli.comparison``, ``cli.pipeline``,
   ``cli.cluster``);
3. it tells what was written, for people or, with ``--json``, as one JSON object for programs
   (``cli.printing``).

Everything that can go wrong ends in :func:`run`, which turns it into a message and a number.

Stages are imported by the command that needs them: the help loads no array library.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, cast

import typer

import cvdask
from cvdask.cli import (
    cluster,
    comparison,
    ensembles,
    fields,
    meshes,
    objects,
    ordering,
    pipeline,
    segmentation,
    synthesis,
    training,
    volume,
)
from cvdask.cli.options import join_numbers
from cvdask.cli.printing import (
    BAD_INPUT,
    DONE,
    FAILED,
    INTERRUPTED,
    READER_GONE,
    clean,
    print_json,
)
from cvdask.errors import BlocksFailed

# Releases of typer differ in where they keep the error of all bad usage; this one derives from it.
USAGE_ERROR = cast(type[Exception], typer.BadParameter.__bases__[0])

app = typer.Typer(
    name="cvdask",
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(volume.group)
app.add_typer(training.group)
app.add_typer(segmentation.group)
app.add_typer(fields.group)
app.add_typer(objects.group)
app.add_typer(meshes.group)
app.add_typer(synthesis.group)
app.add_typer(ensembles.group)
app.add_typer(ordering.group)
app.add_typer(comparison.group)
app.add_typer(pipeline.group)
app.add_typer(cluster.group)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cvdask {cvdask.__version__}")
        raise typer.Exit(DONE)


@app.callback(epilog="Each command's help ends in an example. Try: cvdask phantom --help")
def _about(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Volume electron microscopy of heart cells, from the microscope's files to numbers."""


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code.

    Parameters
    ----------
    arguments : sequence of str
        Without the program's name.

    Returns
    -------
    int
        0 done; 1 blocks failed, faults were found or a training diverged; 2 bad input; 130
        interrupted.
    """
    as_json = "--json" in arguments
    verbose = not {"-v", "--verbose"}.isdisjoint(arguments)
    try:
        command = typer.main.get_command(app)
        with command.make_context("cvdask", join_numbers(arguments or ["--help"])) as context:
            command.invoke(context)
        sys.stdout.flush()
        return DONE
    except typer.Exit as end:
        return end.exit_code
    except BrokenPipeError:
        # The reader has seen enough; nothing is left to flush to it when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except KeyboardInterrupt:
        return _fail(
            INTERRUPTED,
            "KeyboardInterrupt",
            "interrupted; run the same command again, it goes on where it was",
            as_json=as_json,
        )
    except USAGE_ERROR as error:
        context_of_error = getattr(error, "ctx", None)
        asked = context_of_error.command_path if context_of_error else "cvdask"
        message = f"{error.format_message()} Try: {asked} --help"  # type: ignore[attr-defined]
        return _fail(BAD_INPUT, type(error).__name__, message, as_json=as_json)
    except BlocksFailed as error:
        message = str(error)
        if verbose:
            message = "\n".join([message.partition("\n")[0], *map("  {}".format, error.failures)])
        failures = [
            {"block": f.block, "box": str(f.box), "cause": clean(f.cause), "attempts": f.attempts}
            for f in error.failures
        ]
        return _fail(FAILED, "BlocksFailed", message, as_json=as_json, failures=failures)
    except FloatingPointError as error:
        return _fail(FAILED, "FloatingPointError", str(error), as_json=as_json)
    except (ValueError, OSError, MemoryError) as error:
        if verbose:
            print(clean(traceback.format_exc()), file=sys.stderr)
        message = str(error) or type(error).__name__
        return _fail(BAD_INPUT, type(error).__name__, message, as_json=as_json)
    except Exception as error:
        print(clean(traceback.format_exc()), file=sys.stderr)
        message = f"not foreseen, so please report it with the lines above: {error}"
        return _fail(FAILED, type(error).__name__, message, as_json=as_json)


def _fail(code: int, kind: str, message: str, *, as_json: bool, **more: Any) -> int:
    """Say what went wrong, on standard error or as JSON, and return the exit code."""
    message = clean(message)
    print(f"error: {message}" if code != INTERRUPTED else message, file=sys.stderr)
    if as_json:
        error = {"type": kind, "message": message, **more}
        print_json({"ok": False, "exit_code": code, "error": error})
    return code


def main() -> None:
    """Run the command line of this process."""
    # A batch system ends a job so. As after control-C, workers are dismissed and keys removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(sys.argv[1:]))
