"""Networks, data sets, experiments (prune, retrain, measure) and their records.

Names are loaded when they are first used: the records can be read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from causalprune.experiments.config import RunConfig
    from causalprune.experiments.corruptions import CORRUPTIONS, corrupt, corrupt_standardised
    from causalprune.experiments.datasets import (
        DataSplits,
        ImageSet,
        load_data,
        register_data,
        registered_data,
    )
    from causalprune.experiments.networks import (
        build_network,
        debbi,
        lenet5,
        lenet300,
        register_network,
        registered_networks,
    )
    from causalprune.experiments.records import read_trials
    from causalprune.experiments.run import RunResult, run_experiment
    from causalprune.experiments.store import StudyStore
    from causalprune.experiments.study import Study
    from causalprune.experiments.training import evaluate, train

_HOME = {
    "CORRUPTIONS": "corruptions",
    "DataSplits": "datasets",
    "ImageSet": "datasets",
    "RunConfig": "config",
    "RunResult": "run",
    "Study": "study",
    "StudyStore": "store",
    "build_network": "networks",
    "corrupt": "corruptions",
    "corrupt_standardised": "corruptions",
    "debbi": "networks",
    "evaluate": "training",
    "lenet300": "networks",
    "lenet5": "networks",
    "load_data": "datasets",
    "read_trials": "records",
    "register_data": "datasets",
    "register_network": "networks",
    "registered_data": "datasets",
    "registered_networks": "networks",
    "run_experiment": "run",
    "train": "training",
}

__all__ = [
    "CORRUPTIONS",
    "DataSplits",
    "ImageSet",
    "RunConfig",
    "RunResult",
    "Study",
    "StudyStore",
    "build_network",
    "corrupt",
    "corrupt_standardised",
    "debbi",
    "evaluate",
    "lenet5",
    "lenet300",
    "load_data",
    "read_trials",
    "register_data",
    "register_network",
    "registered_data",
    "registered_networks",
    "run_experiment",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
