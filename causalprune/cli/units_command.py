"""The command ``causalprune units``: what single units do, from the exact ablation of some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from causalprune.cli.console import errors_in_one_line, on_terminal
from causalprune.cli.options import (
    BatchSize,
    Classes,
    DataRoot,
    DataSource,
    Device,
    InputShape,
    MaxImages,
    NetworkName,
    Seed,
    Weights,
)
from causalprune.cli.score_command import device_of, shape_of
from causalprune.errors import InvalidArgumentError

if TYPE_CHECKING:
    from causalprune.cli.units_run import UnitRun

__all__ = ["units"]

_ROWS_SHOWN = 60


def units(
    model: NetworkName,
    data: DataSource,
    weights: Weights = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Cheap scoring method; repeat it. The first decides what is ablated. Default: "
            "path, taylor, variance, l1, l2."
        ),
    ] = None,
    outcome: Annotated[str, typer.Option(help="Outcome whose change is measured.")] = "loss",
    tail: Annotated[
        float, typer.Option(help="Fraction of the units, the likely largest, that is ablated.")
    ] = 0.05,
    sample: Annotated[
        float, typer.Option(help="Fraction that is ablated at random, the larger the likelier.")
    ] = 0.15,
    floor: Annotated[
        float,
        typer.Option(
            help="Share of even chances in that, in (0, 1]; more for scores that may err."
        ),
    ] = 0.2,
    kinds: Annotated[str, typer.Option("--units", help="groups or filters.")] = "groups",
    intervention: Annotated[str, typer.Option(help="zero, mean, resample or predicted.")] = "zero",
    masks: Annotated[
        int, typer.Option(help="Random masks an image, to see units while others are missing.")
    ] = 0,
    removal: Annotated[float, typer.Option(help="Chance with which a mask removes a unit.")] = 0.1,
    mask_units: Annotated[
        list[str] | None,
        typer.Option(help="A layer whose units get a column each in masks.csv; repeat it."),
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Plan to remove this fraction, and audit the plan.")
    ] = None,
    of: Annotated[str, typer.Option(help="What it counts: parameters, macs or units.")] = (
        "parameters"
    ),
    audited: Annotated[int, typer.Option(help="Units of the plan that the audit ablates.")] = 32,
    held_out: Annotated[
        str | None,
        typer.Option(
            help="For the audit: so many further training images, or a file of them; default 256 "
            "of a data set, a fifth of a file."
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Level of the layers' intervals.")] = 0.95,
    unit_confidence: Annotated[float, typer.Option(help="Of the single units'.")] = 0.9,
    max_images: MaxImages = None,
    batch_size: BatchSize = 256,
    seed: Seed = 0,
    input_shape: InputShape = None,
    classes: Classes = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    report: Annotated[
        bool, typer.Option("--report", help="Write report.html into the folder, too.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")] = Path("units"),
) -> None:
    """Measure what single units do: cheap scores of all, exact effects of some, intervals."""
    with errors_in_one_line():
        from causalprune.cli.units_run import Masks, audited_plan, images_of, measure, write
        from causalprune.experiments.model_specs import model_from
        from causalprune.experiments.pruned_folder import check_free

        check_free(out)
        if ratio is None and held_out is not None:
            raise InvalidArgumentError("--held-out: expected --ratio beside it, nothing is audited")
        shape, planned = shape_of(input_shape), ratio is not None
        parts = images_of(data, model, shape, max_images, held_out, planned, data_root)
        network = model_from(model, weights, n_classes=classes, seed=seed).to(device_of(device))
        common = {
            "units": kinds,
            "intervention": intervention,
            "batch_size": batch_size,
            "seed": seed,
            "progress": on_terminal(),
        }
        design = {"tail": tail, "sample": sample, "floor": floor}
        levels = {"confidence": confidence, "unit_confidence": unit_confidence}
        wanted = Masks(masks, removal, tuple(mask_units or ()))
        found = measure(
            network.eval(), parts, method, outcome, design, levels=levels, masks=wanted, **common
        )
        if ratio is not None:
            found = audited_plan(network, parts, found, outcome, ratio, of, audited, **common)
        asked = {"network": model, "weights": str(weights) if weights else None, "data": data}
        del common["progress"]
        write(out, found, {**asked, **design, **levels, **common}, with_report=report)
    _print(found, out)
    if report:
        print(f"report: {out / 'report.html'}")


def _print(found: UnitRun, out: Path) -> None:
    print(found.result.headline)
    from causalprune.analysis.unit_analysis import masked_layers

    measured, console = found.effects.measured, Console()
    alone = [
        (row.layer, f"{row.n_ablated} of {row.n_units}", row.mean, row.low, row.high)
        for row in found.effects.layers
    ]
    console.print(_layers(f"one unit removed: mean change of {measured}", "ablated", alone))
    if found.masks is not None:
        n_units = {row.layer: row.n_units for row in found.effects.layers}
        missing = [
            (layer, str(n_units.get(layer, "")), item.effect, item.low, item.high)
            for layer, item in masked_layers(found.result)
        ]
        console.print(_layers("the same while others are missing at random", "units", missing))
    forests = [f.sentence for f in found.result.findings if f.estimator.startswith("causal forest")]
    for text in (*found.result.notes, *dict.fromkeys(forests)):
        print(text)
    if found.audit is not None:
        print(found.plan)
        print(f"audit: {found.audit.sentence}")
    # Not through the console: a path must not be wrapped.
    print(f"units: {out}")


def _layers(
    title: str, counted: str, rows: Sequence[tuple[str, str, float, float, float]]
) -> Table:
    table = Table(title=escape(title), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("layer")
    for name in (counted, "effect", "interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for layer, units_, effect, low, high in rows[:_ROWS_SHOWN]:
        table.add_row(escape(layer), units_, f"{effect:+.3g}", f"{low:+.3g} to {high:+.3g}")
    if len(rows) > _ROWS_SHOWN:
        table.caption = f"{len(rows) - _ROWS_SHOWN} more layers in the files"
    return table
