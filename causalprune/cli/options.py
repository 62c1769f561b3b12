"""Options that several commands take, with the same words for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "BatchSize",
    "Classes",
    "DataRoot",
    "DataSource",
    "Device",
    "InputShape",
    "MaxImages",
    "NetworkName",
    "OptionalDataSource",
    "Seed",
    "Weights",
]

_DATA = (
    "digits, mnist, cifar-subset, a folder with one folder a class, an .npz with inputs and "
    "targets, or a .pt of two tensors."
)

NetworkName = Annotated[
    str,
    typer.Option(
        help="Registered network, classifier of torchvision or timm (torchvision:NAME, timm:NAME), "
        "package.module:callable, or file.py:callable."
    ),
]
DataSource = Annotated[str, typer.Option(help=_DATA)]
OptionalDataSource = Annotated[str | None, typer.Option(help=_DATA)]
Weights = Annotated[Path | None, typer.Option(help="State dictionary: .pt, .th, .safetensors.")]
MaxImages = Annotated[int | None, typer.Option(help="Use so many images.")]
BatchSize = Annotated[int, typer.Option(help="Images per batch.")]
Seed = Annotated[int, typer.Option(help="Everything random follows from it.")]
InputShape = Annotated[str | None, typer.Option(help='What the network takes, such as "3,32,32".')]
Classes = Annotated[
    int | None, typer.Option(help="Logits of the network; default 10, or the library's.")
]
DataRoot = Annotated[
    Path | None, typer.Option(help="Where the data set's files are (else CAUSALPRUNE_DATA).")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
