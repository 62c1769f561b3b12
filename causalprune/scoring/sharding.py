"""Spreading a score over processes, on torch's own engine, with shards that outlive them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from causalprune.errors import DataError, InvalidArgumentError, RecordError, UnknownNameError
from causalprune.scoring.data import Batch, Batches
from causalprune.scoring.driver import open_job, run_job
from causalprune.scoring.methods import METHODS, Job, Method, resolve_method
from causalprune.scoring.processes import Workers, workers
from causalprune.scoring.scores import Scores
from causalprune.scoring.shards import ShardFolder, digest_of, job_fingerprint
from causalprune.scoring.tally import Subtotal

__all__ = ["score_sharded"]

_SETTINGS = frozenset(signature(open_job).parameters) - {
    "model",
    "data",
    "method",
    "outcome",
    "options",
}


def score_sharded(
    model: nn.Module,
    data: Any,
    method: str = "ablation",
    outcome: str | Callable[..., Tensor] = "loss",
    *,
    shards: str | os.PathLike[str] | None = None,
    process_group: dist.ProcessGroup | None = None,
    **settings: Any,
) -> Scores:
    """Score every unit, the work being spread over the processes of a job.

    Every process calls this with the same arguments, and every one returns the scores of all
    images and units. The work is cut into items, one batch of images and (``ablation``) one group
    of units each; a process does every k-th, and the paired sums of all items are reduced (gloo,
    or nccl on GPUs) and merged in one order. So the numbers are those of
    :func:`causalprune.scoring.score`, bit for bit where the processes run the same number of
    threads on the same kind of machine. What each item found is written to `shards` as soon as
    it is known, and read there when the job is started again, with as many processes as one likes.

    Parameters
    ----------
    model : nn.Module
        With the same weights in every process.
    data : DataLoader, Dataset, iterable of (inputs, targets), pair of tensors, or Tensor
        The same in every process, and again on every pass: it is read twice.
    method : str
        A method that adds up effects: ``"ablation"`` (exact, without a budget), ``"path"``,
        ``"taylor"``, or a registered one with ``shards=``.
    outcome : str or callable
        A callable is told apart from others by its name and bytecode, not by what it closes over.
    shards : path-like, optional
        Folder of finished items; made where it does not exist. All processes must reach it if
        another number of processes may go on with it. It belongs to one job: weights, buffers,
        images, settings and torch's version, but not the code of the network's class.
    process_group : torch.distributed.ProcessGroup, optional
        Default: the default group, which is made, and destroyed again, when ``torchrun`` started
        the process; without either this process does everything.
    **settings
        The other arguments of :func:`causalprune.scoring.score`.

    Returns
    -------
    Scores
        Estimand and columns as from :func:`causalprune.scoring.score`.

    Raises
    ------
    InvalidArgumentError
        If the method (with these options) is no sum over images, or processes were given
        different models, data or settings.
    RecordError
        If `shards` holds those of another job, or a broken one.
    DataError
        If a second pass over the data gives other images than the first.
    ProcessGroupError
        If another process of the job ended.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> data = torch.randn(6, 4), torch.arange(6) % 2
    >>> scores = score_sharded(model, data, "ablation", shards="shards", batch_size=4)
    >>> sorted(os.listdir("shards"))
    ['job.json', 'shard-000000-0000.npz', 'shard-000001-0000.npz']
    """
    chosen = resolve_method(method)
    options = {name: value for name, value in settings.items() if name not in _SETTINGS}
    known = {name: value for name, value in settings.items() if name in _SETTINGS}
    _check(chosen, options, known)
    with (
        workers(process_group, model) as crew,
        open_job(model, data, method, outcome, **known, options=options) as (chosen, job),
    ):
        seen = [digest_of(batch) for batch in job.batches]
        fingerprint = job_fingerprint(chosen, job, known.get("units", "groups"), options, seen)
        crew.agree(fingerprint)
        folder = None if shards is None else ShardFolder.open(shards, fingerprint, chosen.name)
        shared = replace(
            job,
            batches=_SameBatches(job.batches, seen, job.seed, crew.n),
            progress=job.progress and crew.rank == 0,
            share=_Share(job, crew, folder, len(seen)),
        )
        scores = run_job(chosen, shared, options)
        crew.wait()
    return scores


def _check(method: Method, options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    if method.shards is None:
        able = sorted(each.name for each in METHODS.values() if each.shards is not None)
        raise InvalidArgumentError(
            f"method: {method.name!r} is no sum over images and cannot be spread over processes, "
            f"expected one of {', '.join(able)}"
        )
    if known.get("budget") is not None:
        raise InvalidArgumentError(
            "budget: expected None, because a method that decides on the way what to run next "
            f"cannot be spread over processes, got {known['budget']!r}"
        )
    if known.get("intervention") == "resample":
        raise InvalidArgumentError(
            "intervention: expected 'zero' or 'mean' for a score that is spread over processes, "
            "because 'resample' draws in the order of the runs, got 'resample'"
        )
    for name in options:
        if name not in method.options:
            raise UnknownNameError(f"option of method {method.name!r}", name, method.options)
        if name not in method.shards:
            raise InvalidArgumentError(
                f"{name}: method {method.name!r} cannot be spread over processes with this option"
            )


class _SameBatches(Batches):
    """Batches that must be, on every pass, what they were on the first."""

    def __init__(self, batches: Batches, seen: Sequence[str], seed: int, n_workers: int) -> None:
        self._batches, self._seen, self._seed = batches, seen, seed
        self.example = batches.example
        # How many of them a process among others works on is not known before.
        self.n_batches = len(seen) if n_workers == 1 else None

    def __iter__(self) -> Iterator[Batch]:
        # A loader that shuffles draws its order from this generator, as it did the first time.
        torch.default_generator.manual_seed(self._seed)
        index = -1
        for index, batch in enumerate(self._batches):
            if index >= len(self._seen) or digest_of(batch) != self._seen[index]:
                raise _changed(index)
            yield batch
        if index + 1 != len(self._seen):
            raise _changed(index + 1)


def _changed(index: int) -> DataError:
    return DataError(
        "data: expected the same images in the same batches on every pass, got others in batch "
        f"{index}; leave out random transforms and sampling"
    )


class _Share:
    """What one of several processes does, and how the parts come together."""

    def __init__(self, job: Job, crew: Workers, folder: ShardFolder | None, n_batches: int) -> None:
        self._groups = {group.name: group.n_units for group in job.graph.groups}
        self._crew, self._folder, self._n_batches = crew, folder, n_batches
        self._done: dict[int, dict[str, Subtotal]] = {index: {} for index in range(n_batches)}

    def takes(self, batch: int, item: int, groups: tuple[str, ...]) -> bool:
        if (batch + item) % self._crew.n != self._crew.rank:
            return False
        found = None if self._folder is None else self._folder.read(batch, item, groups)
        self._done[batch].update(found or {})
        return found is None

    def keep(self, batch: int, item: int, groups: Mapping[str, Subtotal]) -> None:
        if self._folder is not None:
            self._folder.write(batch, item, groups)
        self._done[batch].update(groups)

    def gather(self) -> Mapping[str, Subtotal]:
        sizes = list(self._groups.values())
        totals = {name: Subtotal.empty(n_units) for name, n_units in self._groups.items()}
        for batch in range(self._n_batches):
            own = self._done[batch]
            rows = len(Subtotal.empty(0).state())
            bits = torch.zeros(rows + 1, sum(sizes), dtype=torch.int64)
            for name, part in zip(self._groups, torch.split(bits, sizes, dim=1), strict=True):
                if name in own:
                    part[0] = 1
                    part[1:] = own[name].state().view(torch.int64)
            found = self._crew.sum_bits(bits)
            if not bool((found[0] == 1).all()):
                raise RecordError(f"shards: batch {batch} was not done exactly once")
            states = torch.split(found[1:].view(torch.float64), sizes, dim=1)
            for name, state in zip(self._groups, states, strict=True):
                totals[name].merge(Subtotal.of_state(state))
        return totals
