"""What a study shows while it runs: a live table on a terminal, a few lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from causalprune.errors import RecordError
from causalprune.experiments.progress import Advance, Stages
from causalprune.experiments.store import StudyStore
from causalprune.experiments.store_progress import StudyProgress
from causalprune.experiments.study_spec import StudySpec
from causalprune.experiments.study_steps import steps_there, telling
from causalprune.experiments.study_view import block_names, count_line, study_view

__all__ = ["Follower", "following"]

# Looking takes at most this share of the time of the process.
_SHARE = 0.01
_PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class Follower:
    """Takes what a process at work tells of itself.

    Attributes
    ----------
    name_of_block : mapping of int to str
    say : callable
        Prints a line; does nothing where a table shows it all.
    """

    name_of_block: Mapping[int, str]
    say: Callable[[str], None]
    _told: set[str] = field(default_factory=set)

    def stages(self, folder: Path) -> Stages:
        """Return what the preparation of a block in `folder` is to report its steps to."""

        @contextmanager
        def stage(title: str, total: int) -> Iterator[Advance]:
            done = 0

            def advance(note: str) -> None:
                nonlocal done
                done += 1
                telling(folder, f"{title}: {note} ({done} of {total})")

            telling(folder, title)
            yield advance

        return stage

    def ended(self, block: int, row: Mapping[str, Any], status: str) -> None:
        """Take the row of a trial that has been recorded; a failure is told once for each error."""
        error = str(row.get("error"))
        if status != "failed" or error in self._told:
            return
        self._told.add(error)
        where = f"{self.name_of_block[block]}, {row['method']}, {row['ratio']:.0%}"
        self.say(f"trial {row['trial']} ({where}) failed: {error}")


@contextmanager
def following(
    spec: StudySpec, folder: Path, *, show: bool = True, console: Console | None = None
) -> Iterator[Follower]:
    """Show how far a study is while a block runs, by all processes that work on it.

    On a terminal: a table, drawn anew in its place about once a second, with what blocks are being
    prepared and the last failure. Elsewhere: a line at the start, one at the end, and one for each
    error that trials fail with.

    Parameters
    ----------
    spec : StudySpec
    folder : Path
        Of the records, which are there.
    show : bool
        False shows nothing at all.
    console : Console, optional
        Where to; stdout by default.

    Yields
    ------
    Follower
        To be told what this process does.
    """
    names = block_names(spec)
    if not show:
        yield Follower(names, lambda line: None)
        return
    console = console or Console()
    if console.is_terminal and not console.is_dumb_terminal:
        with _table(spec, folder, console):
            yield Follower(names, lambda line: None)
    else:

        def say(line: str) -> None:
            console.print(line, soft_wrap=True, highlight=False, markup=False)

        found = _progress(folder)
        left = found.count("queued") + found.count("running")
        say(f"{spec.name}: {found.total} trials, {left} left to run, in {folder}")
        yield Follower(names, say)
    console.print(
        f"{count_line(_progress(folder))}: {folder}", soft_wrap=True, highlight=False, markup=False
    )


@contextmanager
def _table(spec: StudySpec, folder: Path, console: Console) -> Iterator[None]:
    begun = time.monotonic()
    over = threading.Event()
    with Live(console=console, auto_refresh=False) as live:

        def draw() -> None:
            # A store that cannot be read for once is drawn again a second later.
            with suppress(RecordError):
                found = _progress(folder)
                elapsed = time.monotonic() - begun
                drawn = study_view(
                    spec, found, steps_there(folder), width=console.width, elapsed=elapsed
                )
                live.update(drawn, refresh=True)

        def keep_drawing() -> None:
            pause = _PAUSE_SECONDS
            while not over.wait(pause):
                start = time.thread_time()
                draw()
                pause = max(_PAUSE_SECONDS, (time.thread_time() - start) / _SHARE)

        draw()
        thread = threading.Thread(target=keep_drawing, name="table of the study", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            draw()


def _progress(folder: Path) -> StudyProgress:
    with StudyStore.open(folder) as store:
        return store.progress()
