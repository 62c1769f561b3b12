"""What every command says when something goes wrong."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console

from causalprune.errors import CausalPruneError

__all__ = ["console_for_errors", "errors_in_one_line", "fail", "line_width", "on_terminal"]

_READABLE = 100


def on_terminal() -> bool:
    """Tell whether a person is reading."""
    return sys.stdout.isatty()


def line_width() -> int | None:
    """Return where to break lines of text; None where no person is reading."""
    if not on_terminal():
        return None
    return min(_READABLE, shutil.get_terminal_size().columns)


def console_for_errors() -> Console:
    """Return the console on stderr."""
    return Console(stderr=True, soft_wrap=True)


def fail(message: str) -> NoReturn:
    """Print `message` as one line on stderr and end with exit code 2."""
    line = " ".join(message.split())
    console_for_errors().print(f"causalprune: {line}", markup=False, highlight=False)
    raise typer.Exit(2)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Turn errors that are raised on purpose into :func:`fail`."""
    try:
        yield
    except (CausalPruneError, OSError) as error:
        # OSError: a full disk or a folder that may not be written; a traceback adds nothing.
        fail(str(error))
