"""What all commands share: their options, their messages and their exit codes.

| code | meaning |
|---|---|
| 0 | done |
| 1 | the data, a file or the computation are at fault: one line says how |
| 2 | the command line is at fault |
| 130, 143 | interrupted by Ctrl-C, or terminated: a line says how to go on |
"""

import contextlib
import difflib
import importlib
import math
import shlex
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click

__all__ = [
    "Command",
    "Failure",
    "FloatRange",
    "IntRange",
    "go_on",
    "nearest",
    "needed",
    "shared",
]

_GO_ON = "numpyro_diffusion.cli.go_on"
_WORDS = "numpyro_diffusion.cli.words"
# What the library raises with a sentence of its own.
_TOLD = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError)


class Failure(click.ClickException):
    """What a user can mend, in one line; exit code 1."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class FloatRange(click.FloatRange):
    """A number of a range; click's own lets "nan" through, which is in none."""

    name = "number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """The number, or a usage error that names the range."""
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(
                f"{value} is not in the range {self._describe_range()}.", param, ctx
            )
        return found


class IntRange(click.IntRange):
    """A whole number of a range, and called so where it is none."""

    name = "whole number"


class _Terminated(BaseException):
    """SIGTERM came."""


class Command(click.Command):
    """A command whose faults are one line, and which can be interrupted."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words as they were written, for the sentence how to go on."""
        ctx.meta[_WORDS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run; every fault of data or computation becomes a `Failure`."""
        shows_traceback = ctx.params.pop("traceback")
        try:
            with _terminable():
                return super().invoke(ctx)
        except (KeyboardInterrupt, _Terminated) as stop:
            is_term = isinstance(stop, _Terminated)
            word, code = ("Terminated", 143) if is_term else ("Interrupted", 130)
            click.echo(f"\n{word}. {_what_is_left(ctx)}", err=True)
            ctx.exit(code)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError) as error:
            if shows_traceback and isinstance(error, Failure):
                traceback.print_exc()
            raise
        except Exception as error:
            if shows_traceback:
                traceback.print_exc()
            raise Failure(_one_line(error)) from error

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The worked example, its lines as they stand: they are to be copied."""
        if self.epilog:
            formatter.write_paragraph()
            with formatter.section("Example"):
                for line in self.epilog.strip().splitlines():
                    formatter.write(f"  {line}\n")


def shared(function: Callable) -> Callable:
    """The options that every command has."""
    return click.option(
        "--traceback",
        is_flag=True,
        help="If something fails, show where in the code.",
    )(function)


def go_on(state: Path, *more: str) -> None:
    """Say what an interrupted run leaves behind, once it has left something.

    Args:
        state: The file of the run's state.
        *more: Words to add to the command, which then goes on.
    """
    ctx = click.get_current_context()
    words = [word for word in ctx.meta[_WORDS] if word not in more]
    command = shlex.join([*ctx.command_path.split(), *words, *more])
    ctx.meta[_GO_ON] = (state, f"To go on: {command}")


def _what_is_left(ctx: click.Context) -> str:
    state, how = ctx.meta.get(_GO_ON, (None, ""))
    if state is None:
        return "Nothing was written."
    if not state.exists():
        return "Nothing was written yet: the same command starts again."
    return f"The state of the run is kept in {state}. {how}"


def needed(module: str, purpose: str) -> Any:
    """Import a package that not everybody has.

    Args:
        module: Its name.
        purpose: What it is needed for, as the start of a sentence.

    Raises:
        Failure: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Failure(
            f"{purpose} needs the package {module.split('.')[0]}: "
            "pip install 'numpyro-diffusion[cli]'."
        ) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint which name was meant, with a space in front; empty where none is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does; signals belong to the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: Any) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _one_line(error: Exception) -> str:
    """A fault of the library or of a file, as its own sentence; others with their name."""
    text = str(error)
    return (
        text if isinstance(error, _TOLD) and text else f"{type(error).__name__}: {text}"
    )
