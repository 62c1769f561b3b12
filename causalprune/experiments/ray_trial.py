"""What a study's task does on a node of a Ray cluster."""

from __future__ import annotations

import pickle
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from causalprune.errors import DivergedError
from causalprune.experiments.config import RunConfig
from causalprune.experiments.datasets import DataSplits
from causalprune.experiments.prepared import Prepared, moved, prepare, repeatable_kernels
from causalprune.experiments.store_workers import Worker
from causalprune.experiments.study_spec import Shift, StudyCell
from causalprune.experiments.study_work import study_row
from causalprune.experiments.trial_artefacts import TrialArtefacts
from causalprune.measures import machine_info, torch_threads

__all__ = ["BlockOrder", "TrialOrder", "files_in", "remote_block", "remote_trial", "task"]

# The block that the trials of this process last were of: most blocks fill much of a worker's
# memory, and a trial takes long beside loading one.
_loaded: dict[str, Prepared] = {}
# A node that dies takes its store first, and its workers within a second or so.
_DYING_SECONDS = 3.0


def task() -> Callable[..., dict[str, Any]]:
    """Return what a node runs; it needs nothing of causalprune before it has looked for it.

    Returns
    -------
    callable
        Of the driver's version of causalprune, the name of the actor that says stop, the name of
        a function of this module and its arguments; returns its result, ``{"refused": reason}``
        or, where it was to stop before it began, ``{"stopped": True}``.
    """

    def run(version: str, stop: str, name: str, *arguments: Any) -> dict[str, Any]:
        import os
        import platform
        import sys
        import threading
        from importlib.metadata import PackageNotFoundError, distribution

        def stopped() -> bool:
            import ray

            try:
                ray.get_actor(stop)
            except (ValueError, ray.exceptions.RayError):
                return False
            return True

        try:
            installed = distribution("causalprune")
            found = installed.version
            # Ray looks first in the folder where the driver runs: sources that lie there lack what
            # was compiled.
            place = str(installed.locate_file(""))
            if sys.path[0] != place:  # a process runs many trials
                sys.path.insert(0, place)
        except PackageNotFoundError:
            found = "none"
        if found != version:
            return {
                "refused": f"node {platform.node()} has causalprune {found}, expected {version} "
                "as here; install it on every node"
            }
        if stopped():
            return {"stopped": True}
        ended = threading.Event()

        def watch() -> None:
            # From within, because Ray's own cancelling aborts the driver where it meets the end
            # of a task (seen with Ray 2.60). The whole process, because what is half imported
            # must not serve other trials; Ray's next attempt then finds what says stop.
            while not ended.wait(1.0):
                if stopped():
                    os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
        try:
            from causalprune.experiments import ray_trial

            result: dict[str, Any] = getattr(ray_trial, name)(*arguments)
        finally:
            ended.set()
        return result

    return run


@dataclass(frozen=True)
class TrialOrder:
    """A trial to run on a node.

    Attributes
    ----------
    config : RunConfig
        Of the block.
    entry : StudyCell
        Which trial.
    artefacts : tuple of str
        Which to keep.
    """

    config: RunConfig
    entry: StudyCell
    artefacts: tuple[str, ...]


@dataclass(frozen=True)
class BlockOrder:
    """A block to prepare on a node that has neither the images nor the study's folder.

    Attributes
    ----------
    config : RunConfig
    splits : DataSplits
    shifts : tuple of Shift
    files : dict of str to bytes
        What the block's folder holds so far, by path.
    given : dict of int to bytes
        Weights instead of training, by checkpoint: the content of their files.
    """

    config: RunConfig
    splits: DataSplits
    shifts: tuple[Shift, ...]
    files: dict[str, bytes]
    given: dict[int, bytes]


def remote_block(order: bytes, device: str) -> dict[str, Any]:
    """Train and score the networks of a block in a worker of the cluster.

    Parameters
    ----------
    order : bytes
        A pickled `BlockOrder`.
    device : str
        ``"cpu"`` or ``"cuda"``.

    Returns
    -------
    dict
        ``block``: the pickled `Prepared`, on the CPU; ``files``: those that came to the folder.
        Or ``diverged``: the error of networks that did not train.
    """
    import ray

    wanted: BlockOrder = pickle.loads(order)
    config = wanted.config
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, content in wanted.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        for kept in ("checkpoints", "scores"):
            (folder / kept).mkdir(exist_ok=True)
        given = {number: folder / f"given-{number}" for number in wanted.given}
        for number, file in given.items():
            file.write_bytes(wanted.given[number])
        try:
            with torch_threads(config.threads), repeatable_kernels():
                block = prepare(
                    replace(config, device=device),
                    wanted.splits,
                    folder,
                    given=given,
                    shifts=wanted.shifts,
                    progress=False,
                )
        except DivergedError as error:
            return {"diverged": str(error)}
        for file in given.values():
            file.unlink()
        files = files_in(folder)
    block = replace(block, setting=replace(block.setting, config=config))
    portable = moved(block, torch.device("cpu"), block.setting.machine)
    new = {path: content for path, content in files.items() if path not in wanted.files}
    # Ray's own pickle: networks may be classes of the user's script.
    pickled: Callable[[Prepared], bytes] = ray.cloudpickle.dumps
    return {"block": pickled(portable), "files": new}


def files_in(folder: Path) -> dict[str, bytes]:
    """Read the files of a folder, by their path in it."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def remote_trial(key: str, content: list[Any], device: str, order: bytes) -> dict[str, Any]:
    """Run one trial in a worker of the cluster.

    Parameters
    ----------
    key : str
        Of the block in this run of the study.
    content : list of one ObjectRef
        The pickled block; in a list, so that only a process that lacks the block fetches it.
    device : str
        ``"cpu"`` or ``"cuda"``; of the GPUs Ray shows a worker those that it may use.
    order : bytes
        A pickled `TrialOrder`: Ray must not unpickle it before `task` knows where we are.

    Returns
    -------
    dict
        ``row``; ``artefacts``, their contents by kind; ``node`` (Ray's name of the node),
        ``worker`` and ``machine`` (its description).
    """
    import ray

    machine = machine_info()
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = moved(_fetched(content[0]), torch.device(device), machine["name"])
    wanted: TrialOrder = pickle.loads(order)
    artefacts = TrialArtefacts(wanted.artefacts)
    return {
        "row": study_row(wanted.config, wanted.entry, _loaded[key], artefacts),
        "artefacts": artefacts.content,
        "node": ray.get_runtime_context().get_node_id(),
        "worker": Worker.here(),
        "machine": machine,
    }


def _fetched(reference: Any) -> Prepared:
    import ray

    try:
        content = ray.get(reference)
    except (OSError, ray.exceptions.RayError):
        # Where the node is dying, so is this worker: failing at once would send it the trial's
        # next attempts, too, until none is left.
        time.sleep(_DYING_SECONDS)
        raise
    block: Prepared = pickle.loads(content)
    return block
