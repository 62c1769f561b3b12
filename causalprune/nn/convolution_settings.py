"""What the layers of this room share: reading a dense layer, and borders that no kernel makes."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from causalprune.errors import InvalidArgumentError

__all__ = ["check_dense_layer", "pair_of", "with_border"]


def check_dense_layer(name: str, layer: object, kind: type[nn.Module]) -> None:
    """Raise InvalidArgumentError unless `layer` is of this kind and has its weight."""
    if not isinstance(layer, kind):
        raise InvalidArgumentError(
            f"{name}: expected a torch.nn.{kind.__name__}, got {type(layer).__name__}"
        )
    if isinstance(layer.weight, Tensor) and is_lazy(layer.weight):
        raise InvalidArgumentError(
            f"{name}: expected a layer with a weight, got a lazy one: run the network once"
        )


def pair_of(sizes: Sequence[int]) -> tuple[int, int]:
    """Return the two numbers of a setting along height and width."""
    height, width = sizes
    return height, width


def with_border(
    x: Tensor,
    padding: str | Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    mode: str,
) -> tuple[Tensor, tuple[int, int]]:
    """Add the border of a convolution as far as its operator does not add it.

    Operators know borders of zeros that are equally wide on opposite sides.

    Parameters
    ----------
    x : Tensor [..., H, W]
    padding : {"same", "valid"} or pair of int
    kernel, dilation : pair of int
    mode : {"zeros", "reflect", "replicate", "circular"}

    Returns
    -------
    x : Tensor
    padding : pair of int
        What is left for the operator.

    Examples
    --------
    >>> import torch
    >>> x, padding = with_border(torch.ones(1, 1, 2, 2), (1, 2), (3, 3), (1, 1), "zeros")
    >>> x.shape[2:], padding
    (torch.Size([2, 2]), (1, 2))
    >>> x, padding = with_border(torch.ones(1, 1, 3, 3), "same", (2, 2), (1, 1), "reflect")
    >>> x.shape[2:], padding
    (torch.Size([4, 4]), (0, 0))
    """
    if padding == "valid":
        return x, (0, 0)
    if isinstance(padding, str):
        total = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
        before, after = [size // 2 for size in total], [size - size // 2 for size in total]
    else:
        before = after = list(padding)
    if mode == "zeros" and before == after:
        return x, pair_of(before)
    border = [before[1], after[1], before[0], after[0]]
    return F.pad(x, border, mode="constant" if mode == "zeros" else mode), (0, 0)
