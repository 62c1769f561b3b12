"""What a cascade yields, and the folder in which a killed one finds its finished steps.

The folder holds the tensors of every finished ratio (``step-<number>-<SHA-256>.pt``) and
``cascade.json``, which names them, the arguments, and the random state behind the last one. That
file is replaced after the tensors are on disk, so that a reader finds whole steps only.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from causalprune.errors import CheckpointError, InvalidArgumentError, RecordError
from causalprune.files import replace_file
from causalprune.pruning.checkpoints import check_same_run, random_state
from causalprune.pruning.footprint import Footprint
from causalprune.pruning.masks import WeightMasks
from causalprune.pruning.plans import Plan
from causalprune.pruning.trace import Removal, Step

__all__ = ["CascadeFolder", "CascadeStep", "check_ratios", "geometric_ratios", "open_folder"]

SCHEMA = 1
POINTER = "cascade.json"


@dataclass(frozen=True, eq=False)
class CascadeStep:
    """The network at one prune ratio of a cascade.

    Attributes
    ----------
    ratio : float
        The one asked for: fraction of the original network's parameters that are gone.
    keep_ratio : float
        What is reached: parameters that are not pruned, by the original number.
    reached : bool
        Whether `keep_ratio` is within 0.5 % of ``1 - ratio``; filters are whole, so a small
        network may have no such choice.
    model : nn.Module
        Pruned and retrained; a network of the caller's own.
    masks : Mapping of str to Tensor or None
        Of the weights that stay; ``None`` where filters were removed for good.
    plan : Plan or None
        Filters: what went since the beginning, in the units of the original network.
    removed : tuple of Removal
        Filters: what went in this step, in the units of the original network.
    footprint : Footprint
        Without what is pruned; of weights only ``parameters`` falls.
    accuracy_pruned, accuracy : float or None
        Held-out accuracy before and after retraining.
    losses : tuple of float
        Mean training loss (nats) of every epoch of a recipe.
    seconds : float
        Wall time.
    """

    ratio: float
    keep_ratio: float
    reached: bool
    model: nn.Module
    masks: WeightMasks | None
    plan: Plan | None
    removed: tuple[Removal, ...]
    footprint: Footprint
    accuracy_pruned: float | None = None
    accuracy: float | None = None
    losses: tuple[float, ...] = ()
    seconds: float = 0.0

    @property
    def trace(self) -> tuple[Step, Step]:
        """The step as rows of a :class:`causalprune.pruning.trace.Trace`: pruned, retrained."""
        gone = f"{1 - self.keep_ratio:.2%} of the parameters gone"
        return (
            Step("kept", self.removed, self.footprint, self.accuracy_pruned, gone),
            Step("retrained", (), self.footprint, self.accuracy, gone, seconds=self.seconds),
        )


def geometric_ratios(n_steps: int, keep: float) -> tuple[float, ...]:
    """Prune ratios of steps that each keep the same fraction of what is left.

    Examples
    --------
    >>> geometric_ratios(3, 0.5)
    (0.5, 0.75, 0.875)
    """
    if not isinstance(n_steps, int) or n_steps < 1 or not 0 < keep < 1:
        raise InvalidArgumentError(
            "n_steps, keep: expected a positive integer and a fraction in (0, 1), got "
            f"{n_steps!r}, {keep!r}"
        )
    return tuple(1 - keep**step for step in range(1, n_steps + 1))


def check_ratios(ratios: Sequence[float]) -> tuple[float, ...]:
    """Refuse what are no ascending fractions in [0, 1)."""
    found = tuple(ratios) if isinstance(ratios, Sequence) else ()
    numbers = all(isinstance(r, (int, float)) and not isinstance(r, bool) for r in found)
    if not found or not numbers or not all(0 <= r < 1 and math.isfinite(r) for r in found):
        raise InvalidArgumentError(f"ratios: expected fractions in [0, 1), got {ratios!r}")
    if any(b <= a for a, b in itertools.pairwise(found)):
        raise InvalidArgumentError(f"ratios: expected ascending ones, got {ratios!r}")
    return tuple(float(r) for r in found)


@dataclass
class CascadeFolder:
    """Finished steps on disk.

    Attributes
    ----------
    path : Path
    arguments : Mapping of str to JSON value
        What the result depends on.
    finished : list of dict
        What is known of every finished step but its tensors.
    random_state : Mapping of str to JSON value or None
        Behind the last one (:func:`causalprune.pruning.checkpoints.random_state`).
    """

    path: Path
    arguments: Mapping[str, Any]
    finished: list[dict[str, Any]] = field(default_factory=list)
    random_state: Mapping[str, Any] | None = None

    def add(self, step: CascadeStep) -> None:
        """Write a finished step.

        Raises
        ------
        CheckpointError
            If it cannot be written; the steps before it stay, and the error has the network.
        """
        content = io.BytesIO()
        state = {name: tensor.cpu() for name, tensor in step.model.state_dict().items()}
        torch.save({"network": state, "masks": dict(step.masks or {})}, content)
        digest = hashlib.sha256(content.getvalue()).hexdigest()
        name = f"step-{len(self.finished)}-{digest}.pt"
        known = {
            **asdict(replace(step, model=nn.Identity(), masks=None, plan=None)),
            "plan": None if step.plan is None else json.loads(step.plan.to_json()),
            # These methods have no effect scale, and JSON has no NaN.
            "removed": [[each.group, each.unit, each.importance] for each in step.removed],
            "file": name,
        }
        del known["model"], known["masks"]
        pointer = {
            "schema": SCHEMA,
            "arguments": self.arguments,
            "steps": [*self.finished, known],
            "random_state": random_state(),
        }
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            replace_file(self.path / name, content.getvalue())
            replace_file(self.path / POINTER, json.dumps(pointer, indent=1, allow_nan=False) + "\n")
        except OSError as error:
            raise CheckpointError(
                f"checkpoint: the step at ratio {step.ratio:g} cannot be written to {self.path}: "
                f"{error}; {len(self.finished)} finished steps in it are intact. Make room and "
                "call again with the same arguments to go on",
                step.model,
                step.trace,
            ) from error
        self.finished.append(known)

    def tensors(self, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Read the state_dict and the masks of a finished step.

        Raises
        ------
        RecordError
            If its file is missing, or is not the one that was written.
        """
        path = self.path / self.finished[number]["file"]
        try:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() not in path.name:
                raise RecordError(f"{path}: expected the file that was written, got other content")
            found = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        except OSError as error:
            raise RecordError(f"{path}: expected a step of a cascade, got {error}") from error
        return found["network"], found["masks"]

    def step(self, number: int, model: nn.Module, masks: WeightMasks | None) -> CascadeStep:
        """Return a finished step around its network."""
        known = {**self.finished[number], "model": model, "masks": masks}
        del known["file"]
        known["removed"] = tuple(Removal(*removal) for removal in known["removed"])
        known["footprint"] = Footprint(**known["footprint"])
        known["losses"] = tuple(known["losses"])
        known["plan"] = self.plan(number)
        return CascadeStep(**known)

    def plan(self, number: int) -> Plan | None:
        """Return the plan of a finished step, in the units of the original network."""
        found = self.finished[number]["plan"]
        return None if found is None else Plan.from_json(json.dumps(found))


def open_folder(path: str | os.PathLike[str], arguments: Mapping[str, Any]) -> CascadeFolder:
    """Read what a folder holds of a cascade; a new folder holds nothing.

    Raises
    ------
    CheckpointError
        If it holds a cascade of other arguments, another network or other images.
    RecordError
        If it cannot be read.

    Examples
    --------
    >>> open_folder("new", {"method": "wt"}).finished
    []
    """
    home = Path(path)
    pointer = home / POINTER
    if not pointer.exists():
        return CascadeFolder(home, arguments)
    try:
        content = json.loads(pointer.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise RecordError(f"{pointer}: expected schema {SCHEMA}, got {content['schema']!r}")
        before, steps = dict(content["arguments"]), list(content["steps"])
        state = content["random_state"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"{pointer}: expected a cascade, got {error!r}") from error
    check_same_run(home, before, arguments)
    return CascadeFolder(home, arguments, steps, state)
