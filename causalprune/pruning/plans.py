"""A plan: which units go, and what is left of the network then."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from causalprune.errors import RecordError
from causalprune.files import replace_file
from causalprune.pruning.footprint import Footprint

__all__ = ["Plan", "PlanRow"]

SCHEMA = 1


@dataclass(frozen=True)
class PlanRow:
    """One group of a plan: how many units it has, and how many of them stay."""

    group: str
    kind: str
    units: int
    kept: int


@dataclass(frozen=True)
class Plan:
    """What to remove from a network, and what that saves.

    Attributes
    ----------
    remove : Mapping of str to tuple of int
        Group name to the indices of the units that go, ascending; only groups that lose some.
    ratio : float
        The target: fraction of `of` to remove.
    achieved_ratio : float
        The fraction that `remove` removes.
    reached : bool
        ``False`` when removing all that may be removed falls short of the target.
    of : str
        ``"parameters"``, ``"macs"`` or ``"units"``.
    scope : str
        ``"global"`` or ``"layer"``.
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
    """

    remove: Mapping[str, tuple[int, ...]]
    ratio: float
    achieved_ratio: float
    reached: bool
    of: str
    scope: str
    method: str
    before: Footprint
    after: Footprint
    table: tuple[PlanRow, ...]
    fingerprint: str
    example_shape: tuple[int, ...]
    example_dtype: str = "float32"

    def __str__(self) -> str:
        """Return the plan as a table: one row per group, then the totals and the target."""
        width = max([len("parameters"), *(len(row.group) for row in self.table)])
        lines = [f"{'group':<{width}}  {'kind':<6}  {'units':>12}  {'kept':>12}  removed"]
        for row in self.table:
            gone = 1 - row.kept / row.units
            sizes = f"{row.units:>12,}  {row.kept:>12,}  {gone:.1%}"
            lines.append(f"{row.group:<{width}}  {row.kind:<6}  {sizes}")
        for name in ("parameters", "macs", "bytes"):
            before, after = getattr(self.before, name), getattr(self.after, name)
            gone = 1 - after / before if before else 0.0
            lines.append(f"{name:<{width}}  {'':<6}  {before:>12,}  {after:>12,}  {gone:.1%}")
        lines.append(
            f"target: {self.ratio:.1%} of {self.of} by {self.method} ({self.scope}); "
            f"achieved {self.achieved_ratio:.1%}"
            + ("" if self.reached else "; NOT REACHED: nothing more may be removed")
        )
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return the plan as JSON text, with a schema version."""
        content = {"schema": SCHEMA, **asdict(self)}
        return json.dumps(content, indent=2) + "\n"

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
            if schema != SCHEMA:
                raise RecordError(f"plan: expected schema {SCHEMA}, got {schema!r}")
            remove = {str(g): tuple(int(u) for u in us) for g, us in content["remove"].items()}
            content.update(
                remove=remove,
                before=Footprint(**content["before"]),
                after=Footprint(**content["after"]),
                table=tuple(PlanRow(**row) for row in content["table"]),
                example_shape=tuple(int(size) for size in content["example_shape"]),
            )
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
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecordError(f"{path}: expected a plan, got {error}") from error
        return cls.from_json(text)
