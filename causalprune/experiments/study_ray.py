"""The executor of studies on a Ray cluster: one task a trial, rows recorded here as they end."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch

from causalprune.errors import ClusterError, DivergedError
from causalprune.experiments.config import RunConfig
from causalprune.experiments.datasets import DataSplits
from causalprune.experiments.prepared import Prepared, moved
from causalprune.experiments.ray_cluster import (
    TaskSize,
    cluster_offers_gpus,
    connected,
    slots_of,
    unmet,
)
from causalprune.experiments.ray_trial import BlockOrder, TrialOrder, files_in, task
from causalprune.experiments.store_reader import MAX_ATTEMPTS
from causalprune.experiments.study_work import (
    StudyWork,
    given_weights,
    prepared_block,
    study_row,
)
from causalprune.experiments.trial_artefacts import TrialArtefacts
from causalprune.files import replace_file

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["ray_executor"]

_LOOK_SECONDS = 5.0
# A node that is replaced takes about this long to come back.
_PATIENCE_SECONDS = 120.0
_STOP_SECONDS = 10.0

# What says stop to tasks that had not ended when their study did; a handle keeps it there.
_marks: list[Any] = []


@contextmanager
def ray_executor(address: str | None) -> Iterator[Callable[[StudyWork], None]]:
    """Yield what runs a study on the cluster at an address.

    Parameters
    ----------
    address : str, optional
        See :func:`~causalprune.experiments.ray_cluster.connected`, also for what is raised.
    """
    with connected(address) as ray:
        yield lambda work: _run(ray, work)


@dataclass
class _Run:
    """Where a run stands: blocks sent, trials and blocks under way, nodes that were met."""

    ray: ModuleType
    work: StudyWork
    key: str = field(default_factory=lambda: secrets.token_hex(8))
    sent: dict[int, Any] = field(default_factory=dict)
    trials: dict[Any, int] = field(default_factory=dict)
    blocks: list[Any] = field(default_factory=list)
    met: set[tuple[str, str | None]] = field(default_factory=set)

    @property
    def stop(self) -> str:
        """The name of the actor whose being there ends this run's tasks."""
        return f"causalprune-stop-{self.key}"


def _run(ray: ModuleType, work: StudyWork) -> None:
    run = _Run(ray, work)
    # What a trial dies of is in its row: these two are of workers cut off from their node.
    cut_off = [OSError, ray.exceptions.RayError]
    remote = ray.remote(max_retries=MAX_ATTEMPTS - 1, retry_exceptions=cut_off)(task())
    claimed, queued, heard = 0, True, monotonic()
    try:
        while True:
            while queued and _has_room(run) and (work.limit is None or claimed < work.limit):
                queued = _submit(run, remote)
                claimed += queued
            if not run.trials:
                return
            ended, _ = ray.wait(list(run.trials), num_returns=1, timeout=_LOOK_SECONDS)
            for reference in ended:
                _record(run, reference)
            heard = monotonic() if ended else heard
            _check_nodes(run, lost_for=monotonic() - heard)
    finally:
        _stop(run)


def _size(run: _Run, number: int, nodes: list[dict[str, Any]]) -> TaskSize:
    config = run.work.spec.blocks[number]
    on_gpu = config.device.startswith("cuda") or (
        config.device == "auto" and cluster_offers_gpus(nodes)
    )
    return TaskSize(config.threads, int(on_gpu))


def _has_room(run: _Run) -> bool:
    """Whether the cluster can take another trial: one more than run at once waits there."""
    nodes = run.ray.nodes()
    sizes = {_size(run, number, nodes) for number in range(len(run.work.spec.blocks))}
    return len(run.trials) <= max(slots_of(nodes, size) for size in sizes)


def _submit(run: _Run, remote: Any) -> bool:
    work = run.work
    claimed = work.store.claim(work.worker)
    if claimed is None:
        return False
    entry = work.cells[claimed.trial]
    nodes = run.ray.nodes()
    size = _size(run, entry.block, nodes)
    if problem := unmet(nodes, size):
        raise ClusterError(problem)
    if entry.block not in run.sent:
        run.sent[entry.block] = _sent(run, remote, entry.block, size)
    sent = run.sent[entry.block]
    if isinstance(sent, DivergedError):
        nothing = TrialArtefacts()
        row = study_row(work.spec.blocks[entry.block], entry, sent, nothing)
        work.finish(claimed.trial, row, nothing.content)
        return True
    order = TrialOrder(work.spec.blocks[entry.block], entry, work.spec.artefacts)
    reference = remote.options(
        name=f"trial {claimed.trial}", num_cpus=size.cpus, num_gpus=size.gpus
    ).remote(
        version("causalprune"),
        run.stop,
        "remote_trial",
        f"{run.key}-{entry.block}",
        [sent],
        "cuda" if size.gpus else "cpu",
        run.ray.cloudpickle.dumps(order),
    )
    run.trials[reference] = claimed.trial
    return True


def _sent(run: _Run, remote: Any, number: int, size: TaskSize) -> Any:
    # Networks for a GPU are trained on one, and the driver's machine need not have it.
    elsewhere = None
    if size.gpus and not torch.cuda.is_available():
        elsewhere = partial(_prepared_on_node, run, remote, size)
    block = prepared_block(run.work, number, elsewhere)
    if isinstance(block, DivergedError):
        return block
    cpu = torch.device("cpu")
    portable = moved(block, cpu, block.setting.machine)
    # Ray's own pickle: networks may be classes of the user's script.
    return run.ray.put(run.ray.cloudpickle.dumps(portable))


def _prepared_on_node(
    run: _Run, remote: Any, size: TaskSize, config: RunConfig, splits: DataSplits, folder: Path
) -> Prepared:
    given = {number: file.read_bytes() for number, file in given_weights(config).items()}
    order = BlockOrder(config, splits, run.work.spec.shifts, files_in(folder), given)
    reference = remote.options(
        name=f"block {folder.name}", num_cpus=size.cpus, num_gpus=size.gpus
    ).remote(
        version("causalprune"),
        run.stop,
        "remote_block",
        run.ray.cloudpickle.dumps(order),
        "cuda" if size.gpus else "cpu",
    )
    run.blocks.append(reference)
    result = _result(run, reference, f"block {folder.name}")
    run.blocks.remove(reference)
    if "diverged" in result:
        raise DivergedError(result["diverged"])
    for path, content in result["files"].items():
        replace_file(folder / path, content)
    block: Prepared = run.ray.cloudpickle.loads(result["block"])
    return block


def _record(run: _Run, reference: Any) -> None:
    work, trial = run.work, run.trials[reference]
    try:
        result = _result(run, reference, f"trial {trial}")
    except _WorkersLostError as error:
        result = {"row": {"status": "failed", "error": str(error)}}
    else:
        _record_machine(run, result)
    work.finish(trial, result["row"], result.get("artefacts", {}))
    del run.trials[reference]


class _WorkersLostError(ClusterError):
    """A task has ended its worker, or lost its node, as often as it may."""


def _result(run: _Run, reference: Any, what: str) -> dict[str, Any]:
    errors = run.ray.exceptions
    try:
        result: dict[str, Any] = run.ray.get(reference)
    except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
        raise _WorkersLostError(
            f"{what}: its worker ended {MAX_ATTEMPTS} times without a result, last: {error}"
        ) from error
    except errors.RayTaskError as error:
        raise ClusterError(f"{what}: a node failed: {_cause(error)}") from error
    except errors.RayError as error:
        raise ClusterError(f"{what}: Ray failed: {_cause(error)}") from error
    if "refused" in result:
        raise ClusterError(result["refused"])
    return result


def _record_machine(run: _Run, result: dict[str, Any]) -> None:
    # A worker of a task without GPU does not see its node's.
    met = result["node"], result["machine"]["accelerator"]
    if met not in run.met:
        run.work.store.record_machine(result["worker"], result["machine"])
        run.met.add(met)


def _cause(error: BaseException) -> str:
    # Ray's own text is the stack on the node; its last line says what happened.
    cause = getattr(error, "cause", None)
    text = f"{type(cause).__name__}: {cause}" if cause is not None else str(error)
    return text.strip().splitlines()[-1]


def _check_nodes(run: _Run, lost_for: float) -> None:
    """Give up where trials wait for a kind of node that is gone and does not come back."""
    if not run.trials or lost_for < _PATIENCE_SECONDS:
        return
    nodes = run.ray.nodes()
    for trial in run.trials.values():
        if problem := unmet(nodes, _size(run, run.work.cells[trial].block, nodes)):
            raise ClusterError(f"trial {trial}: {problem}, for {lost_for:.0f} s now")


def _stop(run: _Run) -> None:
    """End what is still under way, after an error or Ctrl-C."""
    pending = [*run.trials, *run.blocks]
    if not pending:
        return

    class Stop:
        pass

    with suppress(run.ray.exceptions.RayError):
        mark = run.ray.remote(num_cpus=0)(Stop).options(name=run.stop).remote()
        _, late = run.ray.wait(pending, num_returns=len(pending), timeout=_STOP_SECONDS)
        if late:  # they wait for a place, perhaps
            _marks.append(mark)
