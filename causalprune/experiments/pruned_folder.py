"""The folder of a pruned network: weights, plan, trace and summary, all of it or none."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from causalprune.errors import InvalidArgumentError, OutputExistsError
from causalprune.experiments.records import write_json
from causalprune.experiments.weights import save_weights
from causalprune.pruning import Plan

__all__ = [
    "PLAN_FILE",
    "SUMMARY_FILE",
    "TRACE_FIGURE",
    "TRACE_FILE",
    "WEIGHTS_FILE",
    "check_free",
    "new_folder",
    "write_pruned",
]

WEIGHTS_FILE = "state_dict.pt"
PLAN_FILE = "plan.json"
TRACE_FILE = "trace.json"
TRACE_FIGURE = "trace.png"
SUMMARY_FILE = "summary.json"


def check_free(out: Path) -> None:
    """Refuse a folder that cannot be made, before any work is done.

    Raises
    ------
    OutputExistsError
        If something of that name exists.
    InvalidArgumentError
        If the folder around it does not.
    """
    if out.exists() or out.is_symlink():
        raise OutputExistsError(f"out: {str(out)!r} exists; choose another folder")
    if not out.absolute().parent.is_dir():
        raise InvalidArgumentError(f"out: no such folder {str(out.absolute().parent)!r}")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder to fill that appears under its name when the block ends well.

    Parameters
    ----------
    out : Path
        What it shall be called; must not exist.

    Yields
    ------
    Path
        A hidden folder beside `out`; removed if the block raises.

    Raises
    ------
    OutputExistsError
        If something of that name exists, also if it came in the meantime.
    OSError
        If the folder cannot be written.

    Examples
    --------
    >>> with new_folder(Path("filled")) as folder:
    ...     _ = (folder / "one.txt").write_text("1")
    >>> [file.name for file in Path("filled").iterdir()]
    ['one.txt']
    """
    check_free(out)
    hidden = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    hidden.mkdir()
    try:
        yield hidden
        check_free(out)
        os.rename(hidden, out)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


def write_pruned(folder: Path, model: nn.Module, plan: Plan, summary: Mapping[str, Any]) -> None:
    """Write weights, plan and summary of a pruned network.

    Loading needs no pickle: ``causalprune.apply(fresh, Plan.load(folder / "plan.json"))`` gives a
    network of the same structure, which takes ``state_dict.pt``.

    Parameters
    ----------
    folder : Path
        Exists.
    model : nn.Module
        The pruned network.
    plan : Plan
        From the original network to its structure.
    summary : mapping
        Numbers and texts, as JSON takes them.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """
    save_weights(model, folder / WEIGHTS_FILE)
    plan.save(folder / PLAN_FILE)
    write_json(folder / SUMMARY_FILE, {"schema": 1, **summary})
