"""The command ``causalprune``: thin commands over the public functions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from causalprune.cli.bench_command import bench
from causalprune.cli.console import (
    console_for_errors,
    errors_in_one_line,
    fail,
    line_width,
    on_terminal,
)
from causalprune.cli.counterfactual_command import counterfactual
from causalprune.cli.prune_command import prune
from causalprune.cli.score_command import score
from causalprune.cli.study_command import study
from causalprune.cli.units_command import units
from causalprune.errors import CausalPruneError, InvalidArgumentError, OutputExistsError

if TYPE_CHECKING:
    import pandas as pd

    from causalprune.analysis import AnalysisResult
    from causalprune.experiments import RunConfig, RunResult

__all__ = ["app", "main"]

app = typer.Typer(
    name="causalprune",
    help="Find out what a network causally depends on, remove the rest, and learn from it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command()(score)
app.command()(prune)
app.command()(bench)
app.command()(counterfactual)
app.command()(units)
app.add_typer(study)

_QUICK: Mapping[str, Any] = {
    "methods": ("path", "random"),
    "ratios": (0.0, 0.5, 0.8),
    "checkpoints": 2,
    "epochs": 4,
    "retrain_epochs": 1,
    "latency_repeats": 10,
}
_QUICK_SIMULATIONS = 20


def main() -> None:
    """Run the command line; the entry point of the installed script."""
    app()


@app.command()
def run(
    network: Annotated[
        str | None, typer.Option(help="Registered network, or torchvision's or timm's name.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Pixels a side; default: the network's own.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="digits, mnist, fashion-mnist, cifar10, cifar-subset, or a folder."),
    ] = None,
    data_root: Annotated[
        str | None, typer.Option(help="Where the data set's files are (else CAUSALPRUNE_DATA).")
    ] = None,
    ratios: Annotated[
        str | None, typer.Option(help='Fractions to remove, such as "0,0.2,0.5".')
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Scoring method; repeat it or separate by commas.")
    ] = None,
    of: Annotated[
        str | None, typer.Option(help="What a ratio counts: parameters, macs or units.")
    ] = None,
    outcome: Annotated[str | None, typer.Option(help="Outcome whose change is scored.")] = None,
    seed: Annotated[int | None, typer.Option(help="Everything random follows from it.")] = None,
    checkpoints: Annotated[int | None, typer.Option(help="Independently trained networks.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Training epochs.")] = None,
    retrain_epochs: Annotated[int | None, typer.Option(help="Epochs after pruning.")] = None,
    train_limit: Annotated[int | None, typer.Option(help="Use so many training images.")] = None,
    test_limit: Annotated[int | None, typer.Option(help="Use so many test images.")] = None,
    threads: Annotated[int | None, typer.Option(help="torch's threads.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    explain: Annotated[
        bool | None, typer.Option(help="Explanatory graphs of classes, with maps over images.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("causalprune-run"),
    resume: Annotated[bool, typer.Option("--resume", help="Finish the run in --out.")] = False,
    weights: Annotated[
        Path | None, typer.Option(help="Weights to load instead of training: file or folder.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="config.json of another run to repeat; options change it.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small setting, to see that everything works.")
    ] = False,
) -> None:
    """Train, score, prune, retrain, measure; then estimate, refute and report."""
    given = {
        "network": network,
        "image_size": image_size,
        "data": data,
        "data_root": data_root,
        "ratios": _numbers(ratios),
        "methods": _names(method),
        "ratio_of": of,
        "outcome": outcome,
        "seed": seed,
        "checkpoints": checkpoints,
        "epochs": epochs,
        "retrain_epochs": retrain_epochs,
        "train_limit": train_limit,
        "test_limit": test_limit,
        "threads": threads,
        "device": device,
        "explain": explain,
    }
    with errors_in_one_line():
        from causalprune.experiments import run_experiment

        if config is None and resume and (out / "config.json").is_file():
            config = out / "config.json"
        settings = _configuration(given, config, quick=quick, weights=weights)
        with _kept_on_interrupt(out):
            result = run_experiment(settings, out, resume=resume, weights=weights)
            if result.n_failed == len(result.trials):
                raise CausalPruneError(f"every trial failed: {'; '.join(result.failures)}")
            analyses = _analyses(result, settings.seed, _QUICK_SIMULATIONS if quick else None)
            report_path = _report(result, analyses)
    _print_result(result, analyses, report_path)
    if result.n_failed:
        raise typer.Exit(1)


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the build, the instruction sets, the machine and the versions."""
    with errors_in_one_line():
        from causalprune.measures import info as describe

        facts = describe()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in _flat(facts):
        table.add_row(f"[bold]{escape(key)}[/bold]", escape(_in_words(value)))
    Console(soft_wrap=True).print(table)


@app.command()
def analyze(
    table: Annotated[
        Path, typer.Argument(help="Folder of a run, a study or units, or a .csv or .parquet.")
    ],
    treatment: Annotated[str, typer.Option(help="Column that is set.")] = "ratio",
    outcome: Annotated[str, typer.Option(help="Column that follows.")] = "accuracy_loss",
    preset: Annotated[str | None, typer.Option(help='"iisc" for the paper\'s Algorithm 2.')] = None,
    graph: Annotated[
        Path | None,
        typer.Option(help="File of your own causal graph: .gml, or lines 'ratio -> latency_ms'."),
    ] = None,
    contrast: Annotated[
        list[str] | None,
        typer.Option(help="Move of the treatment to tell the effect of, such as 0.3:0.7."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the refuters.")] = 0,
    time_budget_s: Annotated[
        float, typer.Option("--time-budget", help="Seconds for what stands beside the main effect.")
    ] = 120.0,
    save: Annotated[Path | None, typer.Option(help="JSON file to write the result to.")] = None,
) -> None:
    """Estimate an effect from a run table and try to refute it."""
    with errors_in_one_line():
        from causalprune.analysis import analyze as analyze_table
        from causalprune.analysis import read_graph

        if save is not None and save.exists():
            raise OutputExistsError(f"save: {str(save)!r} exists; choose another file")
        result = analyze_table(
            table,
            treatment,
            outcome,
            preset=preset,
            graph=read_graph(graph) if graph is not None else None,
            contrasts=_pairs(contrast) if contrast else None,
            seed=seed,
            progress=on_terminal(),
            time_budget_s=time_budget_s,
        )
        if save is not None:
            result.save(save)
    print(result.summary(line_width()))


def _pairs(texts: list[str]) -> list[tuple[float, float]]:
    pairs = []
    for text in texts:
        try:
            start, end = map(float, text.split(":"))
        except ValueError as error:
            raise InvalidArgumentError(
                f"contrast: expected START:END, such as 0.3:0.7, got {text!r}"
            ) from error
        pairs.append((start, end))
    return pairs


@app.command()
def report(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of a study, a run, a pruned network or units, study.db, .csv, .parquet, "
            "or the .npz of scores."
        ),
    ],
    path: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="HTML file; report.html in the folder, or beside a file."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write the report of a study, a run, a pruned network, scores or units."""
    with errors_in_one_line():
        from causalprune.reports import report as write_report

        folder = source if source.is_dir() else source.parent
        target = path if path is not None else folder / "report.html"
        written = write_report(source, target, overwrite=overwrite)
    print(f"report: {written}")


def _configuration(
    given: Mapping[str, Any], recorded: Path | None, *, quick: bool, weights: Path | None
) -> RunConfig:
    """Build the configuration; what is not said is as it was recorded, if it was."""
    from causalprune.experiments import RunConfig
    from causalprune.experiments.records import read_json

    said = {name: value for name, value in given.items() if value is not None}
    if recorded is not None:
        return replace(RunConfig.from_dict(read_json(recorded)), **said)
    if weights is not None and weights.is_file() and "checkpoints" not in said:
        said["checkpoints"] = 1
    return RunConfig(**{**(_QUICK if quick else {}), **said})


def _analyses(result: RunResult, seed: int, simulations: int | None) -> tuple[AnalysisResult, ...]:
    """Run both analyses and save them; one that cannot be made says so and is left out."""
    from causalprune.analysis import analyze as analyze_table
    from causalprune.analysis import save_analyses
    from causalprune.experiments.progress import stage

    options: dict[str, Any] = {"seed": seed}
    if simulations is not None:
        options["n_simulations"] = simulations
    found: list[AnalysisResult] = []
    problems: list[str] = []
    presets = (None, "iisc")
    with stage("causal analysis: identify, estimate, refute", len(presets)) as advance:
        for preset in presets:
            try:
                found.append(analyze_table(result.trials, preset=preset, **options))
            except CausalPruneError as error:
                problems.append(f"analysis ({preset or 'default'}) left out: {error}")
            advance(preset or "default")
    for problem in problems:
        console_for_errors().print(problem, markup=False, highlight=False)
    if found:
        save_analyses(found, result.out / "analysis.json")
    return tuple(found)


def _report(result: RunResult, analyses: tuple[AnalysisResult, ...]) -> Path:
    from causalprune.experiments.progress import stage
    from causalprune.reports import report as write_report

    with stage("report", 1) as advance:
        # The folder is this run's own: an older report in it belongs to the same run.
        path = write_report(
            result.out, result.out / "report.html", analyses=analyses, overwrite=True
        )
        advance("")
    return path


def _print_result(
    result: RunResult, analyses: tuple[AnalysisResult, ...], report_path: Path
) -> None:
    console = Console()
    console.print(_result_table(result.trials))
    if result.n_failed:
        print(
            f"{result.n_failed} trials failed (--resume tries them again): "
            f"{'; '.join(result.failures)}"
        )
    for analysis in analyses[:1]:
        print(analysis.headline)
    # Not through the console: a path must not be wrapped.
    print(f"table:  {result.out / 'trials.csv'}")
    print(f"report: {report_path}")


def _result_table(trials: pd.DataFrame) -> Table:
    done = trials[trials["status"] == "ok"]
    means = done.groupby(["method", "ratio"], as_index=False)[
        ["accuracy_pruned", "accuracy", "parameters", "macs", "memory_bytes", "latency_ms"]
    ].mean()
    table = Table(
        title="accuracy when pruned and when retrained, size, latency (means)",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("method")
    for title in ("ratio", "pruned", "retrained", "parameters", "MACs", "memory", "latency"):
        table.add_column(title, justify="right")
    for row in means.to_dict("records"):
        table.add_row(
            str(row["method"]),
            f"{row['ratio']:.0%}",
            f"{row['accuracy_pruned']:.1%}",
            f"{row['accuracy']:.1%}",
            f"{row['parameters']:,.0f}",
            f"{row['macs']:,.0f}",
            f"{row['memory_bytes'] / 1e3:,.0f} kB",
            f"{row['latency_ms']:.2f} ms",
        )
    return table


def _numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        fail(f"--ratios: expected numbers separated by commas, got {text!r}")


def _names(values: list[str] | None) -> tuple[str, ...] | None:
    if not values:
        return None
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} ")
        else:
            yield f"{prefix}{key}", value


def _in_words(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return "none" if value is None else str(value)


@contextmanager
def _kept_on_interrupt(out: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        console_for_errors().print(
            f"interrupted; what is done is in {out}, go on with: "
            f"causalprune run --resume --out {out}",
            markup=False,
            highlight=False,
        )
        raise typer.Exit(130) from None
