"""Which trials an experiment consists of, in which order, from which seeds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import product

import numpy as np

from causalprune.experiments.config import RunConfig

__all__ = ["ASSIGNMENT", "Cell", "derive_seed", "trial_cells"]

ASSIGNMENT = "full factorial within checkpoint, random order"


@dataclass(frozen=True)
class Cell:
    """One trial of the design.

    Attributes
    ----------
    trial : int
        Number of the cell in the design.
    order : int
        Position at which it runs.
    checkpoint : int
        Which trained network.
    method : str
        Which scores rank its units.
    ratio : float
        Fraction to remove.
    seed : int
        Seed of its retraining.
    """

    trial: int
    order: int
    checkpoint: int
    method: str
    ratio: float
    seed: int


def derive_seed(seed: int, *parts: object) -> int:
    """Derive an independent seed for one purpose from the experiment's seed.

    Parameters
    ----------
    seed : int
        The experiment's seed.
    *parts : object
        What it is for; compared by ``repr``.

    Returns
    -------
    int
        Between 0 and 2**31 - 1; the same on every machine.

    Examples
    --------
    >>> derive_seed(0, "checkpoint", 1) == derive_seed(0, "checkpoint", 1)
    True
    >>> derive_seed(0, "checkpoint", 1) == derive_seed(0, "checkpoint", 2)
    False
    """
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF


def trial_cells(config: RunConfig) -> tuple[Cell, ...]:
    """List the trials of an experiment in the order in which they are to run.

    Parameters
    ----------
    config : RunConfig
        The experiment.

    Returns
    -------
    tuple of Cell
        Every checkpoint with every method and every ratio, once, in an order drawn at random
        over the whole experiment, so that a drift of the machine is not taken for an effect.

    Examples
    --------
    >>> cells = trial_cells(RunConfig(ratios=(0.0, 0.5), methods=("l1",), checkpoints=2))
    >>> sorted((cell.checkpoint, cell.ratio) for cell in cells)
    [(0, 0.0), (0, 0.5), (1, 0.0), (1, 0.5)]
    """
    plain = list(product(range(config.checkpoints), config.methods, config.ratios))
    generator = np.random.Generator(np.random.PCG64(derive_seed(config.seed, "order")))
    positions = generator.permutation(len(plain))
    cells = [
        Cell(
            trial=trial,
            order=int(position),
            checkpoint=checkpoint,
            method=method,
            ratio=ratio,
            seed=derive_seed(config.seed, "trial", checkpoint, method, ratio),
        )
        for trial, (position, (checkpoint, method, ratio)) in enumerate(
            zip(positions, plain, strict=True)
        )
    ]
    return tuple(sorted(cells, key=lambda cell: cell.order))
