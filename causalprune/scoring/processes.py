"""The processes of a job that is spread over several, on torch's own engine."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, ProcessGroupError

__all__ = ["Workers", "workers"]

PATIENCE = timedelta(days=7)
"""How long a process waits for the slowest; one that ends is noticed at once all the same."""

_GROUPS_MADE = itertools.count()


@dataclass(frozen=True)
class Workers:
    """The processes of a job.

    Attributes
    ----------
    rank : int
    n : int
    device : torch.device
        Where tensors must be to be exchanged.
    group : torch.distributed.ProcessGroup or None
        ``None``: this process is alone, or the default group.
    """

    rank: int = 0
    n: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: dist.ProcessGroup | None = None

    def sum_bits(self, values: Tensor) -> Tensor:
        """Add up int64 tensors of all processes: bits of float64 where all others hold zeros."""
        if self.n == 1:
            return values
        moved = values.to(self.device)
        try:
            dist.all_reduce(moved, group=self.group)
        except RuntimeError as error:
            raise ProcessGroupError(
                "another process of the job ended or cannot be reached "
                f"({str(error).splitlines()[0]}); start the job again: finished shards are reused"
            ) from error
        return moved.cpu()

    def agree(self, digest: str) -> None:
        """Raise InvalidArgumentError unless all processes hold the same digest (hexadecimal)."""
        words = torch.zeros(self.n, len(digest) // 8, dtype=torch.int64)
        words[self.rank] = torch.tensor([int(digest[i : i + 8], 16) for i in _starts(digest)])
        found = self.sum_bits(words)
        other = [rank for rank in range(self.n) if not torch.equal(found[rank], found[0])]
        if other:
            raise InvalidArgumentError(
                "model, data: expected the same model, data and settings in every process, got "
                f"others in {other} than in process 0"
            )

    def wait(self) -> None:
        """Return when every process has come here, so that none leaves while others reduce."""
        self.sum_bits(torch.zeros(1, dtype=torch.int64))


def _starts(digest: str) -> range:
    return range(0, len(digest) - len(digest) % 8, 8)


@contextmanager
def workers(process_group: dist.ProcessGroup | None, model: nn.Module) -> Iterator[Workers]:
    """Yield the processes of this job; a group that is made here is destroyed at the end.

    Parameters
    ----------
    process_group : torch.distributed.ProcessGroup or None
        ``None``: the default group, made where ``torchrun`` started this process.
    model : nn.Module
        Decides on the back end: nccl where it is on a GPU that no other process has, else gloo.
    """
    tensor = next(iter([*model.parameters(), *model.buffers()]), torch.zeros(0))
    own = False
    if process_group is None and dist.is_available() and not dist.is_initialized():
        own = dist.is_torchelastic_launched()
        if own:
            local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            has_gpu = tensor.is_cuda and local <= torch.cuda.device_count()
            store, rank, n = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
            dist.init_process_group(
                "nccl" if has_gpu else "gloo",
                # Under keys of its own: those of a group destroyed before are still in the store.
                store=dist.PrefixStore(  # type: ignore[attr-defined]
                    f"causalprune/{next(_GROUPS_MADE)}", store
                ),
                rank=rank,
                world_size=n,
                timeout=PATIENCE,
            )
    try:
        if process_group is None and not (dist.is_available() and dist.is_initialized()):
            yield Workers()
            return
        on_gpu = dist.get_backend(process_group) == "nccl"
        yield Workers(
            dist.get_rank(process_group),
            dist.get_world_size(process_group),
            tensor.device if on_gpu else torch.device("cpu"),
            process_group,
        )
    finally:
        if own:
            # A group whose other processes are gone cannot be left in good order.
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()
