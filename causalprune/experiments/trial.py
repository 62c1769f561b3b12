"""One trial: prune physically, measure, retrain, evaluate."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from causalprune.experiments.config import RunConfig
from causalprune.experiments.datasets import DataSplits
from causalprune.experiments.design import ASSIGNMENT, Cell
from causalprune.experiments.training import evaluate, train
from causalprune.graph import UnitGraph, evaluating, removed
from causalprune.measures import (
    SystemMonitor,
    count_macs,
    count_parameters,
    latency_ms,
    parameter_bytes,
    peak_activation_bytes,
)
from causalprune.pruning import Plan, apply, plan
from causalprune.scoring import Scores

__all__ = ["Checkpoint", "Setting", "run_trial"]


@dataclass(frozen=True)
class Setting:
    """What all trials of an experiment share.

    Attributes
    ----------
    config : RunConfig
        The experiment.
    splits : DataSplits
        The images, on ``device``.
    device : torch.device
        Where networks train and are timed.
    graph : UnitGraph
        The units of the network; the same for every checkpoint.
    machine : str
        Short name of the machine.
    """

    config: RunConfig
    splits: DataSplits
    device: torch.device
    graph: UnitGraph
    machine: str


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and what is known of it before pruning.

    Attributes
    ----------
    number : int
        Which one.
    model : nn.Module
        The network, on the CPU.
    accuracy : float
        Fraction right on the test split.
    parameters, macs : int
        Its size; multiply-accumulates for one image.
    scores : Mapping[str, Scores]
        By method.
    problems : Mapping[str, str]
        Why a method has no scores.
    """

    number: int
    model: nn.Module
    accuracy: float
    parameters: int
    macs: int
    scores: Mapping[str, Scores]
    problems: Mapping[str, str]


def run_trial(setting: Setting, cell: Cell, checkpoint: Checkpoint) -> dict[str, Any]:
    """Run one trial and return its row; a trial that fails returns a row that says why.

    Parameters
    ----------
    setting : Setting
        What all trials share.
    cell : Cell
        Which trial.
    checkpoint : Checkpoint
        The network to prune, with its scores; not changed.

    Returns
    -------
    dict
        By the names of ``records.TRIAL_COLUMNS``.
    """
    start = time.perf_counter()
    row = _what_was_set(setting, cell, checkpoint)
    with SystemMonitor() as monitor:
        try:
            outcome = _prune_and_measure(setting, cell, checkpoint)
            outcome |= {"status": "ok", "error": None}
        except Exception as error:  # whatever a trial dies of is its result; the others go on
            message = " ".join(str(error).split())
            outcome = {"status": "failed", "error": f"{type(error).__name__}: {message}"}
    seconds = time.perf_counter() - start
    return row | outcome | monitor.statistics.as_row() | {"seconds": seconds}


def _what_was_set(setting: Setting, cell: Cell, checkpoint: Checkpoint) -> dict[str, Any]:
    config, splits = setting.config, setting.splits
    return {
        "trial": cell.trial,
        "order": cell.order,
        "checkpoint": cell.checkpoint,
        "seed": cell.seed,
        "architecture": config.network,
        "dataset": splits.name,
        "method": cell.method,
        "assignment": ASSIGNMENT,
        "assignment_probability": 1.0 / (len(config.methods) * len(config.ratios)),
        "ratio": cell.ratio,
        "ratio_of": config.ratio_of,
        "latency_batch": config.latency_batch,
        "threads": config.threads,
        "retrain_epochs": config.retrain_epochs,
        "shift": "none",
        "accuracy_before": checkpoint.accuracy,
        "n_test": len(splits.test[1]),
        "split": splits.split,
        "machine": setting.machine,
    }


def _prune_and_measure(setting: Setting, cell: Cell, checkpoint: Checkpoint) -> dict[str, Any]:
    config, splits = setting.config, setting.splits
    if cell.method not in checkpoint.scores:
        reason = checkpoint.problems.get(cell.method, "not computed")
        raise RuntimeError(f"no scores: {reason}")
    scores = checkpoint.scores[cell.method]
    proposal = plan(
        checkpoint.model,
        scores,
        ratio=cell.ratio,
        of=config.ratio_of,
        scope=_scope(config.scope, scores),
    )
    small = apply(checkpoint.model, proposal)
    difference = _output_difference(setting, checkpoint.model, small, proposal)
    small = small.to(setting.device)
    size = _size(setting, small, checkpoint)
    accuracy_pruned = evaluate(small, splits.test)
    if config.retrain_epochs:
        train(
            small,
            splits.train,
            epochs=config.retrain_epochs,
            learning_rate=config.retrain_learning_rate,
            batch_size=config.batch_size,
            seed=cell.seed,
        )
    accuracy = evaluate(small, splits.test)
    return {
        **size,
        "kept_units": json.dumps({part.group: part.kept for part in proposal.table}),
        "accuracy_pruned": accuracy_pruned,
        "accuracy": accuracy,
        "accuracy_loss": checkpoint.accuracy - accuracy,
        "output_difference": difference,
        **_latency(setting, small),
    }


def _scope(scope: str, scores: Scores) -> str:
    if scope != "auto":
        return scope
    return "global" if bool(scores.frame["effect"].notna().any()) else "layer"


def _size(setting: Setting, small: nn.Module, checkpoint: Checkpoint) -> dict[str, Any]:
    image = setting.splits.test[0][:1]
    parameters, macs = count_parameters(small), count_macs(small, image)
    weights, activations = parameter_bytes(small), peak_activation_bytes(small, image)
    return {
        "achieved_ratio": 1.0 - parameters / checkpoint.parameters,
        "achieved_ratio_macs": 1.0 - macs / checkpoint.macs,
        "parameters": parameters,
        "macs": macs,
        "parameter_bytes": weights,
        "peak_activation_bytes": activations,
        "memory_bytes": weights + activations,
    }


def _latency(setting: Setting, small: nn.Module) -> dict[str, float]:
    config = setting.config
    images = setting.splits.test[0]
    # A test part smaller than the batch is gone round again; its content does not matter here.
    chosen = torch.arange(config.latency_batch, device=images.device) % len(images)
    timing = latency_ms(
        small, images[chosen], repeats=config.latency_repeats, threads=config.threads
    )
    return {
        "latency_ms": timing.median_ms,
        "latency_q25_ms": timing.q25_ms,
        "latency_q75_ms": timing.q75_ms,
    }


def _output_difference(
    setting: Setting, model: nn.Module, small: nn.Module, proposal: Plan
) -> float:
    images = setting.splits.calibration[0].cpu()
    masked = copy.deepcopy(model)
    with torch.no_grad(), evaluating(masked), evaluating(small):
        with removed(masked, setting.graph, proposal.remove):
            expected: Tensor = masked(images)
        difference = (small(images) - expected).abs().max()
    return float(difference)
