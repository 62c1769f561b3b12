"""What a study consists of: experiments on several networks and data sets, in one design."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from causalprune.errors import InvalidArgumentError
from causalprune.experiments.config import RunConfig
from causalprune.experiments.design import ASSIGNMENT, Cell, derive_seed
from causalprune.experiments.trial_artefacts import ARTEFACT_KINDS

__all__ = ["DESIGNS", "NOISE", "Shift", "StudyCell", "StudySpec", "study_cells"]

DESIGNS = ("grid", "randomised")
NOISE = "noise"
"""Name of the shift that is uniform noise; its severity is a half width."""

_RANDOMISED = "method and ratio drawn uniformly within checkpoint, random order"


@dataclass(frozen=True)
class Shift:
    """A corruption of the test images with its severity, or noise with its level.

    Attributes
    ----------
    name : str
        A key of :data:`~causalprune.experiments.CORRUPTIONS`, or ``"noise"``.
    severity : int or float
        From 1 to 5; for noise the half width of what is added to every value of the images as
        the network takes them (standardised): uniform in [-severity, severity], not clipped,
        as in Lost in Pruning.

    Examples
    --------
    >>> Shift.parse("fog:3"), str(Shift("snow", 1))
    (Shift(name='fog', severity=3), 'snow:1')
    >>> Shift.parse("noise:0.10"), str(Shift("noise", 0.1))
    (Shift(name='noise', severity=0.1), 'noise:0.1')
    """

    name: str
    severity: float

    @classmethod
    def parse(cls, text: str) -> Shift:
        """Read ``"name:severity"`` or ``"noise:level"``.

        Raises
        ------
        InvalidArgumentError
            The text is something else.
        """
        name, _, severity = str(text).partition(":")
        if name == NOISE:
            return cls(name, _noise_level(severity, text))
        if not name or severity not in ("1", "2", "3", "4", "5"):
            raise InvalidArgumentError(
                f"shifts: expected name:severity with a severity from 1 to 5, got {text!r}"
            )
        return cls(name, int(severity))

    def __str__(self) -> str:
        return f"{self.name}:{self.severity!r}".removesuffix(".0")


def _noise_level(level: str, text: object) -> float:
    try:
        found = float(level)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise InvalidArgumentError(
            f"shifts: expected {NOISE}:level with a level above 0, in units of the standardised "
            f"images, got {text!r}"
        )
    return found


@dataclass(frozen=True)
class StudySpec:
    """A study: blocks of network and data set, each with checkpoints, methods and ratios.

    Attributes
    ----------
    name : str
    blocks : tuple of RunConfig
        One for each network and data set.
    design : str
        ``"grid"``: every checkpoint with every method and ratio, once. ``"randomised"``: `draws`
        trials a checkpoint, method and ratio drawn independently and uniformly, so that the
        probability of what a trial got is known whatever was drawn.
    draws : int or None
        Trials a checkpoint, in a randomised design.
    shifts : tuple of Shift
        Corruptions and noise levels under which every pruned network is evaluated, too.
    artefacts : tuple of str
        What every trial leaves beside its row, of
        :data:`~causalprune.experiments.trial_artefacts.ARTEFACT_KINDS`.
    seed : int
        Of the order, and of what a randomised design draws.

    Raises
    ------
    InvalidArgumentError
        On construction, when a value is out of range or two blocks are equal.

    Examples
    --------
    >>> spec = StudySpec("small", (RunConfig(ratios=(0.0, 0.5), methods=("l1",)),))
    >>> len(study_cells(spec)), StudySpec.from_dict(spec.to_dict()) == spec
    (6, True)
    """

    name: str
    blocks: tuple[RunConfig, ...]
    design: str = "grid"
    draws: int | None = None
    shifts: tuple[Shift, ...] = ()
    artefacts: tuple[str, ...] = ("plan",)
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        object.__setattr__(self, "shifts", tuple(self.shifts))
        object.__setattr__(self, "artefacts", tuple(self.artefacts))
        if not isinstance(self.name, str) or not self.name.strip():
            raise InvalidArgumentError(f"name: expected a name, got {self.name!r}")
        if not self.blocks:
            raise InvalidArgumentError("blocks: expected at least one, got none")
        places = [(block.network, block.data) for block in self.blocks]
        if len(set(places)) < len(places):
            raise InvalidArgumentError(
                "blocks: expected every network and data set together once, got "
                + ", ".join(f"{network} on {data}" for network, data in places)
            )
        if self.design not in DESIGNS:
            raise InvalidArgumentError(
                f"design: expected one of {', '.join(DESIGNS)}, got {self.design!r}"
            )
        drawn = self.design == "randomised"
        whole = isinstance(self.draws, int) and not isinstance(self.draws, bool)
        if drawn and not (whole and (self.draws or 0) >= 1):
            raise InvalidArgumentError(
                f"draws: expected trials a checkpoint, at least 1, got {self.draws!r}"
            )
        if not drawn and self.draws is not None:
            raise InvalidArgumentError(
                f"draws: only design 'randomised' draws; expected none, got {self.draws!r}"
            )
        if len(set(self.shifts)) < len(self.shifts):
            raise InvalidArgumentError("shifts: expected every shift once")
        known = [kind for kind in ARTEFACT_KINDS if kind in self.artefacts]
        if sorted(known) != sorted(map(str, self.artefacts)):
            raise InvalidArgumentError(
                f"artefacts: expected some of {', '.join(ARTEFACT_KINDS)}, each once, got "
                f"{list(self.artefacts)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the study as values that JSON can hold."""
        values = {
            "name": self.name,
            "blocks": [block.to_dict() for block in self.blocks],
            "design": self.design,
            "draws": self.draws,
            "shifts": [str(shift) for shift in self.shifts],
            "seed": self.seed,
        }
        # Studies of earlier releases kept none, and their descriptions do not say so.
        return values | ({"artefacts": list(self.artefacts)} if self.artefacts else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StudySpec:
        """Rebuild a study from `to_dict`'s result."""
        return cls(
            name=values["name"],
            blocks=tuple(RunConfig.from_dict(block) for block in values["blocks"]),
            design=values["design"],
            draws=values["draws"],
            shifts=tuple(Shift.parse(shift) for shift in values["shifts"]),
            artefacts=tuple(values.get("artefacts", ())),
            seed=values["seed"],
        )


@dataclass(frozen=True)
class StudyCell:
    """One trial of a study.

    Attributes
    ----------
    block : int
        Which network and data set.
    cell : Cell
        The trial in the block's experiment; `trial` and `order` count through the study.
    assignment : str
    probability : float
        Of this method and ratio, given the checkpoint.
    """

    block: int
    cell: Cell
    assignment: str
    probability: float


def study_cells(spec: StudySpec) -> tuple[StudyCell, ...]:
    """List the trials of a study in the order in which they are to run.

    Parameters
    ----------
    spec : StudySpec

    Returns
    -------
    tuple of StudyCell
        In an order drawn at random over the whole study.

    Examples
    --------
    >>> block = RunConfig(ratios=(0.0, 0.5), methods=("l1", "random"), checkpoints=2)
    >>> cells = study_cells(StudySpec("drawn", (block,), design="randomised", draws=5))
    >>> len(cells), {cell.probability for cell in cells}
    (10, {0.25})
    """
    plain = [entry for number in range(len(spec.blocks)) for entry in _of_block(spec, number)]
    generator = np.random.Generator(np.random.PCG64(derive_seed(spec.seed, "order")))
    positions = generator.permutation(len(plain))
    assignment = ASSIGNMENT if spec.design == "grid" else _RANDOMISED
    cells = []
    for trial, (order, (number, checkpoint, method, ratio, again)) in enumerate(
        zip(positions, plain, strict=True)
    ):
        block = spec.blocks[number]
        seed = derive_seed(block.seed, "trial", checkpoint, method, ratio, *again)
        cell = Cell(trial, int(order), checkpoint, method, ratio, seed)
        probability = 1.0 / (len(block.methods) * len(block.ratios))
        cells.append(StudyCell(number, cell, assignment, probability))
    return tuple(sorted(cells, key=lambda entry: entry.cell.order))


_Entry = tuple[int, int, str, float, tuple[int, ...]]


def _of_block(spec: StudySpec, number: int) -> list[_Entry]:
    block = spec.blocks[number]
    if spec.design == "grid":
        factors = product(range(block.checkpoints), block.methods, block.ratios)
        return [(number, checkpoint, method, ratio, ()) for checkpoint, method, ratio in factors]
    generator = np.random.Generator(np.random.PCG64(derive_seed(spec.seed, "draws", number)))
    drawn: list[_Entry] = []
    for checkpoint in range(block.checkpoints):
        for again in range(spec.draws or 0):
            method = block.methods[int(generator.integers(len(block.methods)))]
            ratio = block.ratios[int(generator.integers(len(block.ratios)))]
            drawn.append((number, checkpoint, method, ratio, (again,)))
    return drawn
