"""Rows that are run together: images of the cached part, and what is removed on them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from causalprune.graph.plain_run import PlainRun, Rows
from causalprune.graph.replacement import Removal
from causalprune.graph.suffixes import Suffix, first_input

__all__ = ["ROW_BYTES", "Job", "batched", "jobs_of", "part_of", "pieces"]


ROW_BYTES = 4 * 2**20
"""Largest value in one run of a suffix, so that it stays in the processor's cache."""
GATHERING_MACS_PER_BYTE = 2
"""What copying a byte out of the plain values costs, in multiply-accumulates."""


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


def part_of(value_of: Callable[[str], Any], piece: slice, whole: Set[str]) -> Callable[[str], Any]:
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


def jobs_of(
    plain: PlainRun,
    suffix: Suffix,
    group: str,
    units: Sequence[int],
    images: Tensor,
    where: Tensor,
    *,
    zero: bool,
) -> Iterator[Job]:
    """Cut the rows of every unit into runs; images without a change are left out.

    Parameters
    ----------
    plain : PlainRun
    suffix : Suffix
    group : str
    units : sequence of int
    images : Tensor [n], int64
        Which of the kept part.
    where : Tensor [n], int64
        Where they are among the images that were asked for.
    zero : bool
        Whether the units are set to zero, which changes nothing where they are zero already.
    """
    size = max(1, ROW_BYTES // suffix.row_bytes)
    n_part = plain.stop - plain.start
    in_order = torch.equal(images, torch.arange(n_part))
    for place, unit in enumerate(units):
        if not suffix.by_image:  # only the whole part can be run
            rows = Rows(None, n_part)
            yield Job({group: [unit]}, rows, where, place, picked=images)
            continue
        active = _active(plain, suffix, unit) if zero else None
        if active is not None and not _pays(plain, suffix, float(active.float().mean())):
            active = None
        if active is None and in_order:
            for first in range(0, n_part, size):
                cut = slice(first, min(first + size, n_part))
                yield Job({group: [unit]}, Rows(cut, cut.stop - first), where[cut], place)
            continue
        changed = torch.arange(len(images)) if active is None else active[images].nonzero()
        for piece in torch.split(changed.flatten(), size):
            if len(piece):
                rows = Rows(images[piece], len(piece))
                yield Job({group: [unit]}, rows, where[piece], place)


def _pays(plain: PlainRun, suffix: Suffix, share: float) -> bool:
    """Whether running a `share` of the images is worth gathering their plain values."""
    gathered = sum(plain.seen.bytes_per_image[n] for n in suffix.plain & plain.seen.by_image)
    return (1 - share) * suffix.macs > GATHERING_MACS_PER_BYTE * share * gathered


def _active(plain: PlainRun, suffix: Suffix, unit: int) -> Tensor | None:
    """Images [n], bool, of the part on which removing `unit` changes anything; None: all."""
    narrow = {step.name: step for step, means in suffix.narrow if means in ("cut", "update")}
    if not suffix.cuts.keys() <= narrow.keys():
        return None
    n_part = plain.stop - plain.start
    active = torch.zeros(n_part, dtype=torch.bool)
    for name, cuts in suffix.cuts.items():
        for cut in cuts:
            source = name if cut.consumer.at_output else first_input(narrow[name])
            columns = cut.consumer.columns([unit])
            if len(columns):
                active |= plain.nonzero(source, cut.consumer.axis)[:, columns].any(1)
    return None if bool(active.all()) else active
