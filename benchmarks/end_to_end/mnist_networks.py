"""What the MNIST benchmarks share: trained networks, kept between runs, and their intervals."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from causalprune.experiments import DataSplits, build_network, evaluate, load_data, train  # noqa: E402
from causalprune.files import replace_file  # noqa: E402
from causalprune.scoring.intervals import student_t_quantile  # noqa: E402

CALIBRATION = 5000
"""Training images that no network is fitted to; scores are taken on them."""


def options(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, default=3, help="trained networks")
    parser.add_argument("--cache", type=Path, help="folder that keeps networks and figures")
    parser.add_argument("--first", type=int, default=0, help="first of the seeds")
    return parser


def digits() -> DataSplits:
    """Return MNIST: 55,000 images to train on, 5,000 to score on, 10,000 to judge on."""
    return load_data("mnist", calibration=CALIBRATION)


def trained(
    name: str, seed: int, splits: DataSplits, epochs: int, cache: Path | None
) -> tuple[nn.Module, float]:
    """Train a network by Adam, or read it from the cache; return its test accuracy beside it."""
    model = build_network(name, seed=seed)
    file = None if cache is None else cache / f"{name}-{epochs}-{seed}.pt"
    if file is not None and file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
    else:
        train(model, splits.train, epochs=epochs, learning_rate=1e-3, batch_size=128, seed=seed)
        if file is not None:
            content = io.BytesIO()
            torch.save(model.state_dict(), content)
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, content.getvalue())
    accuracy = evaluate(model.eval(), splits.test)
    print(f"{name}, seed {seed}: {accuracy:.2%}", flush=True)
    return model, accuracy


def remembered(
    cache: Path | None, name: str, measure: Callable[[], Mapping[str, float]]
) -> dict[str, float]:
    """Return what `measure` finds, or what it found in an earlier run with this cache."""
    file = None if cache is None else cache / f"{name}.json"
    if file is not None and file.exists():
        return dict(json.loads(file.read_text()))
    found = dict(measure())
    print(name, *(f"{key} {value:.4f}" for key, value in found.items()), sep="  ", flush=True)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps(found, indent=1) + "\n")
    return found


def mean_and_interval(values: Sequence[float]) -> str:
    """Mean in percent with the half-width of its 95 % Student-t interval over networks."""
    sample = torch.tensor(values, dtype=torch.float64) * 100
    if len(sample) < 2:
        return f"{float(sample.mean()):.2f}"
    half = student_t_quantile(0.975, len(sample) - 1) * float(sample.std()) / len(sample) ** 0.5
    return f"{float(sample.mean()):.2f} ± {half:.2f}"
