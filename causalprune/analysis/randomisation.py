"""How treatments were assigned, and the test that assigns them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from causalprune.analysis.effects import Design, block_codes, clusters_of

__all__ = [
    "Assignment",
    "assignment_of",
    "randomisation_p_value",
    "shuffle",
    "shuffled_slopes",
    "two_sided",
]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Assignment:
    """How a treatment may be reshuffled without changing the experiment's design.

    Attributes
    ----------
    units : array [n] of int64
        Rows with the same code received their treatment together.
    blocks : array [n] of int64
        Treatments may change places only between units of the same block.
    whole : str
        What units of several rows are; empty where a unit is a row.
    """

    units: NDArray[np.int64]
    blocks: NDArray[np.int64]
    whole: str = ""

    @property
    def where(self) -> str:
        """Where treatments change places, in words."""
        if self.whole:
            return f"between whole {self.whole}"
        return "inside each block" if len(np.unique(self.blocks)) > 1 else "over all trials"


def assignment_of(frame: pd.DataFrame, treatment: str, covariates: Sequence[str]) -> Assignment:
    """Find what was assigned: trials within blocks, or whole checkpoints at once."""
    by_checkpoint = frame.groupby("checkpoint", sort=False)
    if by_checkpoint[treatment].nunique().max() > 1:
        return _by_trial(frame, treatment, covariates)
    # One treatment per checkpoint: shuffling rows would take each for an independent draw.
    fixed = [
        name
        for name in covariates
        if name != "checkpoint" and by_checkpoint[name].nunique(dropna=False).max() == 1
    ]
    return Assignment(clusters_of(frame), block_codes(frame, fixed), "checkpoints")


def _by_trial(frame: pd.DataFrame, treatment: str, covariates: Sequence[str]) -> Assignment:
    # A table by shift shows one assigned trial in several rows.
    set_once = [name for name in covariates if name != "shift"]
    if "trial" in frame and treatment != "shift":
        trials = block_codes(frame, ["checkpoint", *set_once, "trial"])
        once = frame.groupby(trials)[treatment].nunique().max() == 1
        if once and len(np.unique(trials)) < len(frame):
            return Assignment(trials, block_codes(frame, set_once), "trials")
    return Assignment(np.arange(len(frame)), block_codes(frame, covariates))


def shuffled_slopes(
    frame: pd.DataFrame,
    treatment: str,
    outcome: str,
    columns: pd.DataFrame,
    assignment: Assignment,
    *,
    seed: int,
    draws: int,
) -> Array:
    """Slopes [1 + draws] per unit of treatment: the real one first, then shuffled ones.

    Each is the least-squares coefficient of the treatment beside the constant and
    `columns`, by the theorem of Frisch, Waugh and Lovell; 0 where a shuffle leaves
    the treatment no variation of its own.
    """
    values = frame[treatment].to_numpy(dtype=float)
    target = frame[outcome].to_numpy(dtype=float)
    base = np.column_stack([np.ones(len(frame)), columns.to_numpy(dtype=float)])
    basis = np.linalg.qr(base)[0]
    residual = target - basis @ (basis.T @ target)
    rng = np.random.default_rng(seed)
    stack = np.vstack([values, *(shuffle(values, assignment, rng) for _ in range(draws))])
    stack = stack - (stack @ basis) @ basis.T
    spread = np.einsum("ij,ij->i", stack, stack)
    slopes = np.zeros(draws + 1)
    np.divide(stack @ residual, spread, out=slopes, where=spread > 1e-12)
    return slopes


def randomisation_p_value(
    frame: pd.DataFrame,
    treatment: str,
    outcome: str,
    design: Design,
    assignment: Assignment,
    *,
    seed: int = 0,
    draws: int = 1999,
) -> float | None:
    """Two-sided p-value of the slope when the treatment is reshuffled as it was assigned.

    Exact under the sharp null of no effect on any trial, whatever the number of
    checkpoints. None where no block holds two different treatments.
    """
    values = frame[treatment].to_numpy(dtype=float)
    blocks = assignment.blocks
    if not any(np.ptp(values[blocks == code]) > 0 for code in np.unique(blocks)):
        return None
    slopes = shuffled_slopes(
        frame, treatment, outcome, design.columns, assignment, seed=seed, draws=draws
    )
    return two_sided(slopes)


def two_sided(slopes: Array) -> float:
    """Share of shuffled slopes at least as large as the real one (the first), itself included."""
    # A relative allowance: equal slopes must count as ties despite rounding.
    ties = np.abs(slopes[1:]) >= abs(slopes[0]) * (1 - 1e-9)
    return float((1 + ties.sum()) / len(slopes))


def shuffle(values: Array, assignment: Assignment, rng: np.random.Generator) -> Array:
    """Exchange the treatments [n] of whole units within each block."""
    _, first, inverse = np.unique(assignment.units, return_index=True, return_inverse=True)
    per_unit, blocks = values[first], assignment.blocks[first]
    order = np.argsort(blocks, kind="stable")
    # Sorting random keys within each block is one shuffle per block, without a loop.
    shuffled = np.lexsort((rng.random(len(per_unit)), blocks))
    result = np.empty_like(per_unit)
    result[order] = per_unit[shuffled]
    return result[inverse]
