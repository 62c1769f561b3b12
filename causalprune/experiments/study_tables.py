"""A study in tables and words: rows by shift, and what it would run."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from causalprune.experiments.config import RunConfig
from causalprune.experiments.networks import build_network
from causalprune.experiments.preparation import check_network, weight_files
from causalprune.experiments.prepared import filled_in, splits_of
from causalprune.experiments.shift_rows import rows_by_shift
from causalprune.experiments.study_spec import StudySpec, study_cells
from causalprune.experiments.trial_artefacts import estimated_bytes
from causalprune.measures import parameter_bytes, torch_threads

__all__ = ["plan_lines", "rows_by_shift"]


def plan_lines(spec: StudySpec, folder: Path) -> list[str]:
    """Say what a study would run, with estimates of its time and disk.

    One training step of each network is timed here; scoring, which differs from method to method
    by orders of magnitude, is not estimated.

    Parameters
    ----------
    spec : StudySpec
    folder : Path
        Of the records.
    """
    cells = study_cells(spec)
    lines = [f"{spec.name}: {len(cells)} trials in random order, design {spec.design}, in {folder}"]
    seconds = disk = 0.0
    for number, block in enumerate(spec.blocks):
        config = filled_in(block)
        own = sum(entry.block == number for entry in cells)
        train, trial, model = _estimates(config)
        trained = f"trained for {config.epochs} epochs"
        if config.weights is not None:
            train, trained = 0.0, f"read from {config.weights}"
        seconds += config.checkpoints * train + own * trial
        disk += config.checkpoints * parameter_bytes(model) + sum(
            estimated_bytes(
                model,
                entry.cell.method,
                entry.cell.ratio,
                spec.artefacts,
                config.retrain_epochs or 0,
            )
            for entry in cells
            if entry.block == number
        )
        lines.append(
            f"{config.network} on {config.data}: {config.checkpoints} networks {trained}, "
            f"scored by {', '.join(config.methods)}; {own} trials over "
            f"ratios {', '.join(f'{ratio:g}' for ratio in config.ratios)}, each retrained for "
            f"{config.retrain_epochs} epochs"
        )
    if spec.shifts:
        lines.append(f"evaluated under {', '.join(map(str, spec.shifts))}, too")
    lines.append(
        f"about {seconds / 60:.1f} minutes of training in one process, scoring and measuring not "
        f"counted; about {disk / 1e6:.1f} MB of weights and artefacts "
        f"({', '.join(spec.artefacts) or 'none'}) on disk"
    )
    return lines


def _estimates(config: RunConfig) -> tuple[float, float, nn.Module]:
    """Seconds to train a network, seconds to retrain one, and the network."""
    splits = splits_of(config)
    check_network(config, splits, weight_files(config.weights, config.checkpoints))
    model = build_network(config.network, len(splits.classes), seed=config.seed)
    images, labels = (part[: config.batch_size] for part in splits.train)
    with torch_threads(config.threads):
        for _ in range(2):  # the first one also warms up
            begin = time.perf_counter()
            torch.autograd.backward(F.cross_entropy(model(images), labels))
            step = time.perf_counter() - begin
    epoch = step * len(splits.train[0]) / len(images)
    return (config.epochs or 0) * epoch, (config.retrain_epochs or 0) * epoch, model
