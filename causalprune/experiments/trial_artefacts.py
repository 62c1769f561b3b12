"""What a trial leaves behind beside its row: what was removed, the network, its retraining."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field

from torch import nn

from causalprune.experiments.weights import weights_content
from causalprune.measures import count_parameters, parameter_bytes
from causalprune.pruning import Plan
from causalprune.pruning.masks import WeightMasks, masks_content
from causalprune.pruning.weights import WEIGHT_METHODS
from causalprune.scoring.keep_budgets import weight_layers

__all__ = ["ARTEFACT_KINDS", "TrialArtefacts", "estimated_bytes"]

ARTEFACT_KINDS = ("plan", "checkpoint", "trace")
"""What a study may be asked to keep."""

_SCHEMA = 1


@dataclass
class TrialArtefacts:
    r"""Collects what a trial was asked to leave behind.

    Attributes
    ----------
    wanted : collection of str
        Of ``ARTEFACT_KINDS``. ``"plan"``: what was removed, ``Plan.to_json``'s text, or, of a
        method for single weights, one bit a weight as ``pruning.load_masks`` reads them (kind
        ``"masks"``). ``"checkpoint"``: the state dictionary of the pruned and retrained network.
        ``"trace"``: a JSON object with ``loss``, the mean cross-entropy (nats) over the batches
        of each epoch of retraining; none without retraining.
    content : dict of str to bytes
        By kind, filled as the trial goes on: one that fails leaves what there was.

    Examples
    --------
    >>> found = TrialArtefacts(("trace",))
    >>> found.keep_loss(1, 0.5)
    >>> found.keep_loss(2, 0.25)
    >>> found.content
    {'trace': b'{"schema": 1, "loss": [0.5, 0.25]}\n'}
    """

    wanted: Collection[str] = ()
    content: dict[str, bytes] = field(default_factory=dict)

    def keep_plan(self, plan: Plan) -> None:
        """Keep which units were removed."""
        if "plan" in self.wanted:
            self.content["plan"] = plan.to_json().encode()

    def keep_masks(self, masks: WeightMasks) -> None:
        """Keep which single weights were removed."""
        if "plan" in self.wanted:
            self.content["masks"] = masks_content(masks)

    def keep_checkpoint(self, model: nn.Module) -> None:
        """Keep the weights of the network as it is."""
        if "checkpoint" in self.wanted:
            self.content["checkpoint"] = weights_content(model)

    def keep_loss(self, epoch: int, loss: float) -> None:
        """Add an epoch of retraining to the trace."""
        if "trace" in self.wanted:
            earlier = json.loads(self.content["trace"])["loss"] if epoch > 1 else []
            text = json.dumps({"schema": _SCHEMA, "loss": [*earlier, loss]}, allow_nan=False)
            self.content["trace"] = f"{text}\n".encode()


def estimated_bytes(
    model: nn.Module, method: str, ratio: float, wanted: Collection[str], epochs: int
) -> float:
    """Estimate how much a trial's artefacts take on disk.

    Parameters
    ----------
    model : nn.Module
        The network before pruning.
    method, ratio : str and float
        The trial's.
    wanted : collection of str
        Of ``ARTEFACT_KINDS``.
    epochs : int
        Of retraining.

    Returns
    -------
    float
        Bytes. A plan has a line for every unit that goes and some for every layer; masks are
        taken as if they did not compress.

    Examples
    --------
    >>> estimated_bytes(nn.Linear(10, 8, bias=False), "wt", 0.5, ("plan", "checkpoint"), 0)
    1330.0
    """
    layers = weight_layers(model).values()
    by_weight = method in WEIGHT_METHODS
    total = 0.0
    if "plan" in wanted and by_weight:
        total += 1000 + count_parameters(model) / 8
    elif "plan" in wanted:
        units = sum(int(layer.weight.shape[0]) for layer in layers)
        total += 1000 + 300 * len(layers) + 12 * ratio * units
    if "checkpoint" in wanted:
        total += parameter_bytes(model) * (1.0 if by_weight else 1.0 - ratio)
    if "trace" in wanted:
        total += 30 + 20 * epochs
    return total
