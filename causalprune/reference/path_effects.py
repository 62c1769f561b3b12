"""The path effects of a layer by their definition: cut one edge at a time, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ACTIVATIONS", "path_effects"]

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "identity": lambda value: value,
        "relu": F.relu,
        "gelu": F.gelu,
        "silu": F.silu,
        "hardswish": F.hardswish,
    }
)


def path_effects(
    x: Tensor,
    weight: Tensor,
    pre: Tensor,
    grad: Tensor | None = None,
    *,
    activation: str = "relu",
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Effect of cutting every edge (input channel i -> output channel j) of one convolution.

    The definition, evaluated as a loop over input channels in float64: with
    ``c_ji = weight[j, i] * x_i`` and ``d_ji = phi(pre_j - c_ji) - phi(pre_j)``, the four edge
    statistics are the sums over images and positions of ``d``, ``|d|``, ``d^2`` and ``grad_j d``;
    the unit effect of image n is ``sum_j sum_p grad_j d_ji``. This is the oracle of
    :func:`causalprune.ops.path_effects`, which documents the arguments.

    Parameters
    ----------
    x : Tensor [N, I, H, W], any floating dtype
    weight : Tensor [O, I / groups, kh, kw]
    pre : Tensor [N, O, Ho, Wo]
    grad : Tensor [N, O, Ho, Wo], optional
        ``None`` stands for ones.

    Returns
    -------
    edge : Tensor [O, I / groups, 4], float64
    unit : Tensor [N, I], float64

    Examples
    --------
    >>> import torch
    >>> x, weight = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)
    >>> edge, unit = path_effects(x, weight, torch.full((1, 1, 1, 1), 3.0))
    >>> edge.tolist(), unit.tolist()
    ([[[-2.0, 2.0, 4.0, -2.0]]], [[-2.0]])
    """
    phi = ACTIVATIONS[activation]
    x, weight, pre = x.double(), weight.double(), pre.double()
    weighting = torch.ones_like(pre) if grad is None else grad.double()
    n_images, n_inputs = x.shape[:2]
    n_outputs, inputs_per_group = weight.shape[:2]
    outputs_per_group = n_outputs // groups
    edge = pre.new_zeros(n_outputs, inputs_per_group, 4)
    unit = pre.new_zeros(n_images, n_inputs)
    after = phi(pre)
    for i in range(n_inputs):
        group, inner = divmod(i, inputs_per_group)
        outputs = slice(group * outputs_per_group, (group + 1) * outputs_per_group)
        contribution = F.conv2d(
            x[:, i : i + 1], weight[outputs, inner : inner + 1], None, stride, padding, dilation
        )
        change = phi(pre[:, outputs] - contribution) - after[:, outputs]
        weighted = weighting[:, outputs] * change
        statistics = (change, change.abs(), change.square(), weighted)
        edge[outputs, inner] = torch.stack([s.sum((0, 2, 3)) for s in statistics], -1)
        unit[:, i] = weighted.sum((1, 2, 3))
    return edge, unit
