"""The command ``causalprune counterfactual``: one what-if question about a run table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from causalprune.cli.console import errors_in_one_line

__all__ = ["counterfactual"]


def counterfactual(
    table: Annotated[
        Path, typer.Argument(help="Folder of a run or a study, or a .csv or .parquet.")
    ],
    network: Annotated[
        str | None, typer.Option(help="Architecture; may be left out where there is one.")
    ] = None,
    ratio: Annotated[float | None, typer.Option(help="Target ratio, a fraction.")] = None,
    method: Annotated[str | None, typer.Option(help="Method that ranks what goes.")] = None,
    machine: Annotated[str | None, typer.Option(help="Machine that it would run on.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set.")] = None,
    shift: Annotated[str | None, typer.Option(help="Shift of the test images.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Which trained network; default: any of the architecture's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap and the replay check.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a network would have had at another ratio, by another method, elsewhere."""
    with errors_in_one_line():
        from causalprune.analysis import counterfactual as answer_from

        answer = answer_from(
            table,
            network=network,
            ratio=ratio,
            method=method,
            machine=machine,
            dataset=dataset,
            shift=shift,
            checkpoint=checkpoint,
            seed=seed,
        )
    print(json.dumps(answer.to_dict(), indent=2) if as_json else answer.summary())
