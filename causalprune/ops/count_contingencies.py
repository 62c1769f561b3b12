"""Contingency sets among sets of units that were removed, image by image."""

from __future__ import annotations

import torch
from torch import Tensor

from causalprune import _native
from causalprune.errors import InvalidArgumentError
from causalprune.ops.registration import register_operator

__all__ = ["count_contingencies"]


def count_contingencies(
    sets: Tensor, flipped: Tensor, *, max_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Count every unit's contingency sets by size, and find the first of the smallest.

    Row m of `sets` are units that were removed together; ``flipped[m, n]`` tells whether an event
    flipped on image n when they were. The empty set is implied; it flips nothing. W is a
    contingency set of unit f on image n when W is the empty set or a row that is not flipped on n,
    f is not in W, and W with f is a row that is flipped on n: without W, the unit decides.
    What is not among the rows is not counted.

    Parameters
    ----------
    sets : Tensor [M, U], bool, CPU or CUDA
        Distinct rows of one unit or more, in any order. CUDA tensors are computed on the CPU.
    flipped : Tensor [M, N], bool, on the device of `sets`
    max_size : int, optional
        Sizes that are counted, at least that of the largest row and at most U. Default: that of
        the largest row, which is read from `sets` (so give it under ``torch.compile``).

    Returns
    -------
    counts : Tensor [N, U, max_size], int64, on the device of `sets`
        Contingency sets of k = 0, 1, ... units. The same for any number of threads.
    first : Tensor [N, U], int64, on the device of `sets`
        Row of `sets` that is a smallest contingency set with the unit, the first of them in the
        order of rows; -1 where there is none.

    Raises
    ------
    InvalidArgumentError
        (a ``ValueError``) for a wrong dtype, shape or device, rows that are empty or equal, and a
        `max_size` out of range.

    Notes
    -----
    Source: Chockler and Halpern (2004), "Responsibility and blame", by its definition for
    variables that are removed or not: a unit's degree of responsibility is ``1 / (1 + k)`` with k
    the smallest size that has a count. Equal to :func:`causalprune.reference.count_contingencies`.
    Images are packed to bits; time grows with N / 512 times the units of all rows. Memory: about
    M * N / 8 bytes and 24 bytes for each unit of each row. Not differentiable.

    Examples
    --------
    The event flips on the first image without unit 0, on the second without units 0 and 1:

    >>> import torch
    >>> from causalprune.ops import count_contingencies
    >>> sets = torch.tensor([[1, 0], [0, 1], [1, 1]]).bool()
    >>> flipped = torch.tensor([[1, 0], [0, 0], [1, 1]]).bool()
    >>> counts, first = count_contingencies(sets, flipped)
    >>> counts.tolist(), first.tolist()
    ([[[1, 1], [0, 0]], [[0, 1], [0, 1]]], [[0, -1], [2, 2]])
    """
    _check_tables(sets, flipped)
    if max_size is None:
        # In int32: torch adds up bools several times faster than in int64.
        max_size = int(sets.sum(1, dtype=torch.int32).max()) if sets.numel() else 0
    if not isinstance(max_size, int) or isinstance(max_size, bool) or not 0 <= max_size < 2**31:
        raise InvalidArgumentError(f"max_size: expected an int of at least 0, got {max_size!r}")
    try:
        counts, first = torch.ops.causalprune.count_contingencies(sets, flipped, max_size)
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from None
    return counts, first


def _check_tables(sets: Tensor, flipped: Tensor) -> None:
    for name, tensor in (("sets", sets), ("flipped", flipped)):
        if not isinstance(tensor, Tensor):
            raise InvalidArgumentError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided:
            raise InvalidArgumentError(f"{name}: expected a dense tensor, got {tensor.layout}")
        if tensor.dtype != torch.bool:
            raise InvalidArgumentError(f"{name}: expected dtype bool, got {tensor.dtype}")
        columns = "units" if name == "sets" else "images"
        if tensor.ndim != 2:
            raise InvalidArgumentError(
                f"{name}: expected rows [M, {columns}], got shape {list(tensor.shape)}"
            )
        if len(tensor) != len(sets):
            raise InvalidArgumentError(
                f"{name}: expected {len(sets)} rows, as sets has, got {len(tensor)}"
            )
        if tensor.device != sets.device or tensor.device.type not in ("cpu", "cuda", "meta"):
            raise InvalidArgumentError(
                f"{name}: expected a CPU or CUDA tensor on one device with sets ({sets.device}), "
                f"got one on {tensor.device}"
            )


def _fake(sets: Tensor, flipped: Tensor, max_size: int) -> tuple[Tensor, Tensor]:
    n_images, n_units = flipped.shape[1], sets.shape[1]
    counts = sets.new_empty((n_images, n_units, max_size), dtype=torch.int64)
    return counts, sets.new_empty((n_images, n_units), dtype=torch.int64)


def _cpu(sets: Tensor, flipped: Tensor, max_size: int) -> tuple[Tensor, Tensor]:
    counts, first = _fake(sets, flipped, max_size)
    _native.count_contingencies(
        sets.contiguous(), flipped.contiguous(), counts, first, torch.get_num_threads()
    )
    return counts, first


def _cuda(sets: Tensor, flipped: Tensor, max_size: int) -> tuple[Tensor, Tensor]:
    counts, first = _cpu(sets.cpu(), flipped.cpu(), max_size)
    return counts.to(sets.device), first.to(sets.device)


register_operator(
    "count_contingencies",
    "(Tensor sets, Tensor flipped, int max_size) -> (Tensor counts, Tensor first)",
    kernels={"CPU": _cpu, "CUDA": _cuda},
    fake=_fake,
    not_differentiable="it counts sets",
)
