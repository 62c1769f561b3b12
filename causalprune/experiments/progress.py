"""Progress of long steps: a bar on a terminal, one line a stage elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

__all__ = ["Advance", "Stages", "stage"]

Advance = Callable[[str], None]
Stages = Callable[[str, int], AbstractContextManager[Advance]]
"""Shows steps in a way of its own: takes title and total, and yields what `stage` yields."""

# Below this many characters notes would squeeze out the counts.
_WIDE = 110


@contextmanager
def stage(title: str, total: int, *, progress: bool | Stages = True) -> Iterator[Advance]:
    """Show how far a step of ``total`` parts has come.

    Parameters
    ----------
    title : str
        What is being done.
    total : int
        Number of parts.
    progress : bool or callable
        False shows nothing at all; a callable is called instead, with title and total.

    Yields
    ------
    callable
        To be called with a short note (may be empty) after each part.

    Examples
    --------
    >>> with stage("counting", 2, progress=False) as advance:
    ...     for _ in range(2):
    ...         advance("")
    """
    console = Console(file=sys.stdout)
    if callable(progress):
        with progress(title, total) as advance:
            yield advance
    elif not progress:
        yield lambda note: None
    elif console.is_terminal:
        yield from _bar(title, total, console)
    else:
        start = time.perf_counter()
        yield lambda note: None
        print(f"{title}: {total} done in {time.perf_counter() - start:.1f} s", flush=True)


def _bar(title: str, total: int, console: Console) -> Iterator[Advance]:
    columns: list[ProgressColumn] = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    ]
    if console.width >= _WIDE:
        columns.append(TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, note="")
        yield lambda note: bar.update(task, advance=1, note=note)
