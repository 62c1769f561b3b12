"""Weight thresholding: the magnitude of every single weight."""

from __future__ import annotations

from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError
from causalprune.scoring.keep_budgets import weight_layers
from causalprune.scoring.methods import Job, MethodResult, UnitScores, register_method
from causalprune.scoring.norms import l1

__all__ = ["filter_norms", "weight_magnitudes", "wt"]


@register_method("wt", needs_data=False, needs_labels=False, outcomes=())
def wt(job: Job) -> MethodResult:
    """Magnitude of every weight of every convolution and linear layer.

    ``Scores.edges[layer]`` holds |W| in the shape of the weight, also of layers whose units
    cannot be removed; :func:`causalprune.scoring.keep_budgets.top_weights` keeps the largest of
    the whole network (Han et al. 2015; WT in Liebenwein et al. 2021, "Lost in Pruning"). The
    importance of a unit is the sum over the weights that produce it, which is that of ``l1``.

    Raises
    ------
    InvalidArgumentError
        If a weight is not finite.
    """
    edges = weight_magnitudes(job.model)
    units = {name: UnitScores(norms) for name, norms in filter_norms(job).items()}
    return MethodResult(units, edges)


def filter_norms(job: Job) -> dict[str, Tensor]:
    """Return the l1 norms [n_units], float64, of the weights that produce each unit, by group.

    Raises
    ------
    InvalidArgumentError
        If a norm is not finite.
    """
    found = l1(job)
    units = found.units if isinstance(found, MethodResult) else found
    for name, scores in units.items():
        if not bool(scores.importance.isfinite().all()):
            raise InvalidArgumentError(f"model: weight of layer {name!r} is not finite")
    return {name: scores.importance for name, scores in units.items()}


def weight_magnitudes(model: nn.Module) -> dict[str, Tensor]:
    """Return |W| of every convolution and linear layer by name, on the CPU.

    Raises
    ------
    InvalidArgumentError
        If a weight is not finite.

    Examples
    --------
    >>> import torch
    >>> model = nn.Linear(2, 1)
    >>> with torch.no_grad():
    ...     _ = model.weight.copy_(torch.tensor([[1.5, -2.0]]))
    >>> weight_magnitudes(model)
    {'': tensor([[1.5000, 2.0000]])}
    """
    found = {}
    for name, layer in weight_layers(model).items():
        found[name] = layer.weight.detach().cpu().abs()
        if not bool(found[name].isfinite().all()):
            raise InvalidArgumentError(f"model: weight of layer {name!r} is not finite")
    return found
