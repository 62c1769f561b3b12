"""The Gram matrix of a layer's patches, without unfolding them where that can be avoided.

The rows of the matrix are the features of a patch (input channel i, kernel offset k): its entries
``G[(i, k), (j, m)] = sum over p of x_i(p + k) x_j(p + m)`` depend on k and m through m - k alone,
but for the positions p near the borders. A K x K kernel of stride 1 therefore needs
``K (2 K - 1)`` products of I x I, where unfolding needs ``K^4``; what the borders take from them
is a product over a few rows and columns of the map.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

__all__ = [
    "ShiftedGram",
    "has_shifted_gram",
    "outputs_of",
    "padding_of",
    "patches_of",
    "weight_gradient",
]


def has_shifted_gram(layer: nn.Conv2d | nn.Linear) -> bool:
    """Whether :class:`ShiftedGram` holds for a layer and saves anything."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.groups == 1
        and layer.kernel_size != (1, 1)
        and layer.stride == (1, 1)
    )


def patches_of(layer: nn.Conv2d | nn.Linear, inputs: Tensor) -> Tensor:
    """Rows [G, n, F] of what a layer multiplies with its weight.

    Parameters
    ----------
    layer : nn.Conv2d or nn.Linear
        With G groups (a linear layer: 1).
    inputs : Tensor [N, I, H, W] or [..., I]

    Returns
    -------
    Tensor [G, n, F]
        n positions of all images; F = I / G * kernel features, ordered as in the weight.
    """
    if isinstance(layer, nn.Linear):
        return inputs.reshape(1, -1, inputs.shape[-1])
    inputs, padding = padding_of(layer, inputs)
    if layer.kernel_size == (1, 1) and padding == (0, 0):
        down, across = layer.stride
        columns = inputs[:, :, ::down, ::across].flatten(2)
    else:
        columns = F.unfold(inputs, layer.kernel_size, layer.dilation, padding, layer.stride)
    features = layer.weight[0].numel()
    columns = columns.reshape(len(inputs), layer.groups, features, -1)
    return columns.permute(1, 0, 3, 2).reshape(layer.groups, -1, features)


def outputs_of(layer: nn.Conv2d | nn.Linear, value: Tensor) -> Tensor:
    """Rows [G, n, O / G] of a layer's output [N, O, Ho, Wo] or [..., O]."""
    if isinstance(layer, nn.Linear):
        return value.reshape(1, -1, value.shape[-1])
    n, channels = value.shape[:2]
    value = value.reshape(n, layer.groups, channels // layer.groups, -1)
    return value.permute(1, 0, 3, 2).reshape(layer.groups, -1, channels // layer.groups)


def padding_of(layer: nn.Conv2d, inputs: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Input of a convolution, and the rows and columns of zeros that it adds on each side.

    What another padding adds (reflected, uneven) is already in the input that is returned.
    """
    if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        down, across = layer.padding
        return inputs, (down, across)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode), (0, 0)


def weight_gradient(
    inputs: Tensor,
    size: tuple[int, int, int, int],
    outputs: Tensor,
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Return the sums [O, I, kh, kw] over positions p of ``outputs(p) * inputs(p + offset)``.

    In the inputs' own precision: a GPU's shorter TF32 products would spoil a Gram matrix.
    """
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        sums: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
            inputs, size, outputs, padding=padding, dilation=dilation
        )
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    return sums


class _Axis(NamedTuple):
    """One dimension of a sliding window of stride 1."""

    size: int
    kernel: int
    padding: int
    dilation: int

    def missed(self, offset: int) -> Iterator[tuple[int, int]]:
        """Yield the runs of places that the window does not read at its kernel offset `offset`."""
        n_outputs = self.size + 2 * self.padding - (self.kernel - 1) * self.dilation
        first = offset * self.dilation - self.padding
        for start, stop in ((0, first), (first + n_outputs, self.size)):
            if max(start, 0) < min(stop, self.size):
                yield max(start, 0), min(stop, self.size)

    def pairs(self, places: tuple[int, int], shift: int) -> tuple[slice, slice]:
        """Return those of `places` with a neighbour at `shift` on the map, and these."""
        start, stop = max(places[0], -shift), min(places[1], self.size - shift)
        stop = max(start, stop)
        return slice(start, stop), slice(start + shift, stop + shift)


@dataclass
class ShiftedGram:
    """Accumulates the Gram matrix of the patches of a convolution of stride 1 with one group.

    Products are of the inputs' dtype, sums over calls of :meth:`add` float64.

    Attributes
    ----------
    layer : nn.Conv2d
    """

    layer: nn.Conv2d
    _whole: Tensor | None = None
    _bands: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    _axes: tuple[_Axis, _Axis] | None = None

    def add(self, inputs: Tensor) -> None:
        """Add the patches of `inputs` [N, I, H, W]."""
        inputs, padding = padding_of(self.layer, inputs)
        kernel, dilation = self.layer.kernel_size, self.layer.dilation
        self._axes = (
            _Axis(inputs.shape[2], kernel[0], padding[0], dilation[0]),
            _Axis(inputs.shape[3], kernel[1], padding[1], dilation[1]),
        )
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        whole = self._all_shifts(inputs).double()
        self._whole = whole if self._whole is None else self._whole.add_(whole)
        bands = inputs.permute(0, 2, 3, 1)
        for key in {key for pair in self._pairs() for key, _ in self._missed(*pair)}:
            found = self._product(bands, key).double()
            self._bands[key] = found if key not in self._bands else self._bands[key].add_(found)

    def matrix(self) -> Tensor:
        """Return the Gram matrix [I * kh * kw, I * kh * kw], float64."""
        assert self._whole is not None
        kh, kw = self.layer.kernel_size
        n = self._whole.shape[0]
        gram = self._whole.new_empty(n, kh * kw, n, kh * kw)
        for k, m in self._pairs():
            shift = (m[0] - k[0], m[1] - k[1])
            block = self._whole[:, :, shift[0], shift[1] + kw - 1].clone()
            for key, sign in self._missed(k, m):
                block.add_(self._bands[key], alpha=sign)
            a, b = k[0] * kw + k[1], m[0] * kw + m[1]
            gram[:, a, :, b] = block
            gram[:, b, :, a] = block.mT
        return gram.reshape(n * kh * kw, n * kh * kw)

    def _pairs(self) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        kh, kw = self.layer.kernel_size
        offsets = itertools.product(range(kh), range(kw))
        return itertools.combinations_with_replacement(list(offsets), 2)

    def _all_shifts(self, inputs: Tensor) -> Tensor:
        """Return the sums [I, I, kh, 2 kw - 1] over the whole map of ``x_i(q) x_j(q + shift)``.

        It is what a convolution's weight gradient computes, by the fastest kernel that there is.
        """
        (kh, kw), (down, across) = self.layer.kernel_size, self.layer.dilation
        reach = (kw - 1) * across
        neighbours = F.pad(inputs, (reach, reach, 0, (kh - 1) * down))
        neighbours = neighbours.contiguous(memory_format=torch.channels_last)
        n = inputs.shape[1]
        size = (n, n, kh, 2 * kw - 1)
        return weight_gradient(neighbours, size, inputs, (0, 0), (down, across))

    def _missed(
        self, k: tuple[int, int], m: tuple[int, int]
    ) -> Iterator[tuple[tuple[int, ...], int]]:
        """Yield the rectangles that do not count for a pair of offsets, with their sign."""
        assert self._axes is not None
        down, across = self.layer.dilation
        shift = ((m[0] - k[0]) * down, (m[1] - k[1]) * across)
        rows = list(self._axes[0].missed(k[0]))
        columns = list(self._axes[1].missed(k[1]))
        every = tuple((0, axis.size) for axis in self._axes)
        rectangles = [
            *((run, every[1], -1) for run in rows),
            *((every[0], run, -1) for run in columns),
            *((a, b, 1) for a in rows for b in columns),
        ]
        for run, crossing, sign in rectangles:
            if all(
                places.start < places.stop
                for places, _ in (
                    self._axes[0].pairs(run, shift[0]),
                    self._axes[1].pairs(crossing, shift[1]),
                )
            ):
                yield (*run, *crossing, *shift), sign

    def _product(self, inputs: Tensor, key: tuple[int, ...]) -> Tensor:
        """Return the sum [I, I] of ``x_i(q) x_j(q + shift)`` over a rectangle of [N, H, W, I]."""
        assert self._axes is not None
        rows, rows_there = self._axes[0].pairs((key[0], key[1]), key[4])
        columns, columns_there = self._axes[1].pairs((key[2], key[3]), key[5])
        here = inputs[:, rows, columns].reshape(-1, inputs.shape[3])
        there = inputs[:, rows_there, columns_there].reshape(-1, inputs.shape[3])
        return here.T @ there
