"""The command ``causalprune score``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from causalprune.errors import InvalidArgumentError, OutputExistsError, UnknownNameError

if TYPE_CHECKING:
    import torch

    from causalprune.scoring import Scores

__all__ = ["device_of", "options_of", "score", "shape_of"]

_NOTES_SHOWN = 5


def score(
    model: NetworkName,
    data: DataSource,
    weights: Weights = None,
    method: Annotated[str, typer.Option(help="Scoring method.")] = "path",
    outcome: Annotated[str, typer.Option(help="Outcome whose change is scored.")] = "loss",
    budget: Annotated[
        float | None, typer.Option(help="Forward-equivalents that may be spent.")
    ] = None,
    units: Annotated[str, typer.Option(help="groups or filters.")] = "groups",
    intervention: Annotated[str, typer.Option(help="zero, mean, resample or predicted.")] = "zero",
    confidence: Annotated[float, typer.Option(help="Level of the intervals.")] = 0.95,
    max_images: MaxImages = None,
    batch_size: BatchSize = 256,
    seed: Seed = 0,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the method, name=value; repeat it.")
    ] = None,
    input_shape: InputShape = None,
    classes: Classes = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    shards: Annotated[
        Path | None,
        typer.Option(help="Folder of finished parts; a job that was killed goes on from there."),
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(help='Classes to explain by graphs and maps, such as "0,3", or all (ten).'),
    ] = None,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("scores.npz"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Score every unit of a network; under torchrun, on all processes together."""
    with errors_in_one_line():
        if out.exists() and not force:
            raise OutputExistsError(f"out: {str(out)!r} exists; choose another file or --force")
        if not out.parent.is_dir():
            raise InvalidArgumentError(f"out: no such folder {str(out.parent)!r}")
        from causalprune.experiments.model_specs import images_from, model_from

        to_explain = _classes(explain)
        settings: dict[str, Any] = {
            **options_of(option or [], method),
            "units": units,
            "intervention": intervention,
            "confidence": confidence,
            "max_images": max_images,
            "batch_size": batch_size,
            "seed": seed,
            "progress": on_terminal(),
        }
        images = images_from(
            data,
            model=model,
            input_shape=shape_of(input_shape),
            max_images=max_images,
            root=data_root,
        )
        network = model_from(model, weights, n_classes=classes, seed=seed).to(device_of(device))
        if shards is not None or _of_several():
            from causalprune.scoring.sharding import score_sharded

            scores = score_sharded(
                network, images, method, outcome, shards=shards, budget=budget, **settings
            )
        else:
            from causalprune.scoring import score as score_alone

            scores = score_alone(network, images, method, outcome, budget, **settings)
        if os.environ.get("RANK", "0") == "0":
            if explain is not None:
                from causalprune.scoring import explained

                scores = explained(
                    scores, network, images, to_explain, batch_size=batch_size, seed=seed
                )
            scores.save(out)
            _print(scores, out)


def _classes(text: str | None) -> list[int] | None:
    """Read class numbers; None where all are meant."""
    if text is None or text == "all":
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InvalidArgumentError(
            f'--explain: expected classes such as "0,3", or all, got {text!r}'
        ) from None


def _of_several() -> bool:
    """Tell whether torchrun started this process beside others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def options_of(given: list[str], method: str, more: Iterable[str] = ()) -> dict[str, Any]:
    """Read ``name=value``; a value that is JSON (a number, true, a list) is taken as such.

    Parameters
    ----------
    given : list of str
        What was said.
    method : str
        The scoring method, whose options are known.
    more : iterable of str
        Further names that are known.

    Raises
    ------
    UnknownNameError
        If a name is not known.
    InvalidArgumentError
        If a text is not ``name=value``.
    """
    from causalprune.scoring import resolve_method

    known = (*resolve_method(method).options, *more)
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InvalidArgumentError(f"--option: expected name=value, got {text!r}")
        if name not in known:
            raise UnknownNameError(f"option of method {method!r}", name, known)
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def shape_of(text: str | None) -> tuple[int, int, int] | None:
    """Read ``channels,height,width``."""
    if text is None:
        return None
    try:
        channels, height, width = (int(part) for part in text.split(","))
    except ValueError:
        channels = height = width = 0
    if min(channels, height, width) < 1:
        raise InvalidArgumentError(
            f"--input-shape: expected channels,height,width such as 3,32,32, got {text!r}"
        )
    return channels, height, width


def device_of(name: str) -> torch.device:
    """Choose the device that ``--device`` names; CUDA processes share the GPUs that there are."""
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise InvalidArgumentError(f"--device: expected auto, cpu or cuda, got {name!r}")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InvalidArgumentError("--device: 'cuda' is not there")
    # Where there are fewer GPUs than processes they share them.
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _print(scores: Scores, out: Path) -> None:
    print(scores)
    Console().print(_table(scores.top(10).to_dict("records"), scores.outcome))
    for note in scores.notes[:_NOTES_SHOWN]:
        print(f"note: {note}")
    if len(scores.notes) > _NOTES_SHOWN:
        print(f"and {len(scores.notes) - _NOTES_SHOWN} more notes in the file")
    checks = scores.tables.get("graph checks")
    for row in checks.to_dict("records") if checks is not None else ():
        if row["reason"]:
            print(f"class {row['class']} is not explained: {row['reason']}")
    # Not through the console: a path must not be wrapped.
    print(f"scores: {out}")


def _table(rows: Sequence[Mapping[Any, Any]], outcome: str) -> Table:
    table = Table(
        title="most important units" + (f": effect on {escape(outcome)}" if outcome else ""),
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("layer")
    for title in ("unit", "importance", "effect", "interval"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("category", no_wrap=True)
    for row in rows:
        known = row["effect"] == row["effect"]
        bounded = row["low"] == row["low"]
        table.add_row(
            escape(row["layer"]),
            str(row["unit"]),
            f"{row['importance']:.3g}",
            f"{row['effect']:+.3g}" if known else "",
            f"{row['low']:+.3g} to {row['high']:+.3g}" if bounded else "",
            row["category"],
        )
    return table
