"""Histogram mutual information by its definition: one joint histogram at a time, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["histogram_information"]


def histogram_information(x: Tensor, y: Tensor, bins: int = 64) -> Tensor:
    """Sum over a joint histogram's cells of ``p log2(p / (q r))``, for each pair of columns.

    The oracle of :func:`causalprune.ops.histogram_information`, which documents the arguments.

    Parameters
    ----------
    x : Tensor [N, I], any floating dtype
    y : Tensor [N, O]
    bins : int

    Returns
    -------
    Tensor [O, I], float64, bits

    Examples
    --------
    >>> import torch
    >>> histogram_information(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [5.0]])).item()
    1.0
    """
    first, second = _shares(x, bins), _shares(y, bins)
    found = torch.zeros(y.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for o in range(y.shape[1]):
        for i in range(x.shape[1]):
            joint = second[o].T @ first[i] / len(x)
            product = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
            filled = joint > 0
            found[o, i] = (joint[filled] * (joint[filled] / product[filled]).log2()).sum()
    return found


def _shares(values: Tensor, bins: int) -> list[Tensor]:
    """For each column, which bin [N, bins] every sample is in: one-hot, float64."""
    columns = []
    for column in values.double().unbind(1):
        least, largest = column.min(), column.max()
        width = largest - least
        place = (column - least) * (bins / width) if width > 0 else torch.zeros_like(column)
        bin_of = place.floor().clamp(max=bins - 1).long()
        columns.append(torch.nn.functional.one_hot(bin_of, bins).double())
    return columns
