"""What stands ready before the first trial: images, trained networks, their scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from causalprune.errors import InvalidArgumentError
from causalprune.experiments.config import RunConfig
from causalprune.experiments.corruptions import corrupt_standardised
from causalprune.experiments.datasets import DataSplits, data_source, load_data
from causalprune.experiments.networks import network_spec
from causalprune.experiments.preparation import check_scores, score_networks, train_networks
from causalprune.experiments.progress import Stages, stage
from causalprune.experiments.records import write_json
from causalprune.experiments.study_spec import NOISE, Shift
from causalprune.experiments.training import accuracy_of, images_right
from causalprune.experiments.trial import Checkpoint, Setting
from causalprune.experiments.weights import state_digest
from causalprune.graph import capture
from causalprune.measures import add_uniform_noise, count_macs, count_parameters, machine_info
from causalprune.measures.process_memory import start_measuring_process
from causalprune.pruning.weights import WEIGHT_METHODS
from causalprune.scoring import Scores, resolve_method, resolve_outcome

__all__ = [
    "Prepared",
    "filled_in",
    "moved",
    "prepare",
    "repeatable_kernels",
    "splits_of",
]


@dataclass(frozen=True)
class Prepared:
    """What the trials of an experiment start from.

    Attributes
    ----------
    setting : Setting
    checkpoints : list of Checkpoint
    checks : dict
        How each method's scores correlate with exact ablation.
    """

    setting: Setting
    checkpoints: list[Checkpoint]
    checks: dict[str, Any]


def splits_of(config: RunConfig) -> DataSplits:
    """Load the images of an experiment, in the shape and scale that its network takes."""
    spec, size = network_spec(config.network), config.image_size
    return load_data(
        config.data,
        root=config.data_root,
        input_shape=spec.input_shape if size is None else (spec.input_shape[0], size, size),
        calibration=config.calibration,
        train_limit=config.train_limit,
        test_limit=config.test_limit,
        standard=spec.standard,
    )


def prepare(
    config: RunConfig,
    splits: DataSplits,
    folder: Path,
    *,
    given: Mapping[int, Path],
    shifts: Sequence[Shift] = (),
    progress: bool | Stages = True,
) -> Prepared:
    """Train the networks (or load them) and score their units, keeping what the folder holds.

    Parameters
    ----------
    config : RunConfig
        With its defaults filled in.
    splits : DataSplits
    folder : Path
        As :func:`~causalprune.experiments.outputs.open_output` made it.
    given : mapping of int to Path
        Weights instead of training, by checkpoint.
    shifts : sequence of Shift
        Under which networks are evaluated, too.
    progress : bool or callable
        As for :func:`~causalprune.experiments.progress.stage`.
    """
    device = _device(config.device)
    if device.type == "cpu":  # it gets ready while the networks are trained
        start_measuring_process()
    machine = machine_info()
    if not (folder / "machine.json").is_file():
        write_json(folder / "machine.json", machine)
    networks = train_networks(config, folder, splits, device, given, progress)
    graph = capture(networks[0], splits.test[0][:1])
    scores, problems = score_networks(config, folder, splits, networks, progress)
    checks = check_scores(config, folder, scores, problems)
    on_device = splits.to(device)
    shifted = _shifted(on_device, shifts, config.seed, progress)
    setting = Setting(config, on_device, device, graph, machine["name"], shifted)
    return Prepared(setting, _checkpoints(setting, networks, scores, problems), checks)


def moved(block: Prepared, device: torch.device, machine: str) -> Prepared:
    """Return what is ready as trials on another device and machine need it.

    Parameters
    ----------
    block : Prepared
        Not changed.
    device : torch.device
        Where the images go, and where networks train and are timed; on the CPU all of it can be
        pickled.
    machine : str
        Short name of the machine.

    Examples
    --------
    >>> import tempfile
    >>> from causalprune.experiments.outputs import open_output
    >>> config = filled_in(RunConfig(methods=("l1",), checkpoints=1, epochs=0, train_limit=300))
    >>> folder = Path(tempfile.mkdtemp()) / "block"
    >>> open_output(folder, config, resume=False, weights_sha256=None)
    >>> block = prepare(config, splits_of(config), folder, given={}, progress=False)
    >>> moved(block, torch.device("cpu"), "another").setting.machine
    'another'
    """
    setting = block.setting
    shifted = {
        name: (images.to(device), labels.to(device))
        for name, (images, labels) in setting.shifted.items()
    }
    return replace(
        block,
        setting=replace(
            setting,
            splits=setting.splits.to(device),
            device=device,
            machine=machine,
            shifted=shifted,
        ),
    )


def _shifted(
    splits: DataSplits, shifts: Sequence[Shift], seed: int, progress: bool | Stages
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    images, labels = splits.test
    shifted: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    if not shifts:
        return shifted

    def under(shift: Shift) -> torch.Tensor:
        if shift.name == NOISE:
            return add_uniform_noise(images, shift.severity, seed)
        severity = int(shift.severity)
        return corrupt_standardised(
            images, shift.name, severity, seed, mean=splits.mean, std=splits.std
        )

    with stage("shifting the test images", len(shifts), progress=progress) as advance:
        for shift in shifts:
            shifted[str(shift)] = (under(shift), labels)
            advance(str(shift))
    return shifted


def filled_in(config: RunConfig) -> RunConfig:
    """Return the configuration with the network's full name and the data set's defaults.

    Raises
    ------
    UnknownNameError
        Network, data set or method is not known.
    MissingDependencyError
        The library that the network is of is not installed.
    InvalidArgumentError
        A method cannot measure the outcome.
    """
    network = network_spec(config.network).name
    source = data_source(config.data)
    outcome = resolve_outcome(config.outcome)
    for name in config.methods:
        if name in WEIGHT_METHODS and config.ratio_of != "parameters":
            raise InvalidArgumentError(
                f"ratio_of: method {name!r} removes single weights; expected 'parameters', got "
                f"{config.ratio_of!r}"
            )
        if resolve_method(name).needs_gradient and not outcome.differentiable:
            raise InvalidArgumentError(
                f"outcome: method {name!r} needs a differentiable outcome, got {outcome.name!r}"
            )
    return replace(
        config,
        network=network,
        epochs=source.epochs if config.epochs is None else config.epochs,
        retrain_epochs=(
            source.retrain_epochs if config.retrain_epochs is None else config.retrain_epochs
        ),
    )


def _device(name: str) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (not has_cuda or (device.index or 0) >= torch.cuda.device_count()):
        raise InvalidArgumentError(
            f"device: {name!r} is not there ({torch.cuda.device_count()} CUDA devices)"
        )
    return device


@contextmanager
def repeatable_kernels() -> Iterator[None]:
    """Choose deterministic kernels on an accelerator while a block runs."""
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    ):
        yield


def _checkpoints(
    setting: Setting,
    networks: list[nn.Module],
    scores: Mapping[tuple[int, str], Scores],
    problems: Mapping[tuple[int, str], str],
) -> list[Checkpoint]:
    image = setting.splits.test[0][:1].cpu()
    checkpoints: list[Checkpoint] = []
    for number, model in enumerate(networks):
        right = images_right(model.to(setting.device), setting.splits.test)
        shifted = {name: accuracy_of(model, test) for name, test in setting.shifted.items()}
        model.cpu()
        checkpoints.append(
            Checkpoint(
                number=number,
                model=model,
                right=right,
                accuracy_by_shift=shifted,
                parameters=count_parameters(model),
                macs=count_macs(model, image),
                digest=state_digest(model),
                scores={method: value for (n, method), value in scores.items() if n == number},
                problems={method: text for (n, method), text in problems.items() if n == number},
            )
        )
    return checkpoints
