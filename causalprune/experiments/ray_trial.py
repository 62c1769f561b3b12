"""What a study's task does on a node of a Ray cluster."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import Any

import torch

from causalprune.experiments.config import RunConfig
from causalprune.experiments.prepared import Prepared, moved
from causalprune.experiments.store_workers import Worker
from causalprune.experiments.study_spec import StudyCell
from causalprune.experiments.study_work import study_row
from causalprune.experiments.trial_artefacts import TrialArtefacts
from causalprune.measures import machine_info

__all__ = ["remote_trial", "task"]

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
        Of the driver's version of causalprune and the arguments of `remote_trial`; returns its
        result, or ``{"refused": reason}``.
    """

    def run(version: str, *arguments: Any) -> dict[str, Any]:
        import platform
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as version_of

        try:
            found = version_of("causalprune")
        except PackageNotFoundError:
            found = "none"
        if found != version:
            return {
                "refused": f"node {platform.node()} has causalprune {found}, expected {version} "
                "as here; install it on every node"
            }
        from causalprune.experiments.ray_trial import remote_trial

        return remote_trial(*arguments)

    return run


def remote_trial(
    key: str,
    content: list[Any],
    device: str,
    config: RunConfig,
    entry: StudyCell,
    wanted: tuple[str, ...],
) -> dict[str, Any]:
    """Run one trial in a worker of the cluster.

    Parameters
    ----------
    key : str
        Of the block in this run of the study.
    content : list of one ObjectRef
        The pickled block; in a list, so that only a process that lacks the block fetches it.
    device : str
        ``"cpu"`` or ``"cuda"``; of the GPUs Ray shows a worker those that it may use.
    config : RunConfig
        Of the block.
    entry : StudyCell
        Which trial.
    wanted : tuple of str
        Artefacts to keep.

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
    artefacts = TrialArtefacts(wanted)
    return {
        "row": study_row(config, entry, _loaded[key], artefacts),
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
