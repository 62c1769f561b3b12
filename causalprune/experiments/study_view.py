"""How far a study is, as a table for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from causalprune.experiments.store_progress import Part, StudyProgress
from causalprune.experiments.study_spec import StudySpec

__all__ = ["block_names", "count_line", "estimate", "study_view"]

# Below this many characters there is no room for all columns.
_WIDE = 72
_MOST_ROWS = 16


def block_names(spec: StudySpec) -> dict[int, str]:
    """Return what each block is called: its network and its data set."""
    return {number: f"{block.network} on {block.data}" for number, block in enumerate(spec.blocks)}


def count_line(progress: StudyProgress) -> str:
    """Say how many trials are recorded, and how many of them failed."""
    failed = progress.count("failed")
    return f"{progress.count('ok') + failed} trials recorded, {failed} failed"


def estimate(progress: StudyProgress) -> str:
    """Say in words about how long the rest takes, and what that leaves out."""
    left = progress.count("queued") + progress.count("running")
    if not left:
        return "nothing left to run"
    seconds, unknown = progress.seconds_left(), progress.without_estimate()
    if seconds is None:
        return f"{left} trials left, time unknown before the first has ended"
    told = f"{_about(seconds)} left"
    processes = progress.workers or 1
    told += f" for {processes} process" + ("es" if processes > 1 else "")
    if unknown:
        told += f", without {unknown} trials of blocks that have not begun"
    return told


def _about(seconds: float) -> str:
    """Round so far as one can know: means of a few trials, other work on the machine."""
    if seconds < 60:
        return "under a minute"
    if seconds < 90 * 60:
        return f"about {seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"about {hours:.1f} h" if hours < 10 else f"about {hours:.0f} h"


def study_view(
    spec: StudySpec,
    progress: StudyProgress,
    steps: Sequence[str] = (),
    *,
    width: int,
    elapsed: float | None = None,
    errors: bool = False,
) -> RenderableType:
    """Draw how far a study is.

    Parameters
    ----------
    spec : StudySpec
    progress : StudyProgress
    steps : sequence of str
        What is being prepared.
    width : int
        Characters a line.
    elapsed : float, optional
        Seconds since this process began.
    errors : bool
        All errors with how many trials they ended, instead of the last one.

    Returns
    -------
    RenderableType
        Headline, preparation, failures, and a table by block, or by method where there is one
        block.
    """
    done = progress.count("ok") + progress.count("failed")
    head = f"{spec.name}: {done} of {progress.total} trials recorded"
    if elapsed is not None:
        head += f", here for {int(elapsed) // 60}:{int(elapsed) % 60:02d}"
    lines = [Text(f"{head}; {estimate(progress)}", style="bold")]
    lines += [Text(f"preparing: {step}") for step in steps]
    if progress.interrupted:
        ended = f"running trials whose process has ended: {progress.interrupted}"
        lines.append(Text(f"{ended} (the next process takes them up)"))
    if errors:
        lines += [Text(f"{count} x {error}", style="red") for error, count in progress.errors]
    elif progress.last_error is not None:
        last = Text(f"last failure: {progress.last_error}", style="red")
        last.truncate(2 * width, overflow="ellipsis")  # two lines: the table must keep its place
        lines.append(last)
    return Group(*lines, _table(spec, progress, width))


def _table(spec: StudySpec, progress: StudyProgress, width: int) -> Table:
    wide = width >= _WIDE
    many = len(spec.blocks) > 1
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("block" if many else f"method, {block_names(spec)[0]}", overflow="fold")
    for name in ("recorded", "failed", "running", *(("s a trial", "left") if wide else ("left",))):
        table.add_column(name, justify="right", no_wrap=True)
    groups = _grouped(spec, progress.parts, by_block=many)
    for name, parts in list(groups.items())[:_MOST_ROWS]:
        table.add_row(*_row(name, replace(progress, parts=parts), wide=wide))
    if len(groups) > _MOST_ROWS:
        table.add_row(f"and {len(groups) - _MOST_ROWS} more")
    return table


def _grouped(
    spec: StudySpec, parts: Sequence[Part], *, by_block: bool
) -> Mapping[str, tuple[Part, ...]]:
    names = block_names(spec)
    name_of: Callable[[Part], str] = (
        (lambda part: names.get(-1 if part.block is None else part.block, str(part.network)))
        if by_block
        else (lambda part: str(part.method))
    )
    groups: dict[str, tuple[Part, ...]] = {}
    for part in parts:
        groups[name_of(part)] = (*groups.get(name_of(part), ()), part)
    return groups


def _row(name: str, own: StudyProgress, *, wide: bool) -> list[str]:
    ok, failed, running = (own.count(status) for status in ("ok", "failed", "running"))
    timed = [
        (part.ok + part.failed, part.seconds) for part in own.parts if part.seconds is not None
    ]
    mean = sum(n * s for n, s in timed) / sum(n for n, _ in timed) if timed else None
    seconds = own.seconds_left()
    left = "?" if seconds is None or own.without_estimate() else _about(seconds)
    if not own.count("queued") + running:
        left = ""
    cells = [name, f"{ok + failed}/{own.total}", str(failed or ""), str(running or "")]
    if wide:
        cells.append("" if mean is None else f"{mean:.2g}" if mean < 10 else f"{mean:.0f}")
    return [*cells, left.removeprefix("about ").replace("under a minute", "< 1 min")]
