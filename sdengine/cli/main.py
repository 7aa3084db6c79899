"""The `sdengine` command: find the subcommand, run it, turn errors into exit statuses.

Exit status: 0 done, 1 failure, 2 wrong usage, 130 interrupted, 128 + n ended by signal n.
"""

from __future__ import annotations

import importlib
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import typer

import sdengine
from sdengine.cli.process import Ending, drop_output, ending_signals, standard_streams
from sdengine.cli.terminal import note, printable, say
from sdengine.errors import (
    BackendUnavailableError,
    IncompleteInstallationError,
    SdengineError,
)
from sdengine.version import __version__

# What typer returns for a KeyboardInterrupt.
_INTERRUPTED = 130


@dataclass(frozen=True)
class Subcommand:
    """Where a subcommand lives, and what `--help` says without importing it."""

    name: str
    home: str
    summary: str
    extra: str = ""
    is_group: bool = False


SUBCOMMANDS = (
    Subcommand("generate", "sdengine.cli.generate:generate", "Make images from a prompt."),
    Subcommand(
        "batch", "sdengine.cli.batch:batch", "Make the images of a file of requests.", extra="ray"
    ),
    Subcommand(
        "build", "sdengine.cli.build:build", "Compile a checkpoint into a bundle.", extra="build"
    ),
    Subcommand(
        "export", "sdengine.cli.export:export", "Write networks as ONNX files.", extra="build"
    ),
    Subcommand(
        "export-triton",
        "sdengine.cli.export_triton:export_triton",
        "Write a model for Triton Inference Server.",
    ),
    Subcommand("plan", "sdengine.cli.plan:plan", "Estimate a GPU's memory.", extra="build"),
    Subcommand("cache", "sdengine.cli.cache:cache", "List or remove the files of the cache."),
    Subcommand(
        "convert", "sdengine.cli.convert:convert", "Make a single file a folder.", extra="build"
    ),
    Subcommand(  # of a checkpoint
        "inspect", "sdengine.cli.inspect:inspect", "Show what a bundle holds.", extra="build"
    ),
    Subcommand("verify", "sdengine.cli.verify:verify", "Check every file of a bundle."),
    Subcommand("tokens", "sdengine.cli.tokens:tokens", "Show how a prompt is read."),
    Subcommand(
        "preprocess", "sdengine.cli.preprocess:preprocess", "Make a control network's hint."
    ),
    Subcommand("samplers", "sdengine.cli.samplers:samplers", "List samplers and schedules."),
    Subcommand("doctor", "sdengine.cli.doctor:doctor", "Show what this machine can run."),
    Subcommand(
        "bench",
        "sdengine.cli.bench:bench_app",
        "Measure speed against eager torch and others.",
        extra="bench",
        is_group=True,
    ),
    Subcommand(
        "profile",
        "sdengine.cli.profile:profile",
        "Show what each operation of a network takes.",
        extra="bench",
    ),
    Subcommand("serve", "sdengine.cli.serve:serve", "Serve pictures over HTTP.", extra="serve"),
    Subcommand(
        "train",
        "sdengine.cli.train:train_app",
        "Train what changes a model.",
        "train",
        is_group=True,
    ),
)

# Packages of extras; anything else that is missing is a broken installation.
_OF_TRAINING = {"accelerate", "scipy"}
_OF_SERVING = {"fastapi", "multipart", "prometheus_client", "starlette", "uvicorn"}
_OPTIONAL_PACKAGES = {
    *_OF_TRAINING,
    "diffusers",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pandas",
    "psutil",
    "pyarrow",
    "ray",
    "torch",
    *_OF_SERVING,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; the installed script exits with it.

    Args:
        arguments: without the program's name; None for the process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    with standard_streams(), ending_signals() as ending:
        try:
            return _run(given)
        except (Exception, KeyboardInterrupt) as error:
            # Foreign code may have made something else of an interruption.
            if ending.number or isinstance(error, (KeyboardInterrupt, typer.Abort)):
                return _end(ending)
            return _report(error, given)


def _report(error: Exception, arguments: list[str]) -> int:
    """Say what went wrong and return the exit status; raise what is a fault of our own."""
    if isinstance(error, SdengineError):
        return _fail(str(error), error.exit_status)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("sdengine."):
        # Parts that installing adds to the sources.
        part = str(error.name).removeprefix("sdengine.")
        return _report(IncompleteInstallationError.of(part, sdengine.__path__[0]), arguments)
    if isinstance(error, ImportError):
        return _fail(f"the installation is incomplete: {error}. `sdengine doctor` says more.", 1)
    if isinstance(error, OSError):
        # What is still buffered cannot be written; flushing it again at exit would complain twice.
        drop_output(sys.stdout)
        place = error.filename or "standard output or a file"
        return _fail(f"{place} cannot be read or written: {error.strerror}.", 1)
    # Typer's usage errors have no public base class; they all know their message and status.
    message = getattr(error, "format_message", None)
    if message is None:
        raise error
    first = arguments[0] if arguments else ""
    known = any(command.name == first for command in SUBCOMMANDS)
    where = f"sdengine {first}" if known else "sdengine"
    text = message().rstrip(".")
    if known and first == "generate" and (wrong := getattr(error, "option_name", "")):
        text = _with_near_option(text, wrong)
    return _fail(f"{text}. See `{where} --help`.", getattr(error, "exit_code", 2))


def _with_near_option(text: str, wrong: str) -> str:
    from sdengine.cli.request_options import near_option

    near = near_option(wrong) if text.startswith("No such option") else None
    return f"{text.partition(' (Possible')[0]}; did you mean {near}" if near else text


def _run(arguments: list[str]) -> int:
    invoked = next((word for word in arguments if not word.startswith("-")), None)
    app = _make_app(invoked)
    command = next((known for known in SUBCOMMANDS if known.name == invoked), None)
    try:
        status = app(args=arguments or ["--help"], prog_name="sdengine", standalone_mode=False)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if command is None or not command.extra or package not in _OPTIONAL_PACKAGES:
            raise
        raise _missing(command, package) from None
    if status == _INTERRUPTED:  # typer swallows the interrupt and returns its status
        raise KeyboardInterrupt
    sys.stdout.flush()
    return status if isinstance(status, int) else 0


def _end(ending: Ending) -> int:
    name = signal.Signals(ending.number).name if ending.number else "SIGINT"
    how = "interrupted" if name == "SIGINT" else f"ended by {name}"
    return _fail(f"{how}; nothing half-written was left behind.", ending.status)


def _make_app(invoked: str | None) -> typer.Typer:
    """Register the invoked subcommand itself and only the summaries of the others."""
    app = typer.Typer(
        name="sdengine",
        help="Stable Diffusion compiled into engines that run without torch.",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_global_options)
    for command in SUBCOMMANDS:
        if command.name != invoked:
            app.command(command.name, help=command.summary)(_summary_only)
        elif command.is_group:
            app.add_typer(_import(command), name=command.name)  # type: ignore[arg-type]
        else:
            app.command(command.name)(_import(command))  # type: ignore[type-var]
    return app


def _import(command: Subcommand) -> object:
    module_name, _, attribute = command.home.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _OPTIONAL_PACKAGES:
            raise
        raise _missing(command, package) from None


def _missing(command: Subcommand, package: str) -> BackendUnavailableError:
    extra = "train" if package in _OF_TRAINING else command.extra or "build"
    return BackendUnavailableError(
        f"`sdengine {command.name}` needs {package}, which is not installed. Install it: "
        f"pip install 'sdengine[{extra}]'."
    )


def _summary_only() -> None:
    """Stand for a subcommand in `--help`; the invoked one is registered in full."""


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"sdengine {__version__}")
        raise typer.Exit


def _global_options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
    verbose: bool = typer.Option(False, "--verbose", help="Log choices to standard error."),
) -> None:
    if verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(_PrintableFormatter("%(name)s: %(message)s"))
        logging.basicConfig(level=logging.INFO, handlers=[handler])
    elif logging.lastResort is not None:
        logging.lastResort.setFormatter(_PrintableFormatter())


class _PrintableFormatter(logging.Formatter):
    """Log lines without what a terminal would obey: names in them come from files."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def _fail(message: str, status: int) -> int:
    # Of its lines only those that were put there on purpose are such: they are indented.
    first, *more = message.split("\n    ")
    note(f"error: {first}")
    for line in more:
        note(f"    {line}")
    return status
