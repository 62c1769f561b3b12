"""The folder in which the files of a data set are."""

from __future__ import annotations

import os
from pathlib import Path

from causalprune.errors import DataError

__all__ = ["data_root", "download_hint"]


def data_root(root: Path | None, data: str, holds: str) -> tuple[Path, str]:
    """Return the folder that is given, or else the one that CAUSALPRUNE_DATA names.

    Parameters
    ----------
    root : Path or None
        As given.
    data : str
        The data set, for the error.
    holds : str
        What the folder has to hold, for the error.

    Returns
    -------
    Path
        There, or not.
    str
        What gave it, for errors.

    Raises
    ------
    DataError
        None is given.

    Examples
    --------
    >>> str(data_root(Path("images"), "mnist", "MNIST/raw")[0])
    'images'
    """
    if root is not None:
        return root, "data root"
    named = os.environ.get("CAUSALPRUNE_DATA")
    if named:
        return Path(named), "CAUSALPRUNE_DATA"
    raise DataError(
        f"data set {data!r} needs its files: pass --data-root (root=) or set CAUSALPRUNE_DATA to a "
        f"folder that holds {holds}"
    )


def download_hint(data: str, dataset: str, root: Path | None) -> str:
    """Say by which command torchvision fetches a data set, for errors.

    Parameters
    ----------
    data : str
        The data set's name here.
    dataset : str
        Its class in torchvision.
    root : Path or None
        Where to; None: a folder that the reader is to choose.

    Examples
    --------
    >>> print(download_hint("mnist", "MNIST", Path("/d")))
    to fetch 'mnist': python -c "from torchvision.datasets import MNIST; MNIST('/d', download=True)"
    """
    call = f"{dataset}({str(root or 'DIR')!r}, download=True)"
    return f'to fetch {data!r}: python -c "from torchvision.datasets import {dataset}; {call}"'
