"""One trial: prune (units physically, single weights as zeros), measure, retrain, evaluate."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from causalprune.experiments.class_rows import class_columns
from causalprune.experiments.config import RunConfig
from causalprune.experiments.datasets import DataSplits
from causalprune.experiments.design import ASSIGNMENT, Cell
from causalprune.experiments.training import accuracy_of, images_right, train
from causalprune.experiments.trial_artefacts import TrialArtefacts
from causalprune.graph import UnitGraph, evaluating, removed
from causalprune.measures import (
    SystemMonitor,
    count_layer_weights,
    count_macs,
    count_nonzero_macs,
    count_parameters,
    latency_ms,
    parameter_bytes,
    peak_activation_bytes,
    peak_gpu_bytes,
    peak_process_bytes,
)
from causalprune.measures.latency import WARMUP
from causalprune.pruning import Plan, apply, holding, plan, prune_weights
from causalprune.pruning.masks import WeightMasks
from causalprune.pruning.weights import WEIGHT_METHODS
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
    shifted : mapping of str to pair of Tensor
        Test images under each shift, with their classes.
    """

    config: RunConfig
    splits: DataSplits
    device: torch.device
    graph: UnitGraph
    machine: str
    shifted: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and what is known of it before pruning.

    Attributes
    ----------
    number : int
        Which one.
    model : nn.Module
        The network, on the CPU.
    right : Tensor [N], bool
        Which images of the test split it is right about, on the CPU.
    parameters, macs : int
        Its size; multiply-accumulates for one image.
    scores : Mapping[str, Scores]
        By method.
    problems : Mapping[str, str]
        Why a method has no scores.
    accuracy_by_shift : Mapping[str, float]
        Fraction right under each shift.
    digest : str or None
        See :func:`~causalprune.experiments.weights.state_digest`.
    """

    number: int
    model: nn.Module
    right: Tensor
    parameters: int
    macs: int
    scores: Mapping[str, Scores]
    problems: Mapping[str, str]
    accuracy_by_shift: Mapping[str, float] = field(default_factory=dict)
    digest: str | None = None

    @property
    def accuracy(self) -> float:
        """Fraction right on the test split."""
        return int(self.right.sum()) / len(self.right)


def run_trial(
    setting: Setting,
    cell: Cell,
    checkpoint: Checkpoint,
    artefacts: TrialArtefacts | None = None,
) -> dict[str, Any]:
    """Run one trial and return its row; a trial that fails returns a row that says why.

    Parameters
    ----------
    setting : Setting
        What all trials share.
    cell : Cell
        Which trial.
    checkpoint : Checkpoint
        The network to prune, with its scores; not changed.
    artefacts : TrialArtefacts, optional
        Takes what is to be kept beside the row, also of a trial that fails.

    Returns
    -------
    dict
        By the names of ``records.TRIAL_COLUMNS``; where there are shifts, by those of
        ``records.SHIFT_COLUMNS``, too.
    """
    start = time.perf_counter()
    row = _what_was_set(setting, cell, checkpoint)
    with SystemMonitor() as monitor:
        try:
            kept = TrialArtefacts() if artefacts is None else artefacts
            outcome = _prune_and_measure(setting, cell, checkpoint, kept)
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
        "block": 0,  # a run has one; a study says which
        "checkpoint": cell.checkpoint,
        "checkpoint_digest": checkpoint.digest,
        "seed": cell.seed,
        "architecture": config.network,
        "dataset": splits.name,
        "method": cell.method,
        "assignment": ASSIGNMENT,
        "assignment_probability": 1.0 / (len(config.methods) * len(config.ratios)),
        "ratio": cell.ratio,
        "ratio_of": config.ratio_of,
        "latency_batch": config.latency_batch,
        "latency_repeats": config.latency_repeats,
        "latency_warmup": WARMUP,
        "threads": config.threads,
        "retrain_epochs": config.retrain_epochs,
        "retrain_recipe": _recipe(config),
        "shift": "none",
        "accuracy_before": checkpoint.accuracy,
        "n_test": len(splits.test[1]),
        "split": splits.split,
        "machine": setting.machine,
    }


def _recipe(config: RunConfig) -> str:
    augmented = f", {config.augment}" if config.augment else ""
    rate = config.learning_rates()[1]
    return f"{config.optimiser}, learning rate {rate:g}, {config.batch_size} images{augmented}"


@dataclass(frozen=True)
class _Pruned:
    """A pruned network: smaller, or with single weights at zero (then `masks`)."""

    model: nn.Module
    plan: Plan | None
    masks: WeightMasks | None
    output_difference: float | None


def _prune_and_measure(
    setting: Setting, cell: Cell, checkpoint: Checkpoint, artefacts: TrialArtefacts
) -> dict[str, Any]:
    config, splits = setting.config, setting.splits
    by_weight = cell.method in WEIGHT_METHODS
    pruned = (_without_weights if by_weight else _without_units)(setting, cell, checkpoint)
    if pruned.plan is not None:
        artefacts.keep_plan(pruned.plan)
    if pruned.masks is not None:
        artefacts.keep_masks(pruned.masks)
    small = pruned.model.to(setting.device)
    size = _size(setting, small, checkpoint, by_weight=by_weight)
    accuracy_pruned = accuracy_of(small, splits.test)
    if config.retrain_epochs:
        with holding(small, pruned.masks):
            train(
                small,
                splits.train,
                epochs=config.retrain_epochs,
                learning_rate=config.learning_rates()[1],
                optimiser=config.optimiser,
                augment=config.augment,
                batch_size=config.batch_size,
                seed=cell.seed,
                on_epoch=artefacts.keep_loss,
            )
    artefacts.keep_checkpoint(small)
    right = images_right(small, splits.test)
    accuracy = int(right.sum()) / len(right)
    kept = None if pruned.plan is None else {row.group: row.kept for row in pruned.plan.table}
    return {
        **_under_shift(setting, small, checkpoint),
        **size,
        "kept_units": None if kept is None else json.dumps(kept),
        "accuracy_pruned": accuracy_pruned,
        "accuracy": accuracy,
        "accuracy_loss": checkpoint.accuracy - accuracy,
        **_by_class(splits, checkpoint.right, right),
        "output_difference": pruned.output_difference,
        **_latency(setting, small),
        **_peak_memory(setting, small),
    }


def _by_class(splits: DataSplits, before: Tensor, after: Tensor) -> dict[str, str]:
    labels = splits.test[1].cpu().numpy()
    return class_columns(labels, splits.classes, before.numpy(), after.numpy())


def _without_units(setting: Setting, cell: Cell, checkpoint: Checkpoint) -> _Pruned:
    config = setting.config
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
    return _Pruned(small, proposal, None, difference)


def _without_weights(setting: Setting, cell: Cell, checkpoint: Checkpoint) -> _Pruned:
    data = tuple(part.cpu() for part in setting.splits.calibration)
    sparse, budget = prune_weights(checkpoint.model, data, cell.method, cell.ratio, seed=cell.seed)
    masks = {layer: mask.to(setting.device) for layer, mask in budget.masks.items()}
    return _Pruned(sparse, None, masks, None)


def _under_shift(setting: Setting, small: nn.Module, checkpoint: Checkpoint) -> dict[str, Any]:
    if not setting.shifted:
        return {}
    after = {name: accuracy_of(small, test) for name, test in setting.shifted.items()}
    return {
        "accuracy_by_shift": json.dumps(after),
        "accuracy_before_by_shift": json.dumps(dict(checkpoint.accuracy_by_shift)),
    }


def _scope(scope: str, scores: Scores) -> str:
    if scope != "auto":
        return scope
    return "global" if bool(scores.frame["effect"].notna().any()) else "layer"


def _size(
    setting: Setting, small: nn.Module, checkpoint: Checkpoint, *, by_weight: bool
) -> dict[str, Any]:
    image = setting.splits.test[0][:1]
    if by_weight:  # what is zero is there, but counts as gone
        parameters = sum(int(parameter.count_nonzero()) for parameter in small.parameters())
        macs = count_nonzero_macs(small, image)
        counter = "torch.utils.flop_counter / 2, less the products with zero weights by hand"
    else:
        parameters, macs = count_parameters(small), count_macs(small, image)
        counter = "torch.utils.flop_counter / 2"
    weights, activations = parameter_bytes(small), peak_activation_bytes(small, image)
    return {
        "achieved_ratio": 1.0 - parameters / checkpoint.parameters,
        "achieved_ratio_macs": 1.0 - macs / checkpoint.macs,
        "achieved_ratio_by_layer": json.dumps(_gone_by_layer(checkpoint.model, small, by_weight)),
        "parameters": parameters,
        "macs": macs,
        "macs_counter": counter,
        "parameter_bytes": weights,
        "peak_activation_bytes": activations,
        "memory_bytes": weights + activations,
    }


def _gone_by_layer(model: nn.Module, small: nn.Module, by_weight: bool) -> dict[str, float]:
    before = count_layer_weights(model)
    after = count_layer_weights(small, nonzero=by_weight)
    # An attention that lost heads has its projections in modules of their own.
    left = {
        name: sum(n for other, n in after.items() if f"{other}.".startswith(f"{name}."))
        for name in before
    }
    return {name: round(1.0 - left[name] / total, 6) for name, total in before.items()}


def _latency(setting: Setting, small: nn.Module) -> dict[str, Any]:
    config = setting.config
    timings = {
        batch: latency_ms(
            small,
            _images(setting, batch),
            warmup=WARMUP,
            repeats=config.latency_repeats,
            threads=config.threads,
        )
        for batch in (config.latency_batch, *config.latency_batches)
    }
    first = timings[config.latency_batch]
    by_batch = {
        batch: {name: getattr(timing, name) for name in ("median_ms", "q25_ms", "q75_ms")}
        for batch, timing in timings.items()
    }
    return {
        "latency_ms": first.median_ms,
        "latency_q25_ms": first.q25_ms,
        "latency_q75_ms": first.q75_ms,
        "latency_by_batch": json.dumps(by_batch),
    }


def _images(setting: Setting, batch: int) -> Tensor:
    images = setting.splits.test[0]
    # A test part smaller than the batch is gone round again; its content does not matter here.
    return images[torch.arange(batch, device=images.device) % len(images)]


def _peak_memory(setting: Setting, small: nn.Module) -> dict[str, Any]:
    images = _images(setting, setting.config.latency_batch)
    process = peak_process_bytes(small, images, threads=setting.config.threads)
    gpu = peak_gpu_bytes(small, images)
    missing = {"peak_process_bytes": process.reason, "peak_gpu_bytes": gpu.reason}
    reasons = [f"{name}: {reason}" for name, reason in missing.items() if reason is not None]
    return {
        "peak_process_bytes": process.bytes,
        "peak_gpu_bytes": gpu.bytes,
        "peak_memory_reason": "; ".join(reasons) or None,
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
