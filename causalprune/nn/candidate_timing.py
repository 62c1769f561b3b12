"""Timing candidates in turns, so that a busy spell of the machine meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["clock_for", "least_ms", "module_ms", "torch_threads"]

_MOST_ROUNDS = 60
_LEAST_ROUNDS = 3


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Set torch's threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def clock_for(threads: int) -> Callable[[], float]:
    """Return the clock of a run, in seconds: CPU time of this thread if there is no other."""
    return time.thread_time if threads == 1 else time.perf_counter


def least_ms(
    candidates: Sequence[Callable[[], object]], tune_ms: float, clock: Callable[[], float]
) -> list[float]:
    """Return the least time of every candidate, in milliseconds.

    Parameters
    ----------
    candidates : sequence of callables
        Each is called once to warm up, then once a round for at least three rounds. Those that
        are far behind drop out.
    tune_ms : float
        Rounds begin until so many milliseconds have been spent on each candidate that is left.
    clock : callable
        Gives seconds.
    """
    least = [float("inf")] * len(candidates)
    for run in candidates:
        run()
    spent = 0.0
    for k in range(_MOST_ROUNDS):
        bound = 1.5 * min(least)
        left = [i for i, ms in enumerate(least) if k < _LEAST_ROUNDS - 1 or ms <= bound]
        for i in left:
            begin = clock()
            candidates[i]()
            took = 1e3 * (clock() - begin)
            least[i] = min(least[i], took)
            spent += took / len(left)
        if k + 1 >= _LEAST_ROUNDS and spent >= tune_ms:
            break
    return least


def module_ms(
    model: nn.Module, example: Tensor, clock: Callable[[], float], rounds: int
) -> dict[str, float]:
    """Return the least time of every convolution and linear layer of a running network."""
    begun: dict[str, float] = {}
    least: dict[str, float] = {}
    spent: dict[str, float] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            begun[name] = clock()

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            spent[name] = spent.get(name, 0.0) + 1e3 * (clock() - begun[name])

        return hook

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            handles.append(module.register_forward_pre_hook(before(name)))
            handles.append(module.register_forward_hook(after(name)))
    try:
        for _ in range(rounds):
            spent.clear()
            model(example)
            for name, ms in spent.items():
                least[name] = min(ms, least.get(name, ms))
    finally:
        for handle in handles:
            handle.remove()
    return least
