"""How long a forward pass takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError
from causalprune.graph import evaluating
from causalprune.measures.size import require_tensor

__all__ = ["WARMUP", "Latency", "interleaved_latency_ms", "latency_ms", "torch_threads"]

WARMUP = 5
"""Passes before the clock runs, unless said otherwise."""


@dataclass(frozen=True)
class Latency:
    """Wall-clock time of one forward pass over a batch.

    Attributes
    ----------
    median_ms, q25_ms, q75_ms : float
        Median and quartiles over the repeats, in milliseconds.
    repeats : int
        Timed passes.
    batch : int
        Images in a pass.
    threads : int
        torch's intra-operator threads during the passes.
    """

    median_ms: float
    q25_ms: float
    q75_ms: float
    repeats: int
    batch: int
    threads: int


@contextmanager
def torch_threads(threads: int | None) -> Iterator[int]:
    """Set torch's intra-operator threads for the block; ``None`` leaves them as they are.

    Parameters
    ----------
    threads : int or None
        Number of threads, at least 1.

    Yields
    ------
    int
        The number in force.

    Raises
    ------
    InvalidArgumentError
        ``threads`` is below 1.

    Examples
    --------
    >>> with torch_threads(1) as threads:
    ...     threads
    1
    """
    before = torch.get_num_threads()
    if threads is not None and threads < 1:
        raise InvalidArgumentError(f"threads: expected at least 1, got {threads}")
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def latency_ms(
    model: nn.Module,
    example: Tensor,
    *,
    warmup: int = WARMUP,
    repeats: int = 30,
    threads: int | None = None,
) -> Latency:
    """Time forward passes in evaluation mode.

    Parameters
    ----------
    model : nn.Module
        The network; it gets its mode back.
    example : Tensor
        Input ``[N, ...]`` on the network's device; N images make one pass.
    warmup : int
        Passes before the clock runs.
    repeats : int
        Timed passes, at least 1.
    threads : int, optional
        torch's intra-operator threads; by default as they are set. Restored afterwards.

    Returns
    -------
    Latency
        Median and quartiles in milliseconds: the mean would follow the few passes that
        something else on the machine held up.

    Raises
    ------
    InvalidArgumentError
        ``example`` is no tensor, ``repeats`` or ``threads`` below 1, or ``warmup`` negative.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> timing = latency_ms(nn.Linear(3, 2), torch.zeros(8, 3), repeats=3)
    >>> timing.batch, timing.repeats, timing.q25_ms <= timing.median_ms <= timing.q75_ms
    (8, 3, True)
    """
    (found,) = interleaved_latency_ms(
        [model], example, warmup=warmup, repeats=repeats, threads=threads
    )
    return found


def interleaved_latency_ms(
    models: Sequence[nn.Module],
    example: Tensor,
    *,
    warmup: int = WARMUP,
    repeats: int = 30,
    threads: int | None = None,
) -> tuple[Latency, ...]:
    """Time several networks in turns, one pass each, so that a busy spell meets all of them.

    Parameters
    ----------
    models : sequence of nn.Module
        At least one; each gets its mode back.
    example : Tensor
        Input ``[N, ...]`` that all of them take, on their device.
    warmup, repeats, threads
        As for :func:`latency_ms`, for each network.

    Returns
    -------
    tuple of Latency
        In the order of `models`.

    Raises
    ------
    InvalidArgumentError
        As :func:`latency_ms`, and if there is no network.

    Examples
    --------
    >>> from torch import nn
    >>> wide, narrow = nn.Linear(512, 4096), nn.Linear(512, 2)
    >>> before, after = interleaved_latency_ms([wide, narrow], torch.zeros(64, 512), repeats=9)
    >>> before.batch, after.repeats
    (64, 9)
    """
    require_tensor(example)
    if not models:
        raise InvalidArgumentError("models: expected at least one network, got none")
    if repeats < 1:
        raise InvalidArgumentError(f"repeats: expected at least 1, got {repeats}")
    if warmup < 0:
        raise InvalidArgumentError(f"warmup: expected at least 0, got {warmup}")
    with ExitStack() as modes, torch.inference_mode(), torch_threads(threads) as in_force:
        for model in models:
            modes.enter_context(evaluating(model))
        for _ in range(warmup):
            for model in models:
                model(example)
        rounds = [[_one_pass_ms(model, example) for model in models] for _ in range(repeats)]
    batch = int(example.shape[0]) if example.dim() else 1
    quartiles = np.quantile(rounds, [0.25, 0.5, 0.75], axis=0).T
    return tuple(
        Latency(float(median), float(q25), float(q75), repeats, batch, in_force)
        for q25, median, q75 in quartiles
    )


def _one_pass_ms(model: nn.Module, example: Tensor) -> float:
    on_gpu = example.is_cuda
    if on_gpu:
        torch.cuda.synchronize(example.device)
    start = time.perf_counter_ns()
    model(example)
    if on_gpu:
        torch.cuda.synchronize(example.device)
    return (time.perf_counter_ns() - start) / 1e6
