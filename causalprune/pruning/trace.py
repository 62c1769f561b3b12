"""The trace of a pruning run: every step, what it removed, and why."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causalprune.errors import RecordError
from causalprune.files import replace_file
from causalprune.pruning.footprint import Footprint
from causalprune.pruning.plans import Plan, text_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Removal", "Step", "Trace"]

SCHEMA = 1


@dataclass(frozen=True)
class Removal:
    """One unit, and what its score said when it was taken.

    Attributes
    ----------
    group : str
    unit : int
        Its index in the original network.
    importance : float
    effect, low, high : float
        Mean over images of Y_do - Y on the network as it stood, and its interval; NaN for a
        method without an effect scale.
    category : str
        "critical", "neutral", "detrimental" or "".
    """

    group: str
    unit: int
    importance: float
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    category: str = ""


@dataclass(frozen=True)
class Step:
    """One step of a run.

    Attributes
    ----------
    verdict : str
        ``"kept"``, ``"reverted"`` (the network is as before the step), or ``"retrained"``
        (nothing was removed, the weights were trained).
    removed : tuple of Removal
        The units that were taken out, for good if the step was kept.
    footprint : Footprint
        Size of the network that was tried.
    accuracy : float or None
        Fraction of the held-out images that the network that was tried gets right; ``None``
        without held-out images.
    reason : str
        Why the step was kept or reverted.
    frozen : tuple of str
        Groups that lose no more units from here on.
    parts : Mapping of str to float
        Held-out accuracy with the units of one group alone taken out, where a step was reverted
        and the group to blame was sought.
    seconds : float
        Wall time of the step.
    """

    verdict: str
    removed: tuple[Removal, ...]
    footprint: Footprint
    accuracy: float | None = None
    reason: str = ""
    frozen: tuple[str, ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Trace:
    """What a pruning run did, step by step.

    Attributes
    ----------
    method, outcome : str
        What scored the units.
    schedule : str
        ``"one_shot"``, ``"progressive"`` or ``"iterative"``.
    compensation : str
    plan : Plan
        All kept steps as one plan, in the units of the original network:
        ``apply(original, trace.plan)`` has the structure of the result, and without compensation
        and retraining its values.
    tolerance : float or None
        How much held-out accuracy the guard lets go, absolute; ``None``: no guard.
    accuracy : float or None
        Held-out accuracy of the original network.
    steps : tuple of Step
    stopped : str
        Why the run ended; ``""`` while it goes on.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from causalprune.pruning import apply, prune
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> data = torch.randn(40, 4), torch.arange(40) % 2
    >>> small, trace = prune(
    ...     model, data, "l1", 0.4, "units", schedule="progressive", chunk=0.2, return_trace=True
    ... )
    >>> [len(step.removed) for step in trace.steps], trace.stopped
    ([2, 2], 'target reached')
    >>> bool(torch.equal(apply(model, Trace.from_json(trace.to_json()).plan)(data[0]),
    ...                  small(data[0])))
    True
    """

    method: str
    outcome: str
    schedule: str
    compensation: str
    plan: Plan
    tolerance: float | None = None
    accuracy: float | None = None
    steps: tuple[Step, ...] = ()
    stopped: str = ""

    @property
    def frozen(self) -> tuple[str, ...]:
        """Groups that were frozen, in the order in which it happened."""
        return tuple(name for step in self.steps for name in step.frozen)

    @property
    def frame(self) -> pd.DataFrame:
        """One row per unit that a step took out, with what its score said.

        Columns: ``step`` (from 0), ``verdict``, ``group``, ``unit`` (in the original network),
        ``effect``, ``low``, ``high``, ``importance``, ``category``.
        """
        import pandas as pd

        columns = (
            "step verdict group unit effect low high importance category".split()  # noqa: SIM905
        )
        rows = [
            {"step": number, "verdict": step.verdict, **asdict(removal)}
            for number, step in enumerate(self.steps)
            for removal in step.removed
        ]
        return pd.DataFrame(rows, columns=columns)

    @property
    def table(self) -> pd.DataFrame:
        """One row per step.

        Columns: ``step``, ``verdict``, ``units`` (taken out), ``parameters``, ``macs``,
        ``bytes`` (of the network that was tried), ``accuracy`` (held out), ``frozen``,
        ``reason``, ``seconds``.
        """
        import pandas as pd

        columns = (
            "step verdict units parameters macs bytes accuracy frozen reason seconds".split()  # noqa: SIM905
        )
        rows = [
            {
                "step": number,
                "verdict": step.verdict,
                "units": len(step.removed),
                "parameters": step.footprint.parameters,
                "macs": step.footprint.macs,
                "bytes": step.footprint.bytes,
                "accuracy": math.nan if step.accuracy is None else step.accuracy,
                "frozen": ", ".join(step.frozen),
                "reason": step.reason,
                "seconds": step.seconds,
            }
            for number, step in enumerate(self.steps)
        ]
        return pd.DataFrame(rows, columns=columns)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the run; returns the Figure, and writes it to `path` where one is given.

        Above: held-out accuracy against the MACs that are gone, kept steps joined, coloured by
        the category of most of their units, reverted and retrained ones marked. Below: the
        fraction of its units that every group keeps, step by step.

        Raises
        ------
        MissingDependencyError
            If matplotlib is not installed.
        """
        from causalprune.pruning.trace_figure import trace_figure

        figure = trace_figure(self)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def to_json(self) -> str:
        """Return the trace as JSON text, with a schema version."""
        content = {
            "schema": SCHEMA,
            "method": self.method,
            "outcome": self.outcome,
            "schedule": self.schedule,
            "compensation": self.compensation,
            "tolerance": self.tolerance,
            "accuracy": self.accuracy,
            "stopped": self.stopped,
            "plan": json.loads(self.plan.to_json()),
            "steps": [_storable(asdict(step)) for step in self.steps],
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """Read a trace back from :meth:`to_json`.

        Raises
        ------
        RecordError
            If the text is no trace, or of another schema.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            schema = content.pop("schema")
            if schema != SCHEMA:
                raise RecordError(f"trace: expected schema {SCHEMA}, got {schema!r}")
            plan = Plan.from_json(json.dumps(content.pop("plan")))
            steps = tuple(_step(step) for step in content.pop("steps"))
            return cls(**content, plan=plan, steps=steps)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, RecordError):
                raise
            raise RecordError(f"trace: expected the JSON of a trace, got {error!r}") from error

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the trace to `path` as JSON, atomically; returns the path."""
        return replace_file(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Read a trace that :meth:`save` wrote.

        Raises
        ------
        RecordError
            If the file is missing, broken, or of another schema.
        """
        return cls.from_json(text_of(path, "trace"))


def _storable(step: dict[str, Any]) -> dict[str, Any]:
    """JSON knows neither NaN nor infinity: null, and the name of the number."""
    step["removed"] = [
        {k: _number(v) if isinstance(v, float) else v for k, v in removal.items()}
        for removal in step["removed"]
    ]
    return step


def _number(value: float) -> float | str | None:
    return value if math.isfinite(value) else None if math.isnan(value) else str(value)


def _removal(content: Mapping[str, Any]) -> Removal:
    numbers = {
        name: math.nan if content[name] is None else float(content[name])
        for name in ("importance", "effect", "low", "high")
    }
    return Removal(**{**content, **numbers})


def _step(content: Mapping[str, Any]) -> Step:
    known = {
        **content,
        "removed": tuple(_removal(removal) for removal in content["removed"]),
        "frozen": tuple(content["frozen"]),
        "footprint": Footprint(**content["footprint"]),
    }
    return Step(**known)
