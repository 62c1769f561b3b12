"""What the end-to-end benchmarks share: the trained ResNet-20, images, and provenance."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import conftest  # noqa: E402, F401  (a torchvision that imports everywhere)
import networks  # noqa: E402, F401  (for benchmarks that settle weights)

import causalprune as cp  # noqa: E402
from causalprune.experiments.model_specs import model_from  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def data_folder() -> Path:
    """Return the folder that CAUSALPRUNE_DATA names."""
    root = os.environ.get("CAUSALPRUNE_DATA")
    if root is None:
        raise SystemExit("CAUSALPRUNE_DATA: expected the folder with weights/ and cifar10-subset/")
    return Path(root)


def resnet20() -> nn.Module:
    """Return the CIFAR ResNet-20 of He et al. with published weights."""
    return model_from("resnet20", data_folder() / "weights/resnet20-12fca82f.th").eval()


def images(n: int, part: str = "train") -> tuple[Tensor, Tensor]:
    """Return the first `n` exact CIFAR-10 images of a part, normalised, and their classes."""
    subset = np.load(data_folder() / "cifar10-subset/cifar10_lossless_subset.npz")
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    pixels = (torch.from_numpy(subset[f"{part}_x"][:n]).float() / 255 - mean) / std
    return pixels, torch.from_numpy(subset[f"{part}_y"][:n]).long()


def provenance() -> str:
    """One line: commit, CPU, instruction set, compiler, torch."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    facts = cp.info()
    return (
        f"Commit {commit}, {facts['machine']['name']}, {facts['isa']}, "
        f"{facts['build']['compiler']}, torch {torch.__version__}, one thread, CPU time."
    )
