"""A plan: which units go, and what is left of the network then."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from causalprune.errors import RecordError
from causalprune.files import replace_file
from causalprune.measures import Latency
from causalprune.pruning.footprint import Footprint, LayerSize, Sizes
from causalprune.pruning.plan_differences import PlanDifference, difference
from causalprune.pruning.plan_tables import plan_table

__all__ = ["LayerRow", "Plan", "PlanRow", "mismatch", "text_of", "with_removal"]

SCHEMA = 2
READ_SCHEMAS = (1, 2)
"""A plan of schema 1 knows nothing of layers, rounding, protection, memory and latency."""


@dataclass(frozen=True)
class PlanRow:
    """One group of a plan: how many units it has, and how many of them stay.

    `held` is the protected name because of which all of them do, as it was given; empty where
    none is.
    """

    group: str
    kind: str
    units: int
    kept: int
    held: str = ""


@dataclass(frozen=True)
class LayerRow:
    """One layer of a plan: what it holds and computes itself, before and after.

    Parameters, multiply-accumulates of one image, and bytes of parameters and buffers.
    """

    layer: str
    parameters: int
    parameters_after: int
    macs: int
    macs_after: int
    bytes: int
    bytes_after: int


@dataclass(frozen=True)
class Plan:
    """What to remove from a network, and what that saves.

    Attributes
    ----------
    remove : Mapping of str to tuple of int
        Group name to the indices of the units that go, ascending; only groups that lose some.
    ratio : float or None
        The target: fraction of `of` to remove. ``None`` where `scope` says it layer by layer.
    achieved_ratio : float
        The fraction of `of` that `remove` removes.
    reached : bool
        ``False`` when all that may be removed falls short of the target by more than 1 % of it.
        The steps in which units go may still miss a target that is reached: see `deviation`.
    of : str
        ``"parameters"``, ``"macs"``, ``"memory"``, ``"latency"`` or ``"units"``.
    scope : str or Mapping of str to float
        ``"global"``, ``"layer"``, or the fraction of its units that each named layer shall lose.
    method : str
        Scoring method of the ranking.
    before, after : Footprint
        Size of the network.
    table : tuple of PlanRow
        One row per group whose units can be removed for good.
    fingerprint : str
        :func:`causalprune.scoring.fingerprint` of the network that the plan is for.
    example_shape : tuple of int
        Shape of one input image, with the batch dimension.
    example_dtype : str
    round_to : int
        Groups that lose units keep a multiple of this many channels; see
        :func:`causalprune.pruning.plan`.
    protected : Mapping of str to tuple of str
        Every protected name, as it was given, to the groups that it holds: one protected layer of
        a coupled group holds them all.
    layers : tuple of LayerRow
        One row per module that holds or computes something itself; they add up to `before` and
        `after`. The network itself is called ``""``.
    latency_before, latency_after : Latency or None
        What was measured, in alternation, for ``of="latency"``.

    Examples
    --------
    >>> import torch
    >>> from causalprune.pruning import plan
    >>> from causalprune.scoring import score
    >>> model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> scores = score(model, torch.arange(12.0).view(3, 4), "l1")
    >>> half, most = (plan(model, scores, ratio, of="units") for ratio in (0.5, 0.9))
    >>> [(row.layer, row.parameters, row.parameters_after) for row in half.layers]
    [('0', 50, 25), ('2', 22, 12)]
    >>> [(group.kept, group.other_kept, group.only) for group in half.diff(most).groups]
    [(5, 1, ())]
    >>> Plan.from_json(half.to_json()) == half
    True
    """

    remove: Mapping[str, tuple[int, ...]]
    ratio: float | None
    achieved_ratio: float
    reached: bool
    of: str
    scope: str | Mapping[str, float]
    method: str
    before: Footprint
    after: Footprint
    table: tuple[PlanRow, ...]
    fingerprint: str
    example_shape: tuple[int, ...]
    example_dtype: str = "float32"
    round_to: int = 1
    protected: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    layers: tuple[LayerRow, ...] = ()
    latency_before: Latency | None = None
    latency_after: Latency | None = None

    @property
    def deviation(self) -> float:
        """Achieved ratio minus target; 0 where the target is given layer by layer."""
        return 0.0 if self.ratio is None else self.achieved_ratio - self.ratio

    def __str__(self) -> str:
        """Return the plan as tables: groups, layers that change, totals, and the target."""
        return plan_table(self)

    def diff(self, other: Plan) -> PlanDifference:
        """Compare with another plan for the same network; the result is printable.

        Raises
        ------
        InvalidArgumentError
            If `other` is no plan, or one for a network with other parameters.
        """
        return difference(self, other)

    def to_json(self) -> str:
        """Return the plan as JSON text, with a schema version.

        Every unit that goes and every row of a table has a line of its own, and the order is that
        of the network, so that two texts compare line by line.
        """
        content = {"schema": SCHEMA, **asdict(self)}
        tables = {name: content.pop(name) for name in ("table", "layers")}
        lines = [json.dumps(content, indent=2)[:-2]]
        for name, rows in tables.items():
            told = ",\n".join(f"    {json.dumps(row)}" for row in rows)
            lines.append(f'  "{name}": [\n{told}\n  ]' if rows else f'  "{name}": []')
        return ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan back from :meth:`to_json`.

        Raises
        ------
        RecordError
            If the text is no plan, or of another schema.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            schema = content.pop("schema")
            if schema not in READ_SCHEMAS:
                raise RecordError(f"plan: expected schema {SCHEMA}, got {schema!r}")
            _check_numbers(content)
            content.update(
                remove={str(g): tuple(units) for g, units in content["remove"].items()},
                before=Footprint(**content["before"]),
                after=Footprint(**content["after"]),
                table=tuple(PlanRow(**row) for row in content["table"]),
                example_shape=tuple(content["example_shape"]),
                protected={n: tuple(gs) for n, gs in content.get("protected", {}).items()},
                layers=tuple(LayerRow(**row) for row in content.get("layers", ())),
            )
            for name in ("latency_before", "latency_after"):
                if content.get(name) is not None:
                    content[name] = Latency(**content[name])
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, RecordError):
                raise
            raise RecordError(f"plan: expected the JSON of a plan, got {error}") from error

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the plan to `path` as JSON, atomically; returns the path."""
        return replace_file(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan that :meth:`save` wrote.

        Raises
        ------
        RecordError
            If the file is missing, broken, or of another schema.
        """
        return cls.from_json(text_of(path, "plan"))


def text_of(path: str | os.PathLike[str], what: str) -> str:
    """Read a file that should hold the JSON of a `what`.

    Raises
    ------
    RecordError
        If it cannot be read, or is no text.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: expected a {what}, got {error}") from error


def _check_numbers(content: Mapping[str, Any]) -> None:
    """Refuse units and sizes that are no integers: they would index something else."""
    lists = [*content["remove"].values(), content["example_shape"]]
    if any(type(number) is not int or number < 0 for numbers in lists for number in numbers):
        raise RecordError("plan: expected whole numbers as units and as example_shape")


def with_removal(plan: Plan, remove: Mapping[str, Sequence[int]], sizes: Sizes) -> Plan:
    """Return `plan` with other units to remove, and the sizes, rows and ratio that go with them.

    Memory and latency, which have to be measured, are left out of the result.

    Parameters
    ----------
    plan : Plan
        Its groups are those of `sizes`.
    remove : Mapping of str to sequence of int
        Group name to units.
    sizes : Sizes
        Of the whole network.
    """
    ordered = {
        row.group: tuple(sorted({int(unit) for unit in remove[row.group]}))
        for row in plan.table
        if len(remove.get(row.group, ()))
    }
    gone = [(group, unit) for group, units in ordered.items() for unit in units]
    before, after = replace(plan.before, memory=None), sizes.without(gone)
    achieved = 0.0
    if plan.of in ("parameters", "macs", "units") and getattr(before, plan.of):
        achieved = 1 - getattr(after, plan.of) / getattr(before, plan.of)
    left = sizes.layers_without(gone)
    return replace(
        plan,
        remove=ordered,
        achieved_ratio=achieved,
        before=before,
        after=after,
        table=tuple(
            replace(row, kept=row.units - len(ordered.get(row.group, ()))) for row in plan.table
        ),
        layers=tuple(_layer_row(name, sizes.layers[name], left[name]) for name in sizes.layers),
        latency_before=None,
        latency_after=None,
    )


def _layer_row(name: str, before: LayerSize, after: LayerSize) -> LayerRow:
    return LayerRow(
        name,
        *(before.parameters, after.parameters),
        *(before.macs, after.macs),
        *(before.bytes, after.bytes),
    )


def mismatch(plan: Plan, model: nn.Module) -> str:
    """Say where the layers of a network differ from those that a plan is for; ``""`` if nowhere.

    Parameters
    ----------
    plan : Plan
        One without rows for the layers (schema 1) tells nothing.
    model : nn.Module
    """
    here, told, seen = dict[str, int](), [], set[int]()
    for name, module in model.named_modules():  # a shared parameter counts once, as in the plan
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(id(parameter) for parameter in own)
        here[name] = sum(parameter.numel() for parameter in own)
    for row in plan.layers:
        if row.parameters and row.layer not in here:
            told.append(f"it has no layer {row.layer!r}")
        elif row.parameters != here.get(row.layer, 0):
            told.append(
                f"{row.layer!r} has {here[row.layer]:,} parameters instead of {row.parameters:,}"
            )
    return "; ".join(told[:3]) + ("; ..." if len(told) > 3 else "")
