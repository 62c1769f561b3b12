"""The commands ``causalprune study ...``: designed studies and their records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from causalprune.cli.console import errors_in_one_line, fail
from causalprune.files import file_blocks, replace_file

if TYPE_CHECKING:
    from causalprune.experiments.study import Study

__all__ = ["study"]

study = typer.Typer(
    name="study",
    help="Run a designed study over networks, methods, ratios and shifts, and read its records.",
    no_args_is_help=True,
)

_Folder = Annotated[Path, typer.Argument(help="Folder of the study's records.")]
_File = Annotated[Path, typer.Argument(help="Study file, YAML.")]
_Executor = Annotated[str, typer.Option(help="local (this process) or ray (a cluster).")]
_Address = Annotated[
    str | None,
    typer.Option(
        help="Of the Ray cluster: host:port, ray://host:port or auto; default: RAY_ADDRESS, or "
        "this machine alone."
    ),
]
_Out = Annotated[
    Path | None, typer.Option(help="Folder of the records; default: the file's path less .yaml.")
]


@study.command()
def plan(file: _File, out: _Out = None) -> None:
    """Say what a study would run, and run nothing."""
    with errors_in_one_line():
        from causalprune.experiments.study import Study

        found = Study.from_file(file, out)
        console = Console()
        for line in found.plan():
            console.print(escape(line), soft_wrap=True, highlight=False)


@study.command()
def run(
    file: _File,
    out: _Out = None,
    limit: Annotated[int | None, typer.Option(help="Run so many trials at the most.")] = None,
    executor: _Executor = "local",
    address: _Address = None,
) -> None:
    """Run a study, or what is left of it; several processes may do so at once."""
    with errors_in_one_line():
        from causalprune.experiments.study import Study

        found = Study.from_file(file, out)
        _run(found, retry_failed=False, limit=limit, executor=executor, address=address)


@study.command()
def resume(
    folder: _Folder,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed trials again.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Run so many trials at the most.")] = None,
    executor: _Executor = "local",
    address: _Address = None,
) -> None:
    """Run what is left of a study, by its folder alone."""
    with errors_in_one_line():
        found = _opened(folder)
        _run(found, retry_failed=retry_failed, limit=limit, executor=executor, address=address)


@study.command()
def status(folder: _Folder) -> None:
    """Say how far a study is, block by block, how long the rest takes, and what failed."""
    with errors_in_one_line():
        from causalprune.experiments.study_steps import steps_there
        from causalprune.experiments.study_view import study_view

        found, console = _opened(folder), Console()
        steps = steps_there(found.folder)
        console.print(
            study_view(found.spec, found.progress(), steps, width=console.width, errors=True)
        )


@study.command()
def export(
    folder: _Folder,
    path: Annotated[Path, typer.Argument(help="File to write: .csv or .parquet.")],
    by_shift: Annotated[
        bool, typer.Option("--by-shift", help="One row for each trial and shift.")
    ] = False,
) -> None:
    """Write the rows so far to a table."""
    with errors_in_one_line():
        written = _opened(folder).export(path, by_shift=by_shift)
        Console().print(f"written: {escape(str(written))}", soft_wrap=True, highlight=False)


@study.command()
def potential(
    folder: _Folder,
    delta: Annotated[
        float, typer.Option(help="By how much the error may rise, a fraction of the images.")
    ] = 0.005,
) -> None:
    """Tell how much can go before the error rises, on plain and on shifted test images."""
    with errors_in_one_line():
        from causalprune.cli.potential_tables import potential_tables

        found = _opened(folder)
        status, potentials = found.status(), found.prune_potentials(delta)
        console = Console()
        for part in potential_tables(potentials):
            console.print(part, highlight=False)
        if status.ok < status.total:
            console.print(
                f"{status.ok} of {status.total} trials went well so far; the others are not here",
                soft_wrap=True,
                highlight=False,
            )


@study.command()
def columns() -> None:
    """List the columns of a study's table: name, kind of value, what it is."""
    with errors_in_one_line():
        from causalprune.experiments.study import STUDY_COLUMNS

        console = Console()
        for column in STUDY_COLUMNS:
            told = f"{column.name} ({column.kind}): {column.description}"
            if column.measured:
                told += "; differs from run to run"
            console.print(told, soft_wrap=True, highlight=False, markup=False)


@study.command()
def artefacts(
    folder: _Folder,
    trial: Annotated[int | None, typer.Option(help="Of this trial only, by number.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="Only these: plan, masks, checkpoint or trace.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Write the one that is asked for to this new file.")
    ] = None,
) -> None:
    """List what trials left beside their rows, or fetch one of it."""
    with errors_in_one_line():
        opened = _opened(folder)
        found = opened.artefacts(trial, kind)
        console = Console()
        if to is None:
            for each in found:
                console.print(
                    f"trial {each.trial}  {each.kind:<10}  {each.n_bytes:>12,} bytes  "
                    f"{each.digest}",
                    soft_wrap=True,
                    highlight=False,
                )
            if not found:
                console.print("nothing kept")
            return
        if len(found) != 1:
            fail(
                f"--to: expected --trial and --kind of one artefact, got {len(found)}; without "
                "--to they are listed"
            )
        if to.exists():
            fail(f"--to: {str(to)!r} exists; choose another file")
        replace_file(to, file_blocks(opened.artefact_path(found[0].digest)))
        console.print(f"written: {escape(str(to))}", soft_wrap=True, highlight=False)


@study.command()
def rerun(
    folder: _Folder,
    count: Annotated[
        int | None, typer.Option(help="How many cells, drawn at random; default: a tenth.")
    ] = None,
    between: Annotated[
        float, typer.Option(help="Share of them at ratios between those of the study.")
    ] = 0.5,
    cells: Annotated[
        Path | None,
        typer.Option(help="Run these instead: .csv with checkpoint, method, ratio, ..."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Table to write, .csv; goes on with what it has.")
    ] = Path("replayed.csv"),
    seed: Annotated[int, typer.Option(help="Of the choice and of the trials.")] = 0,
) -> None:
    """Run cells for real and say how far counterfactuals, fitted without them, were off."""
    with errors_in_one_line():
        from causalprune.analysis import CounterfactualModel, cells_to_rerun, replay_error
        from causalprune.analysis.tables import read_table

        found = _opened(folder)
        model = CounterfactualModel.fit(found.frame(), seed=seed, replay_share=0)
        if cells is not None:
            chosen = read_table(cells)
        else:
            drawn = cells_to_rerun(model, count=count, between=between, seed=seed)
            chosen = drawn.drop(columns="trial")
        try:
            rows = found.rerun(chosen, out, seed=seed)
        except KeyboardInterrupt:
            fail(f"interrupted; what is done is in {out}; the same command goes on")
        console = Console(soft_wrap=True, highlight=False)
        failed = int((rows["status"] == "failed").sum())
        console.print(escape(f"written: {out}, {len(rows)} trials, {failed} failed"))
        if failed == len(rows):
            fail(f"every trial failed: {rows['error'].iloc[0]}")
        console.print("beside the answers of a model that was fitted without these cells:")
        for each in replay_error(model, rows):
            console.print(escape(f"{each.text}. {each.verdict}".strip()))
            if each.n_refused:
                console.print(f"  {each.n_refused} trials lie outside of what the study supports")


@study.command()
def doctor(folder: _Folder) -> None:
    """Check the records: the database, artefacts, trials of processes that are gone."""
    with errors_in_one_line():
        findings = _opened(folder).doctor()
        for finding in findings:
            Console().print(escape(finding), soft_wrap=True, highlight=False)
        if findings:
            raise typer.Exit(1)
        Console().print("nothing found")


def _opened(folder: Path) -> Study:
    from causalprune.experiments.study import Study

    return Study.open(folder)


def _run(
    found: Study, *, retry_failed: bool, limit: int | None, executor: str, address: str | None
) -> None:
    if limit is not None and limit < 1:
        fail(f"--limit: expected at least 1, got {limit}")
    trials = found.run(executor=executor, address=address, retry_failed=retry_failed, limit=limit)
    failed = trials[trials["status"] == "failed"]
    console = Console()
    for error, count in failed["error"].value_counts().items():
        console.print(f"{count} x {escape(str(error))}", soft_wrap=True, highlight=False)
    if len(trials) and len(failed) == len(trials):
        raise typer.Exit(1)
