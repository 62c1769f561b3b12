"""How a pruning run proceeds: at once, in rounds, or by re-scoring and removing in chunks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from causalprune.errors import InvalidArgumentError, UnknownNameError

__all__ = [
    "SCHEDULES",
    "TOLERANCE",
    "TOLERANCE_SEEN",
    "Iterative",
    "OneShot",
    "Progressive",
    "Schedule",
    "is_guarded",
    "resolve_schedule",
]


@dataclass(frozen=True)
class OneShot:
    """Score once, remove everything at once."""


@dataclass(frozen=True)
class Iterative:
    """Score, prune and retrain in rounds.

    Attributes
    ----------
    rounds : int
        How many; each keeps the same fraction of what is left, ``(1 - ratio) ** (1 / rounds)``.
    """

    rounds: int = 5


@dataclass(frozen=True)
class Progressive:
    """Score the network as it stands, remove a chunk, look at held-out images, and so on.

    Attributes
    ----------
    chunk : float
        A step takes this fraction of the original network's parameters, MACs or units, whichever
        the target counts, but for the excess of its last unit; and at most this fraction of its
        units, so that a layer whose units cost next to nothing does not go at once.
    rounds : int or None
        Give it instead of `chunk` for so many steps of ``ratio / rounds``.
    guard : bool or None
        Whether a chunk that costs too much held-out accuracy is reverted, and a layer frozen.
        Default: for ``"cswap"``, and where held-out images are given.
    tolerance : float or None
        How far held-out accuracy may fall below that of the original network, absolute. Default:
        0.01 on held-out images that are given, 0.05 on those taken from the data, which the
        network was most likely trained on: such images it forgets first.
    guard_level : float
        Level of the paired one-sided test on the held-out images by which a fall counts as one by
        more than `tolerance`, in (0, 1); with 0.5 it counts as soon as the figures say so.
    held_out_fraction : float
        Part of the data that is held out, its end, where the guard is on and no held-out images
        are given.
    blame : str
        What a reverted chunk freezes. ``"layer"``: of its groups the one whose units alone cost
        most held-out accuracy. ``"chunk"``: all its groups.
    halvings : int
        How often a chunk that costs too much is tried again at half its size before anything is
        frozen.
    by_category : bool or None
        Take units by category, detrimental, neutral, critical, instead of by importance.
        Default: for ``"cswap"``.
    per_cost : bool or None
        Rank, within a category, by what a unit is worth per parameter or MAC that it saves.
        Default: where the method has an effect scale, as :func:`causalprune.pruning.plan` does.
    allow_critical : bool
        Whether critical units may go, by category; without, the run ends when only they are left.
    """

    chunk: float = 0.05
    rounds: int | None = None
    guard: bool | None = None
    tolerance: float | None = None
    guard_level: float = 0.05
    held_out_fraction: float = 0.2
    blame: str = "layer"
    halvings: int = 0
    by_category: bool | None = None
    per_cost: bool | None = None
    allow_critical: bool = False


TOLERANCE = 0.01
"""Of a guard on images that the network has never seen."""

TOLERANCE_SEEN = 0.05
"""Of a guard on training images. A ResNet-20 that C-SWAP has taken 40 % of the multiply-accumulates
from is 1.0 points worse on new images, but 3.3 on images that it was trained on
(benchmarks/results/cswap_resnet20.md)."""

Schedule = OneShot | Iterative | Progressive

SCHEDULES: dict[str, type[OneShot] | type[Iterative] | type[Progressive]] = {
    "one_shot": OneShot,
    "progressive": Progressive,
    "iterative": Iterative,
}


def resolve_schedule(
    schedule: str | Schedule | None, method: str, options: Mapping[str, Any]
) -> tuple[str, Schedule, dict[str, Any]]:
    """Return the name of a schedule, itself with its options, and the options that are left.

    Raises
    ------
    UnknownNameError
        If there is no such schedule.
    InvalidArgumentError
        If an option of the schedule is out of range.

    Examples
    --------
    >>> resolve_schedule("iterative", "conductance", {"rounds": 3, "steps": 8})
    ('iterative', Iterative(rounds=3), {'steps': 8})
    """
    if schedule is None:
        schedule = "progressive" if method == "cswap" else "one_shot"
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise UnknownNameError("schedule", schedule, SCHEDULES)
        kind = SCHEDULES[schedule]
        own = {field.name for field in dataclasses.fields(kind)} & set(options)
        chosen: Schedule = kind(**{name: options[name] for name in own})
        left = {name: value for name, value in options.items() if name not in own}
    elif isinstance(schedule, tuple(SCHEDULES.values())):
        chosen, left = schedule, dict(options)
    else:
        raise InvalidArgumentError(
            f"schedule: expected one of {', '.join(SCHEDULES)}, got {type(schedule).__name__}"
        )
    _check(chosen)
    name = next(name for name, kind in SCHEDULES.items() if type(chosen) is kind)
    return name, chosen, left


def is_guarded(schedule: Schedule, method: str, *, held_out: bool) -> bool:
    """Tell whether a run looks at held-out accuracy before a chunk stays out.

    Parameters
    ----------
    schedule : Schedule
    method : str
    held_out : bool
        Whether images are held out for it.

    Examples
    --------
    >>> is_guarded(Progressive(), "cswap", held_out=False)
    True
    >>> is_guarded(OneShot(), "cswap", held_out=True)
    False
    """
    if not isinstance(schedule, Progressive):
        return False
    if schedule.guard is None:
        return method == "cswap" or held_out
    return schedule.guard


def _check(schedule: Schedule) -> None:
    rounds = getattr(schedule, "rounds", None)
    if rounds is not None and not (type(rounds) is int and rounds >= 1):
        raise InvalidArgumentError(f"rounds: expected a positive integer, got {rounds!r}")
    if not isinstance(schedule, Progressive):
        if isinstance(schedule, Iterative) and rounds is None:
            raise InvalidArgumentError("rounds: expected a positive integer, got None")
        return
    for name in ("chunk", "held_out_fraction", "guard_level"):
        value = getattr(schedule, name)
        if not _is_number(value) or not 0 < value < 1:
            raise InvalidArgumentError(f"{name}: expected a number in (0, 1), got {value!r}")
    if schedule.blame not in ("layer", "chunk"):
        raise UnknownNameError("blame", schedule.blame, ("layer", "chunk"))
    if type(schedule.halvings) is not int or schedule.halvings < 0:
        raise InvalidArgumentError(
            f"halvings: expected an integer of at least 0, got {schedule.halvings!r}"
        )
    for name in ("guard", "by_category", "per_cost"):
        if not any(getattr(schedule, name) is value for value in (None, True, False)):
            raise InvalidArgumentError(
                f"{name}: expected True, False or None, got {getattr(schedule, name)!r}"
            )
    if not isinstance(schedule.allow_critical, bool):
        raise InvalidArgumentError(
            f"allow_critical: expected True or False, got {schedule.allow_critical!r}"
        )
    tolerance = schedule.tolerance
    if tolerance is not None and (not _is_number(tolerance) or not 0 <= tolerance <= 1):
        raise InvalidArgumentError(
            f"tolerance: expected a fraction of the images in [0, 1], got {tolerance!r}"
        )


def _is_number(value: object) -> bool:
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and math.isfinite(value)  # type: ignore[arg-type]
