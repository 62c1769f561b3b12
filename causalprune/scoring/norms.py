"""Filter norms: the data-free baselines l1 and l2."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from causalprune.graph import UnitGroup
from causalprune.scoring.methods import Job, UnitScores, register_method

__all__ = ["l1", "l2", "produced"]


@register_method("l1", needs_data=False, needs_labels=False, outcomes=())
def l1(job: Job) -> Mapping[str, UnitScores]:
    """Sum of absolute weights that produce a unit (Li et al. 2017, eq. 1).

    Biases, batch norms and depthwise weights are left out; in a coupled group the norms of all
    producers are added.
    """
    return {
        group.name: UnitScores(produced(job.model, group, torch.Tensor.abs))
        for group in job.graph.groups
    }


@register_method("l2", needs_data=False, needs_labels=False, outcomes=())
def l2(job: Job) -> Mapping[str, UnitScores]:
    """Euclidean norm of the weights that produce a unit; all producers of a group together."""
    return {
        group.name: UnitScores(produced(job.model, group, torch.Tensor.square).sqrt())
        for group in job.graph.groups
    }


def produced(model: nn.Module, group: UnitGroup, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum `measure` over all weights that produce each unit: [n_units], float64."""
    total = torch.zeros(group.n_units, dtype=torch.float64)
    for owned in group.owned:
        if owned.role != "producer":
            continue
        rows = _rows(model.get_submodule(owned.layer))
        channels = measure(rows.detach().to("cpu", torch.float64)).sum(1)
        for span in owned.spans:  # a layer need not have a channel of every unit
            firsts = span.start + torch.arange(span.n_units) * span.stride
            places = firsts[:, None] + torch.arange(span.width)
            total[span.unit : span.unit + span.n_units] += channels[places].sum(1)
    return total


def _rows(layer: nn.Module) -> Tensor:
    """Weights [n_places, fan-in] of output channels, or of the queries, keys, values of heads."""
    if isinstance(layer, nn.MultiheadAttention):
        separate = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
        parts = layer.in_proj_weight.chunk(3) if layer._qkv_same_embed_dim else separate
        return torch.cat([part.reshape(layer.num_heads, -1) for part in parts], 1)
    if not hasattr(layer, "weight"):  # torchvision's attention over shifted windows
        qkv, n_heads = layer.get_submodule("qkv").weight, layer.num_heads
        assert isinstance(qkv, Tensor) and isinstance(n_heads, int)
        return qkv.reshape(3, n_heads, -1).transpose(0, 1).flatten(1)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.flatten(1)
