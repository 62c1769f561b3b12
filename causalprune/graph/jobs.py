"""Rows that are run together: images of the cached part, and what is removed on them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from causalprune.graph.plain_run import Rows
from causalprune.graph.replacement import Removal

__all__ = ["Job", "batched", "part_of", "pieces"]


@dataclass(frozen=True)
class Job:
    """Some rows of one run: images of the cached part, and what is removed on them.

    ``images`` says where the outputs belong among the images that were asked for, ``picked``
    which of the outputs those are (``None``: all).
    """

    removal: Removal
    rows: Rows
    images: Tensor
    place: int = 0
    picked: Tensor | None = None


def pieces(jobs: Sequence[Job]) -> list[slice]:
    """Return where the rows of every job lie in their common run."""
    ends = list(itertools.accumulate(job.rows.n for job in jobs))
    return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]


def part_of(
    value_of: Callable[[str], Any], piece: slice, whole: Set[str]
) -> Callable[[str], Any]:
    """Return a lookup of values that sees one job's rows only, except in those called `whole`."""

    def part(name: str) -> Any:
        value = value_of(name)
        return value[piece] if isinstance(value, Tensor) and name not in whole else value

    return part


def batched(jobs: Iterator[Job], size: int) -> Iterator[list[Job]]:
    """Collect jobs until a run has about `size` rows."""
    several: list[Job] = []
    for job in jobs:
        if several and sum(j.rows.n for j in several) + job.rows.n > size:
            yield several
            several = []
        several.append(job)
    if several:
        yield several
