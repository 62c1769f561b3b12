"""Adding up per-image effects in one order, however the work is spread over processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from causalprune.graph import UnitGroup
from causalprune.scoring.data import Batch
from causalprune.scoring.intervals import PairedMean
from causalprune.scoring.methods import Job, UnitScores

__all__ = ["Share", "Subtotal", "Tally"]


@dataclass
class Subtotal:
    """What is known of the units of a group on some images.

    Attributes
    ----------
    mean : PairedMean
    cost : Tensor [n_units], float64
        Forward-equivalents spent.
    """

    mean: PairedMean
    cost: Tensor

    @classmethod
    def empty(cls, n_units: int) -> Subtotal:
        """Return the subtotal of no images."""
        return cls(PairedMean(n_units), torch.zeros(n_units, dtype=torch.float64))

    def merge(self, other: Subtotal) -> None:
        """Add the images of `other`."""
        self.mean.merge(other.mean)
        self.cost = self.cost + other.cost

    def state(self) -> Tensor:
        """Return all of it as one tensor [5, n_units], float64."""
        return torch.cat([self.mean.state(), self.cost[None]])

    @classmethod
    def of_state(cls, state: Tensor) -> Subtotal:
        """Rebuild what :meth:`state` described."""
        return cls(PairedMean.of_state(state[:-1]), state[-1].clone())


class Share(Protocol):
    """The part of a job that this process does; see :mod:`causalprune.scoring.sharding`."""

    def takes(self, batch: int, item: int, groups: tuple[str, ...]) -> bool:
        """Tell whether that item of that batch is to be computed here."""

    def keep(self, batch: int, item: int, groups: Mapping[str, Subtotal]) -> None:
        """Take a finished item."""

    def gather(self) -> Mapping[str, Subtotal]:
        """Return the totals of all items of all processes, merged in their order."""


class Tally:
    """Adds up the effects of a job's units, batch by batch.

    The order of all sums is fixed: within a batch as they come, then batch after batch. A job
    that is spread over processes (``job.share``) skips what others do and merges everybody's
    items in the same order, so its numbers are those of one process, bit for bit.

    Parameters
    ----------
    job : Job
    by_group : bool
        An item of work is one group on one batch; then iterate :meth:`groups` inside
        :meth:`batches`. Otherwise it is a whole batch.

    Examples
    --------
    >>> from torch import nn
    >>> from causalprune.scoring.driver import open_job
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> data = torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64)
    >>> with open_job(model, data, "ablation", batch_size=2, options={}) as (_, job):
    ...     tally = Tally(job)
    ...     for batch in tally.batches():
    ...         tally.add("0", torch.ones(len(batch.inputs), 3), cost=1.0)
    >>> tally.scores()["0"].effect.tolist(), tally.scores()["0"].cost.tolist()
    ([1.0, 1.0, 1.0], [3.0, 3.0, 3.0])
    """

    def __init__(self, job: Job, *, by_group: bool = False) -> None:
        names = tuple(group.name for group in job.graph.groups)
        self._job = job
        self._items = [(name,) for name in names] if by_group else [names]
        self._share: Share = job.share or _Alone(job)
        self._batch = 0
        self._open: dict[int, dict[str, Subtotal]] = {}

    @property
    def batch(self) -> int:
        """Index, among all batches of the job, of the one that :meth:`batches` gave last."""
        return self._batch

    def batches(self) -> Iterator[Batch]:
        """Iterate the batches on which there is something to do here."""
        for index, batch in enumerate(self._job.batches):
            self._batch = index
            self._open = {
                item: {name: Subtotal.empty(self._job.graph.group(name).n_units) for name in names}
                for item, names in enumerate(self._items)
                if self._share.takes(index, item, names)
            }
            if self._open:
                yield batch
            for item in list(self._open):
                self._finish(item)

    def groups(self) -> Iterator[UnitGroup]:
        """Iterate the groups to be done on the present batch; each is finished by the next."""
        for item, groups in list(self._open.items()):
            for name in groups:
                yield self._job.graph.group(name)
            self._finish(item)

    def add(self, group: str, effects: Tensor, cost: float | Tensor) -> None:
        """Add effects [n, n_units] of images of the present batch.

        Parameters
        ----------
        group : str
        effects : Tensor [n, n_units]
        cost : float or Tensor [n_units]
            Forward-equivalents spent on them, on each unit.
        """
        for groups in self._open.values():
            if group in groups:
                groups[group].mean.update(effects)
                groups[group].cost = groups[group].cost + cost

    def scores(self) -> dict[str, UnitScores]:
        """Return the scores of all units on all images, also of those others worked on."""
        totals = self._share.gather()
        return {
            group.name: UnitScores.of(totals[group.name].mean, totals[group.name].cost)
            for group in self._job.graph.groups
        }

    def _finish(self, item: int) -> None:
        self._share.keep(self._batch, item, self._open.pop(item))


class _Alone:
    """The share of a process that does everything."""

    def __init__(self, job: Job) -> None:
        self._totals = {group.name: Subtotal.empty(group.n_units) for group in job.graph.groups}

    def takes(self, batch: int, item: int, groups: tuple[str, ...]) -> bool:
        return True

    def keep(self, batch: int, item: int, groups: Mapping[str, Subtotal]) -> None:
        for name, subtotal in groups.items():
            self._totals[name].merge(subtotal)

    def gather(self) -> Mapping[str, Subtotal]:
        return self._totals
