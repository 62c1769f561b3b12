"""How activations are cut into the sixteen lanes of the packed layout (csrc/kernels/packed_layout).

A block holds sixteen lanes: so many images times so many strips of rows times so many strips of
columns, and around every strip the halo that its readers need.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from causalprune import _native

__all__ = ["LANES", "Lanes", "Strips", "Window", "lane_choices", "native_layout", "strips_for"]

LANES = 16

Pair = tuple[int, int]
Halo = tuple[int, int, int, int]


@dataclass(frozen=True)
class Lanes:
    """What the lanes of a block are; the product is sixteen.

    Attributes
    ----------
    images, rows, columns : int
        Images, and strips of rows and of columns of each.
    """

    images: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Strips:
    """One tensor in the layout.

    Attributes
    ----------
    lanes : Lanes
    size : pair of int
        Height and width of the image.
    strip : pair of int
        Height and width of a strip; ``lanes.rows`` and ``lanes.columns`` of them cover the image.
    """

    lanes: Lanes
    size: Pair
    strip: Pair


@dataclass(frozen=True)
class Window:
    """What a convolution or pooling reads, along height and width.

    Attributes
    ----------
    kernel, stride, padding, dilation : pair of int
    """

    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def output_size(self, size: Pair) -> Pair:
        """Return height and width of what comes out, in floor mode; 0 where the window is larger.

        Examples
        --------
        >>> Window((3, 3), (2, 2), (1, 1)).output_size((56, 57))
        (28, 29)
        """
        found = []
        for axis in (0, 1):
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            room = size[axis] + 2 * self.padding[axis] - reach
            found.append(room // self.stride[axis] + 1 if room >= 0 else 0)
        return found[0], found[1]

    def halo(self, strip: Pair, output_strip: Pair) -> Halo:
        """Return the rows above and below and the columns left and right that a strip needs."""
        found: list[int] = []
        for axis in (0, 1):
            last = (output_strip[axis] - 1) * self.stride[axis] - self.padding[axis]
            last += self.dilation[axis] * (self.kernel[axis] - 1)
            found += [self.padding[axis], max(0, last - (strip[axis] - 1))]
        return found[0], found[1], found[2], found[3]


def lane_choices(n_images: int, size: Pair, n_channels: int = 64) -> list[Lanes]:
    """Return lanes for images of one size, the likely fastest first.

    Few wasted places, strips large enough for a register tile, and blocks small enough that what
    one layer writes is still in the cache when the next one reads it, are weighed against each
    other; the weights were fitted to measured layers of ResNet-20 and ResNet-50.

    Parameters
    ----------
    n_images : int
    size : pair of int
        Height and width of the smallest image that is cut: the output of the layer or stretch.
    n_channels : int
        Of a typical layer.

    Examples
    --------
    >>> lane_choices(64, (7, 7), 512)[0]
    Lanes(images=16, rows=1, columns=1)
    >>> lane_choices(16, (56, 56))[0]
    Lanes(images=1, rows=4, columns=4)
    """
    found = []
    for images in (16, 8, 4, 2, 1):
        for rows in (1, 2, 4, 8, 16):
            if LANES % (images * rows):
                continue
            lanes = Lanes(images, rows, LANES // (images * rows))
            found.append((_estimated_cost(lanes, n_images, size, n_channels), lanes))
    found.sort(key=lambda pair: pair[0])
    return [lanes for _, lanes in found]


def _estimated_cost(lanes: Lanes, n_images: int, size: Pair, n_channels: int) -> float:
    height = max(1, math.ceil(size[0] / lanes.rows))
    width = max(1, math.ceil(size[1] / lanes.columns))
    places = math.ceil(n_images / lanes.images) * (
        height * width + 0.125 * (height + 2) * (width + 2)
    )
    block_bytes = 2 * 4 * LANES * height * width * n_channels
    out_of_cache = 1 + 0.15 * math.log2(max(1.0, block_bytes / 2**20))
    small_tile = 1 + 2 / min(14, height * width)
    return places * out_of_cache * small_tile


def strips_for(lanes: Lanes, sizes: Sequence[tuple[Pair, Pair]]) -> list[Strips]:
    """Cut tensors of several sizes so that every strip reads its own strip of the layer before.

    Parameters
    ----------
    lanes : Lanes
    sizes : sequence of (size, scale)
        Height and width of every tensor, and how many of its rows and columns make one of the
        smallest tensor: the product of the strides that lie between.

    Returns
    -------
    list of Strips
        In the order of `sizes`.

    Examples
    --------
    >>> lanes = Lanes(1, 4, 4)
    >>> [s.strip for s in strips_for(lanes, [((56, 56), (2, 2)), ((28, 28), (1, 1))])]
    [(14, 14), (7, 7)]
    """
    base = [1, 1]
    for axis, parts in ((0, lanes.rows), (1, lanes.columns)):
        for size, scale in sizes:
            base[axis] = max(base[axis], math.ceil(size[axis] / (parts * scale[axis])))
    found = []
    for size, scale in sizes:
        strip = [base[axis] * scale[axis] for axis in (0, 1)]
        # Uncut images need no common measure.
        if lanes.rows == 1:
            strip[0] = max(1, size[0])
        if lanes.columns == 1:
            strip[1] = max(1, size[1])
        found.append(Strips(lanes, size, (strip[0], strip[1])))
    return found


def native_layout(
    strips: Strips, n_images: int, n_channels: int, halo: Halo
) -> _native.PackedLayout:
    """Return the extension's description of a tensor [N, C, H, W] in this layout."""
    lanes = strips.lanes
    return _native.PackedLayout(
        (n_images, n_channels, *strips.size),
        (lanes.images, lanes.rows, lanes.columns),
        strips.strip,
        halo,
    )
